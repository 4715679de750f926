"""Ten-view throughput of the engine in FP32, BF16 and INT8, and what OpenVINO runs each layer of INT8 in.

    python benchmarks/precision.py [PHOTOGRAPHS] [--repeats 7]

The full network with random weights; with no folder of photographs given, 500x375 JPEGs are rendered and calibrated
on. All precisions get the same decoded images in the same run, turn by turn; medians are printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import openvino
from tencrop import BATCH_SIZE, make_model, render_photographs, timed

from alexdeploy import ExportOptions, ModelFolder, export_model
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.export.deployment import deployment_graph
from alexdeploy.export.graphs import load_graph
from alexdeploy.export.quantize import Budget
from alexdeploy.export.towers import unroll_towers
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import iter_sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", nargs="?")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep", default="", help="layers that stay FP32 in the INT8 graph: conv1,fc8")
    arguments = parser.parse_args()
    photographs = None if arguments.photographs is None else os.path.abspath(arguments.photographs)
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        keep = tuple(name for name in arguments.keep.split(",") if name)
        run(photographs, arguments.images, arguments.repeats, keep)


def run(photographs: str | None, num_images: int, repeats: int, keep: tuple[str, ...]) -> None:
    folder = ModelFolder(Path("models/bench"))
    make_model(folder)
    if photographs is None:
        photographs = "photographs"
        render_photographs(Path(photographs), num_images)
    # Random weights nearly tie every answer: the speed is what counts here.
    export_model(folder, ExportOptions(int8=True, calibrate=photographs, budget=Budget(max_drop=100.0, keep=keep)))
    images = np.stack([decode(source.read()) for source in islice(iter_sources([photographs]), num_images)])
    batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
    versions = {name: importlib.metadata.version(name) for name in ("openvino", "onnxruntime", "numpy")}
    print(f"{platform.machine()}, {available_processors()} processors, Python {platform.python_version()}, {versions}")
    print(f"{len(images)} images, full network, ten views, batches of {BATCH_SIZE} images, engine alone")
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = ["fp32", *(["bf16"] if "BF16" in capabilities else []), "int8"]
    work: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for precision in precisions:
            options = EngineOptions(precision=precision, num_views=10, batch_size=BATCH_SIZE)  # type: ignore[arg-type]
            engine = stack.enter_context(open_engine(folder, "openvino", options))
            streams = stack.enter_context(ThreadPoolExecutor(engine.info.num_streams))
            work[precision] = lambda engine=engine, streams=streams: list(streams.map(engine.run, batches))
            work[precision]()
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(repeats):
            for name, job in work.items():
                seconds[name].append(timed(job))
    rates = {name: len(images) / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name}  {rate:7.2f} images/s, {rate / rates['fp32']:5.2f} times FP32")
    print("  what each layer of INT8 runs in, and its time for 4 images on one core")
    for name, kind, milliseconds in profile(folder, images[:4]):
        print(f"    {milliseconds:7.2f} ms  {kind:24} {name}")


def profile(folder: ModelFolder, images: np.ndarray) -> list[tuple[str, str, float]]:
    """Convolutions, fully connected layers and LRNs of the INT8 graph: name, kernel and milliseconds."""
    spec = folder.spec()
    network = load_graph(folder, "int8", spec).model
    content = unroll_towers(deployment_graph(network, spec, 10, folder.mean_image(spec))).SerializeToString()
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": "1",
        "NUM_STREAMS": "1",
        "PERF_COUNT": "YES",
    }
    request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()
    for _ in range(3):
        request.infer({0: images})
    return [
        (entry.node_name, entry.exec_type, 1e3 * entry.real_time.total_seconds())
        for entry in request.profiling_info
        if any(word in entry.node_type for word in ("Conv", "FullyConnected", "LRN")) and entry.real_time
    ]


if __name__ == "__main__":
    main()
