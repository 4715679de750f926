"""The GPU, its context in a thread, and errors of CUDA.

Importing this module without pycuda raises UsageError with install instructions. It accesses no device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, UsageError, first_line
from alexdeploy.engines.trt import own_thread
from alexdeploy.engines.trt.cuda_driver import cuda_version
from alexdeploy.engines.trt.library import not_usable

try:
    import pycuda.driver as cuda
except (ImportError, OSError) as exc:
    raise not_usable("tensorrt", exc) from exc

_Result = TypeVar("_Result")


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
    return own_thread.in_own_thread(work, cancel=cancel, context=lambda: primary_context(index), translated=translated)


def translated(exc: BaseException) -> AlexDeployError:
    """Convert an exception of CUDA or TensorRT."""
    if isinstance(exc, (cuda.MemoryError, MemoryError)):
        return DeviceMemoryError(f"the GPU is out of memory: {first_line(exc)}", hint="Use a smaller --batch-size.")
    return own_thread.translated(exc)
