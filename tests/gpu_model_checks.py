"""The checks of tests/gpu_checks.py that one model is enough for, mostly in FP16 with ten views.

Each returns what it found, or raises CheckFailedError or CheckSkippedError.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from gpu_engine_checks import LIMITS, CheckFailedError, CheckSkippedError, Setting, counts_of, open_any, run_all
from gpu_here import has_onnxruntime_gpu, why_no_nvimgcodec

from alexdeploy.core.errors import AlexDeployError, DeviceMemoryError, ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineInfo, EngineOptions
from alexdeploy.engines.trt.cuda_driver import cuda_uuids
from alexdeploy.evaluation.decoders import compare_decoders
from alexdeploy.images.decode import decode
from alexdeploy.images.nvimgcodec import NvImageCodec
from alexdeploy.images.sources import iter_sources
from alexdeploy.inference.pipeline import PipelineOptions, run_pipeline
from alexdeploy.placement.devices import Device
from alexdeploy.placement.plan import Replica
from alexdeploy.placement.pool import Pool


def _pins(setting: Setting, folder: ModelFolder) -> str:
    """Weak typing: the types that the network has before any layer is pinned to FP32, and which layers are."""
    from alexdeploy.engines.trt.context import on_gpu
    from alexdeploy.engines.trt.library import load_library
    from alexdeploy.engines.trt.network import allow_precision, read_network
    from alexdeploy.graphs.freshness import load_graph
    from alexdeploy.graphs.tensorrt import engine_graph, opset_for

    library = load_library("tensorrt")
    if library.is_strongly_typed:
        raise CheckSkippedError(f"{library} is strongly typed: nothing is pinned")
    spec = folder.spec()
    graph = load_graph(folder, "fp16", spec).model
    content = engine_graph(
        graph, spec, 10, folder.mean_image(spec), opset_for(library.interface[0])
    ).SerializeToString()

    def look() -> tuple[Counter[str], Counter[str]]:
        builder = library.api.Builder(library.log)
        network = read_network(library, builder, content)
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        before = Counter(f"{_last(layer.type)} {_last(layer.get_output(0).dtype)}" for layer in layers)
        allow_precision(library, network, builder.create_builder_config(), "fp16", content)
        return before, Counter(_last(layer.type) for layer in layers if layer.precision_is_set)

    before, pinned = on_gpu(0, look)
    told = f"pinned: {counts_of(pinned)}; before: {counts_of(before)}"
    # The random model has no product that FP16 cannot hold.
    if pinned["LRN"] != 2 or pinned["TOPK"] != 1 or pinned["CONVOLUTION"] or pinned["MATRIX_MULTIPLY"]:
        raise CheckFailedError(told)
    return told


def _last(value: object) -> str:
    """FLOAT of DataType.FLOAT."""
    return str(value).rpartition(".")[2]


def _wrong_key(setting: Setting, folder: ModelFolder) -> str:
    setting.built(folder, "fp16", 10)
    own = os.environ["ALEXDEPLOY_STATE"]
    os.environ["ALEXDEPLOY_STATE"] = own + "-other"
    try:
        with open_any(folder, "tensorrt", "fp16", 10, 1, "cuda:0"):
            raise CheckFailedError("another installation's engine was opened")
    except ModelError as exc:
        if "another installation" not in exc.message:
            raise
    finally:
        os.environ["ALEXDEPLOY_STATE"] = own
    return "refused"


def _free_bytes() -> int:
    import pycuda.driver as cuda

    from alexdeploy.engines.trt.context import on_gpu

    return int(on_gpu(0, lambda: cuda.mem_get_info()[0]))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _memory(setting: Setting, folder: ModelFolder) -> str:
    size = setting.max_batch
    with setting.open(folder, "fp16", 10) as engine:
        for count in (size, size, 1, size):
            engine.run(setting.images[:count])
        free, resident = _free_bytes(), _resident_bytes()
        for index in range(setting.num_steady):
            engine.run(setting.images[: size if index % 10 else 1])
        lost, grown = free - _free_bytes(), _resident_bytes() - resident
    told = f"{setting.num_steady} batches: {lost / 1e6:+.1f} MB on the GPU, {grown / 1e6:+.1f} MB in the process"
    if lost > 8e6 or grown > 64e6:
        raise CheckFailedError(told)
    return told


def _reopened(setting: Setting, folder: ModelFolder) -> str:
    free = []
    for _ in range(10):
        with setting.open(folder, "fp16", 10) as engine:
            engine.run(setting.images[:1])
        free.append(_free_bytes())
    if free[1] - free[-1] > 8e6:
        raise CheckFailedError(f"free memory goes down: {free}")
    return f"{(free[1] - free[-1]) / 1e6:+.1f} MB from the second to the tenth time"


def _full(setting: Setting, folder: ModelFolder) -> str:
    """All but little of the GPU is taken: opening must say that memory is out, and work again when it is there."""
    import pycuda.driver as cuda

    from alexdeploy.engines.trt.context import on_gpu

    setting.built(folder, "fp16", 10)

    def fill() -> str:
        taken = []
        for size in (1 << 30, 1 << 26, 1 << 22):
            while True:
                try:
                    taken.append(cuda.mem_alloc(size))
                except cuda.MemoryError:
                    break
        try:
            with open_any(folder, "tensorrt", "fp16", 10, setting.max_batch, "cuda:0"):
                return ""
        except DeviceMemoryError as exc:
            return exc.message
        finally:
            for each in taken:
                each.free()

    told = on_gpu(0, fill)
    if not told:
        raise CheckFailedError("it opened all the same")
    with setting.open(folder, "fp16", 10) as engine:
        engine.run(setting.images[:1])
    return told


def _huge(setting: Setting, folder: ModelFolder) -> str:
    from alexdeploy.engines.trt.build import build_engine

    try:
        build_engine(folder, replace(setting.options("fp32", 10), max_batch=200_000))
    except AlexDeployError as exc:
        return f"{type(exc).__name__}: {exc.message}"
    raise CheckFailedError("an engine for 200,000 images was built")


def _uuid() -> str:
    """The UUID of the first GPU that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    return visible if visible.startswith(("GPU-", "MIG-")) else f"GPU-{uuid.UUID(cuda_uuids()[0])}"


def _replicas(setting: Setting, folder: ModelFolder) -> str:
    """Two on one GPU, each in its own process."""
    device = Device(kind="cuda", index=0, uuid=_uuid())
    size = min(setting.max_batch, 8)
    options = EngineOptions(precision="fp16", num_views=10, batch_size=size, device="cuda:0")
    replica = Replica(device=device, backend="tensorrt", options=options)
    with setting.open(folder, "fp16", 10, size) as engine:
        expected = run_all(engine, setting.images)
    with Pool(folder, [replica, replica]) as pool, ThreadPoolExecutor(4) as threads:
        parts = [setting.images[at : at + size] for at in range(0, len(setting.images), size)]
        found = np.concatenate([part.probabilities for part in threads.map(pool.run, parts)])
        counts = [report.num_images for report in pool.reports()]
    if np.abs(found - expected).max() > LIMITS["fp16"][0] / 10:
        raise CheckFailedError(f"they differ from one engine by {np.abs(found - expected).max():.1e}")
    if 0 in counts:
        raise CheckFailedError(f"one of them did nothing: {counts}")
    return f"{' and '.join(map(str, counts))} images"


def _end_to_end(setting: Setting, folder: ModelFolder) -> str:
    """Decoding and engine together, as predict runs them: every file gives an answer, in order."""
    with setting.open(folder, "fp16", 10) as engine:
        info: EngineInfo = engine.info
        began = time.monotonic()
        options = PipelineOptions(num_decoders=os.cpu_count() or 2)
        with closing(run_pipeline(engine, iter_sources([str(setting.photographs)]), options)) as outcomes:
            found = list(outcomes)
        rate = len(found) / (time.monotonic() - began)
    if len(found) != setting.num_images or [each.index for each in found] != list(range(len(found))):
        raise CheckFailedError(f"{len(found)} rows for {setting.num_images} images, or not in order")
    bad = [each for each in found if each.error is not None or each.probabilities is None]
    if bad:
        raise CheckFailedError(f"{len(bad)} rows are errors, the first: {bad[0].error}")
    return (
        f"{rate:,.0f} images/s over {len(found)} files, ten views, batch {info.batch_size}, "
        f"{options.num_decoders} decoding threads"
    )


def _decoders(setting: Setting, folder: ModelFolder) -> str:
    """nvImageCodec on the GPU against the one decoder, and how fast it decodes, without resizing."""
    if (why := why_no_nvimgcodec()) is not None:
        raise CheckSkippedError(why)
    codec = NvImageCodec("cuda:0")
    files = [path.read_bytes() for path in sorted(setting.photographs.iterdir())]
    photographs = [decode(data, "crop") for data in files]
    others = [codec.decode(data, "crop") for data in files]
    with setting.open(folder, "fp16", 10) as engine:

        def answer(images: Sequence[np.ndarray]) -> np.ndarray:
            return run_all(engine, np.stack(images))

        found = compare_decoders(codec.name, photographs, others, answer(photographs), answer)
    streams = [codec.library.CodeStream(data) for data in files]
    began = time.monotonic()
    # The pixels stay on the GPU; its buffers are there since the first time.
    codec.decoder.decode(streams, params=codec.params)
    rate = len(files) / (time.monotonic() - began)
    told = (
        f"{found.num_identical} of {found.num_images} identical, {found.num_left} left, values differ by "
        f"{found.mean_difference:.2g} on average and {found.max_difference} at most, probabilities by "
        f"{found.agreement.max_error:.1e} at most, {found.agreement.num_flips} answers; {rate:,.0f} files/s decoded"
    )
    if found.failure is not None:
        raise CheckFailedError(told)
    return told


def _beside_torch(setting: Setting, folder: ModelFolder) -> str:
    try:
        import torch
    except ImportError as exc:
        raise CheckSkippedError("torch is not installed") from exc
    if torch.version.cuda is None:
        raise CheckSkippedError("this torch is a build for CPUs")
    if not torch.cuda.is_available():
        raise CheckFailedError(f"torch {torch.__version__}, a build for CUDA {torch.version.cuda}, sees no GPU")
    before = torch.randn(512, 512, device="cuda")
    with setting.open(folder, "fp16", 10) as engine:
        first = engine.run(setting.images[:1]).probabilities
        product = before @ before
        second = engine.run(setting.images[:1]).probabilities
    after = before @ before
    if not torch.equal(product, after) or not np.array_equal(first, second):
        raise CheckFailedError("they disturb each other")
    return f"torch {torch.__version__}"


def _beside_onnxruntime(setting: Setting, folder: ModelFolder) -> str:
    import onnxruntime

    if not has_onnxruntime_gpu():
        raise CheckSkippedError("onnxruntime-gpu is not installed")
    # Where it is installed and another build is imported, opening the engine says so.
    with (
        setting.open(folder, "fp16", 10) as engine,
        open_any(folder, "onnxruntime", "fp32", 10, 4, "cuda:0") as other,
    ):
        one = engine.run(setting.images[:3]).probabilities
        two = other.run(setting.images[:3]).probabilities
    error = float(np.abs(one - two).max())
    if error > LIMITS["fp16"][0]:
        raise CheckFailedError(f"they differ by {error:.1e}")
    return f"ONNX Runtime {onnxruntime.__version__}, largest difference {error:.1e}"


OF_A_MODEL: dict[str, Callable[[Setting, ModelFolder], str]] = {
    "pins": _pins,
    "wrong-key": _wrong_key,
    "memory": _memory,
    "reopened": _reopened,
    "replicas": _replicas,
    "end-to-end": _end_to_end,
    "decoders": _decoders,
    "full": _full,
    "huge": _huge,
    "beside-torch": _beside_torch,
    "beside-onnxruntime": _beside_onnxruntime,
}
