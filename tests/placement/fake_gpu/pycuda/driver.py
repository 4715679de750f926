"""Device memory that is the host's, and streams on which everything is done at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Error(Exception):
    """Never raised."""


class MemoryError(Error):
    """All that there is is taken."""


def init() -> None:
    """There is nothing to begin."""


def get_driver_version() -> int:
    return 13000


class Context:
    def push(self) -> None:
        """It is current everywhere."""

    detach = push

    @staticmethod
    def pop() -> None:
        """Nor does it go."""


class Device:
    def __init__(self, index: int) -> None:
        self.index = index

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return "NVIDIA H100"

    def compute_capability(self) -> tuple[int, int]:
        return 9, 0

    def retain_primary_context(self) -> Context:
        return Context()


class Stream:
    handle = 0

    def __init__(self, flags: int) -> None:
        """Of no kind."""

    def synchronize(self) -> None:
        """All is done."""


_TOTAL_BYTES = 4 << 30
_taken: dict[int, int] = {}


def mem_get_info() -> tuple[int, int]:
    return _TOTAL_BYTES - sum(_taken.values()), _TOTAL_BYTES


class DeviceAllocation:
    def __init__(self, num_bytes: int) -> None:
        if num_bytes > mem_get_info()[0]:
            raise MemoryError("cuMemAlloc failed: out of memory")
        # The system gives pages only when they are written.
        self.bytes = np.zeros(num_bytes, np.uint8)
        _taken[id(self)] = num_bytes

    def __int__(self) -> int:
        return int(self.bytes.ctypes.data)

    def free(self) -> None:
        _taken.pop(id(self), None)

    __del__ = free


mem_alloc = DeviceAllocation
pagelocked_empty = np.empty


def memcpy_htod_async(to: DeviceAllocation, host: NDArray[np.generic], stream: Stream) -> None:
    to.bytes[: host.nbytes] = host.reshape(-1).view(np.uint8)


def memcpy_dtoh_async(host: NDArray[np.generic], held: DeviceAllocation, stream: Stream) -> None:
    host.reshape(-1).view(np.uint8)[:] = held.bytes[: host.nbytes]
