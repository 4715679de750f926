"""Shared by running and building engines: TensorRT's log, the GPU, its context, and errors.

Importing this module without tensorrt and pycuda raises UsageError with install instructions. It accesses no device.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, ModelError, UsageError, first_line
from alexdeploy.engines.trt.cuda_driver import cuda_version
from alexdeploy.engines.trt.log import Complaints

try:
    import pycuda.driver as cuda
    import tensorrt as trt
except (ImportError, OSError) as exc:
    # Not installed, or not loadable because a library of CUDA or the driver is missing.
    is_missing = isinstance(exc, ModuleNotFoundError) and str(exc.name).partition(".")[0] in ("pycuda", "tensorrt")
    raise (UsageError if is_missing else DeviceError)(
        f"TensorRT cannot be used here: {first_line(exc)}",
        hint="On a machine with an NVIDIA GPU and its driver: pip install 'alexdeploy[gpu]'\n"
        "(pip compiles pycuda, which needs g++ and the CUDA headers: put nvcc on PATH.)\n"
        "Without a GPU, every other backend runs the ONNX files.",
    ) from exc

_Result = TypeVar("_Result")

_MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "failed_allocation",
    "insufficient memory",
    "cudaerrormemoryallocation",
)


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's messages for the error that follows. One per process, as TensorRT requires."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._complaints = Complaints()

    # TensorRT calls it mostly in the thread that called TensorRT, and ends the process if it raises.
    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self._complaints.add(message)
        if "ALEXDEPLOY_DEBUG" in os.environ and severity != trt.ILogger.VERBOSE:
            print(f"tensorrt: {message}", file=sys.stderr)

    def take(self) -> str:
        """The messages from this thread since the last call here; if none, those from TensorRT's own threads."""
        return self._complaints.take()


LOG = Log()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU as reported by its driver; `cuda` is the driver's CUDA version."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    cuda: str


def find_gpu(device: str) -> Gpu:
    """The GPU of a name like "cuda:0"; creates no context. Raises UsageError or DeviceError."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise UsageError(f"TensorRT runs on an NVIDIA GPU, not on {device!r}", hint="Name one: cuda:0")
    index = int(number or 0)
    try:
        cuda.init()
        num_gpus = cuda.Device.count()
        if index >= num_gpus:
            known = ", ".join(f"cuda:{each}" for each in range(num_gpus))
            raise DeviceError(f"there is no cuda:{index}; visible to this process: {known or 'no GPU'}")
        gpu = cuda.Device(index)
        return Gpu(
            index=index,
            name=gpu.name(),
            compute_capability=gpu.compute_capability(),
            cuda=".".join(map(str, cuda_version(cuda.get_driver_version()))),
        )
    except cuda.Error as exc:
        raise DeviceError(
            f"no NVIDIA GPU can be used: {first_line(exc)}",
            hint="Check nvidia-smi and CUDA_VISIBLE_DEVICES.",
        ) from exc


@contextmanager
def primary_context(index: int) -> Iterator[None]:
    """Make the primary context of a device current, for a thread that ends soon after.

    Everything created inside must be released inside. To release the context, pycuda makes it current once more and
    leaves it current until the thread ends. If a thread ends without the pop, the process is terminated.
    """
    context: cuda.Context = cuda.Device(index).retain_primary_context()
    context.push()
    try:
        yield
    finally:
        cuda.Context.pop()
        context.detach()


def on_gpu(index: int, work: Callable[[], _Result], cancel: Callable[[], None] = lambda: None) -> _Result:
    """Call `work` in a new thread in which the device is current. Raises its exceptions, translated.

    An interrupt calls `cancel` and then waits until the work has ended.
    """
    found: list[_Result] = []
    errors: list[AlexDeployError] = []

    def run() -> None:
        try:
            with primary_context(index):
                # Catch inside the context: a traceback keeps objects alive, which must be freed before the context.
                try:
                    found.append(work())
                except Exception as exc:
                    errors.append(translated(exc).with_traceback(None))
        except Exception as exc:
            errors.append(translated(exc))

    thread = threading.Thread(target=run, name="alexdeploy-gpu")
    thread.start()
    try:
        thread.join()
    except BaseException:
        cancel()
        thread.join()
        raise
    if errors:
        raise errors[0]
    return found[0]


def translated(exc: BaseException) -> AlexDeployError:
    """Convert an exception of CUDA or TensorRT."""
    if isinstance(exc, AlexDeployError):
        return exc
    if isinstance(exc, (cuda.MemoryError, MemoryError)):
        return DeviceMemoryError(f"the GPU is out of memory: {first_line(exc)}", hint="Use a smaller --batch-size.")
    return DeviceError(f"{type(exc).__name__}: {first_line(exc)}")


def refused(what: str, hint: str = "Use a smaller --batch-size.") -> DeviceError:
    """The error for a failed TensorRT call, with its log messages. `hint` is used if memory ran out."""
    said = LOG.take()
    lines = said.splitlines() or ["no reason given"]
    for line in lines:
        if any(word in line.lower() for word in _MEMORY_WORDS):
            return DeviceMemoryError(f"{what}: {line}", hint=hint)
    return DeviceError(f"{what}: {lines[0]}")


def deserialize(plan: bytes, path: Path) -> trt.ICudaEngine:
    """The engine, which keeps its runtime. `plan` comes from `load_engine`. Raises ModelError."""
    runtime: trt.Runtime = trt.Runtime(LOG)
    engine: trt.ICudaEngine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        error = refused(f"TensorRT {trt.__version__} cannot open {path}", "Free memory on the GPU.")
        if isinstance(error, DeviceMemoryError):
            raise error
        raise ModelError(error.message, hint="Build it again: alexdeploy build")
    return engine


def layer_information(engine: trt.ICudaEngine) -> str:
    """The layers of an engine as JSON, from TensorRT's inspector."""
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
