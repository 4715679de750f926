"""Calls to NVIDIA's driver that pycuda and ONNX Runtime lack: CUDA graphs, and the ordinal of a UUID."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress

from alexdeploy.core.errors import DeviceError, DeviceMemoryError

_CAPTURE_MODE_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: calls in other threads do not invalidate the capture."""

_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""

_UUID_BYTES = 16
_UUID_PREFIXES = ("GPU-", "MIG-")
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Of CUdevice_attribute."""


class _NoSuchFunctionError(DeviceError):
    """The driver is older than the function."""


def is_cuda_uuid(text: str) -> bool:
    """Whether CUDA accepts it as the UUID of a GPU or its beginning; a Jetson's UUID has no prefix."""
    return text.upper().startswith(_UUID_PREFIXES)


def cuda_version(number: int) -> tuple[int, int]:
    """Decode the version number of CUDA and NVML: 12040 is 12.4."""
    return number // 1000, number % 1000 // 10


def open_driver() -> ctypes.CDLL:
    """Raises DeviceError without an NVIDIA driver."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as exc:
        raise DeviceError("no GPU can be used: there is no NVIDIA driver here") from exc


def cuda_uuids() -> list[str]:
    """The UUIDs of the GPUs that CUDA sees in this process, in its order, as 32 hexadecimal digits each."""
    driver = open_driver()
    count, handle = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    uuids = []
    for ordinal in range(count.value):
        found = (ctypes.c_ubyte * _UUID_BYTES)()
        _call(driver, "cuDeviceGet", ctypes.byref(handle), ordinal)
        _call(driver, "cuDeviceGetUuid_v2", ctypes.byref(found), handle)
        uuids.append(bytes(found).hex())
    return uuids


def cuda_ordinal(uuid: str) -> int:
    """CUDA's ordinal in this process of the GPU with NVML's `uuid` (hex digits after "GPU-", "MIG-").

    nvidia-smi counts in bus order; CUDA puts the fastest first, and counts only GPUs in CUDA_VISIBLE_DEVICES. A UUID
    without a prefix is a Jetson's only GPU. Raises DeviceError if CUDA does not see it.
    """
    seen = cuda_uuids()
    has_prefix = is_cuda_uuid(uuid)
    if len(seen) == 1 and not has_prefix:
        return 0
    wanted = (uuid.partition("-")[2] if has_prefix else uuid).replace("-", "").lower()
    if wanted not in seen:
        raise DeviceError(
            f"CUDA does not see GPU {uuid}; it sees {len(seen)} others", hint="Look at CUDA_VISIBLE_DEVICES."
        )
    return seen.index(wanted)


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports, if it reports one."""
    number = ctypes.c_int()
    with suppress(DeviceError):
        _call(open_driver(), "cuDriverGetVersion", ctypes.byref(number))
        return cuda_version(number.value)
    return None


def only_compute_capability() -> tuple[int, int] | None:
    """The compute capability of the only GPU visible to CUDA, if known. Fixes the GPUs visible to this process."""
    handle, count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    with suppress(DeviceError):
        driver = open_driver()
        _call(driver, "cuInit", 0)
        _call(driver, "cuDeviceGetCount", ctypes.byref(count))
        if count.value == 1:
            _call(driver, "cuDeviceGet", ctypes.byref(handle), 0)
            for number, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
                _call(driver, "cuDeviceGetAttribute", ctypes.byref(number), attribute, handle)
            return major.value, minor.value
    return None


class CudaGraph:
    """Work captured from a stream (its handle), launched by one call. Raises DeviceError if it cannot be captured."""

    def __init__(self, stream: int, enqueue: Callable[[], None], driver: ctypes.CDLL | None = None) -> None:
        self._driver = driver or open_driver()
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        _call(
            self._driver,
            "cuStreamBeginCapture_v2",
            ctypes.c_void_p(stream),
            ctypes.c_int(_CAPTURE_MODE_THREAD_LOCAL),
        )
        try:
            enqueue()
        finally:
            # Also after a failure: otherwise the stream would keep capturing.
            code = self._driver["cuStreamEndCapture"](ctypes.c_void_p(stream), ctypes.byref(graph))
        if code:
            raise DeviceError(f"cuStreamEndCapture failed with CUDA error {code}")
        try:
            _instantiate(self._driver, executable, graph)
        finally:
            self._driver["cuGraphDestroy"](graph)
        self._executable: ctypes.c_void_p | None = executable

    def launch(self, stream: int) -> None:
        assert self._executable is not None
        _call(self._driver, "cuGraphLaunch", self._executable, ctypes.c_void_p(stream))

    def close(self) -> None:
        if self._executable is not None:
            self._driver["cuGraphExecDestroy"](self._executable)
            self._executable = None


def try_graph(stream: int, enqueue: Callable[[], None], driver: ctypes.CDLL | None = None) -> CudaGraph | None:
    """The work as a graph, or None, which costs only speed: errors of the work itself appear without a graph too."""
    try:
        return CudaGraph(stream, enqueue, driver)
    # Any exception of `enqueue`, and too little memory for the graph though enough for the work.
    except Exception:
        return None


def _instantiate(driver: ctypes.CDLL, executable: ctypes.c_void_p, graph: ctypes.c_void_p) -> None:
    try:
        _call(driver, "cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    except _NoSuchFunctionError:
        # Before CUDA 11.4. The error node and the error log are not requested.
        _call(driver, "cuGraphInstantiate_v2", ctypes.byref(executable), graph, None, None, ctypes.c_size_t(0))


def _call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    try:
        function = driver[name]
    except AttributeError as exc:
        raise _NoSuchFunctionError(f"the NVIDIA driver has no {name}: it is too old") from exc
    code = function(*arguments)
    if code:
        error = DeviceMemoryError if code == _OUT_OF_MEMORY else DeviceError
        raise error(f"{name} failed with CUDA error {code}")
