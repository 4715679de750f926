"""Device memory that is the host's, and streams on which everything is done at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Error(Exception):
    """Never raised."""


class MemoryError(Error):
    """Never raised."""


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


class DeviceAllocation:
    def __init__(self, num_bytes: int) -> None:
        self.bytes = np.zeros(num_bytes, np.uint8)

    def __int__(self) -> int:
        return int(self.bytes.ctypes.data)


mem_alloc = DeviceAllocation
pagelocked_empty = np.empty


def memcpy_htod_async(to: DeviceAllocation, host: NDArray[np.generic], stream: Stream) -> None:
    to.bytes[: host.nbytes] = host.reshape(-1).view(np.uint8)


def memcpy_dtoh_async(host: NDArray[np.generic], held: DeviceAllocation, stream: Stream) -> None:
    host.reshape(-1).view(np.uint8)[:] = held.bytes[: host.nbytes]
