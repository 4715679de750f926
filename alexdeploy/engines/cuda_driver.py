"""What pycuda and ONNX Runtime lack, asked of NVIDIA's driver itself: CUDA graphs, and which number a UUID has."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from alexdeploy.core.errors import DeviceError, DeviceMemoryError

_CAPTURE_MODE_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile does not spoil the capture."""

_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""

_UUID_BYTES = 16


class _NoSuchFunctionError(DeviceError):
    """The driver is older than the function."""


def open_driver() -> ctypes.CDLL:
    """Raises DeviceError where there is no NVIDIA driver."""
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
    """The number that CUDA gives in this process to the GPU that the driver calls `uuid` ("GPU-" and hex digits).

    nvidia-smi counts in the order of the bus; CUDA puts the fastest first, and counts only what CUDA_VISIBLE_DEVICES
    names. Raises DeviceError if CUDA does not see it.
    """
    seen = cuda_uuids()
    wanted = uuid.partition("-")[2].replace("-", "").lower()
    if wanted not in seen:
        raise DeviceError(
            f"CUDA does not see GPU {uuid}; it sees {len(seen)} others", cure="Look at CUDA_VISIBLE_DEVICES."
        )
    return seen.index(wanted)


class CudaGraph:
    """Work recorded on a stream (its handle), to be started by one call. Raises DeviceError where that is not to be."""

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
            # Also after a failure: else the stream would go on recording.
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


def _instantiate(driver: ctypes.CDLL, executable: ctypes.c_void_p, graph: ctypes.c_void_p) -> None:
    try:
        _call(driver, "cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    except _NoSuchFunctionError:
        # Before CUDA 11.4; no node and no log of what failed are asked for.
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
