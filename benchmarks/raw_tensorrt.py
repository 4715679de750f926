"""TensorRT as trtexec times it: an engine file enqueued again and again, copies included, on streams that overlap.

    python -m benchmarks.raw_tensorrt ENGINE [--batch-size 8] [--seconds 5]

Needs a GPU, tensorrt and pycuda, and an engine of `alexdeploy build`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alexdeploy import ModelFolder
from alexdeploy.engines.trt.files import find_engines

_NUM_STREAMS = 2
_SIDE = 256


def ten_view_engine(folder: ModelFolder, precision: str, batch_size: int) -> Path:
    """The engine that ours would take of several: that for the smallest batches, of them the newest.

    Raises SystemExit if there is none.
    """
    fitting = [
        (path, record)
        for path, record in find_engines(folder)
        if record.backend == "tensorrt"
        and record.precision == precision
        and record.num_views == 10
        and record.profile[0] <= batch_size <= record.profile[2]
    ]
    if not fitting:
        words = [f"--{precision}"] * (precision != "fp32")
        command = " ".join(["alexdeploy build", str(folder.path), *words, "--tencrop", f"--max-batch {batch_size}"])
        raise SystemExit(f"no ten-view {precision} engine for {batch_size} images in {folder.path}; make it: {command}")
    return max(fitting, key=lambda found: (-found[1].profile[2], found[1].built_at))[0]


def in_own_process(folder: ModelFolder, precision: str, batch_size: int, seconds: float) -> float:
    """Images per second of the ten-view engine of that precision."""
    engine = ten_view_engine(folder, precision, batch_size)
    command = [sys.executable, "-m", "benchmarks.raw_tensorrt", str(engine.absolute())]
    command += ["--batch-size", str(batch_size), "--seconds", str(seconds)]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{run.stderr[-2000:]}")
    return float(run.stdout.split()[-1])


def images_per_second(path: Path, batch_size: int, seconds: float) -> float:
    import numpy as np
    import pycuda.autoinit  # noqa: F401 - makes a context
    import pycuda.driver as cuda
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    lanes: list[Any] = []
    for _ in range(_NUM_STREAMS):
        context, stream = engine.create_execution_context(), cuda.Stream()
        context.set_optimization_profile_async(0, stream.handle)
        context.set_input_shape("images", (batch_size, _SIDE, _SIDE, 3))
        buffers = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            host = cuda.pagelocked_empty(
                tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))
            )
            host[...] = 0 if name != "images" else np.random.default_rng(0).integers(0, 256, host.shape)
            device = cuda.mem_alloc(host.nbytes)
            context.set_tensor_address(name, int(device))
            buffers.append((name, host, device))
        lanes.append((context, stream, buffers))

    def enqueue(context: Any, stream: Any, buffers: list[Any]) -> None:
        for name, host, device in buffers:
            if name == "images":
                cuda.memcpy_htod_async(device, host, stream)
        context.execute_async_v3(stream.handle)
        for name, host, device in buffers:
            if name != "images":
                cuda.memcpy_dtoh_async(host, device, stream)

    def run(limit: float) -> float:
        began, num_batches = time.perf_counter(), 0
        for lane in lanes:
            enqueue(*lane)
        while time.perf_counter() - began < limit:
            for context, stream, buffers in lanes:
                stream.synchronize()
                num_batches += 1
                enqueue(context, stream, buffers)
        for _, stream, _ in lanes:
            stream.synchronize()
            num_batches += 1
        return num_batches * batch_size / (time.perf_counter() - began)

    run(1.0)
    return run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    print(f"images/s {images_per_second(given.engine, given.batch_size, given.seconds):.2f}")


if __name__ == "__main__":
    main()
