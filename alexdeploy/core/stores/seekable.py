"""An object of a store as a file that is read from front to back, with some seeking: archives."""

from __future__ import annotations

import io
import os
from concurrent.futures import Future
from functools import partial
from types import TracebackType

from alexdeploy.core.stores.objects import object_size, read_range
from alexdeploy.core.stores.reader_pool import ReaderPool

_BLOCK_BYTES = 1 << 20
_NUM_AHEAD = 8
"""Blocks asked for at a time: the product with the block is what arrives during one latency of the store."""


class StoreFile(io.RawIOBase):
    """Read-only and seekable; holds at most 9 MB, and reads ahead of sequential reading. Not thread-safe.

    Opening it asks for the size. Raises OSError, then and when it is read, as `read_range`.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._size = object_size(url)
        self._position = 0
        self._blocks: dict[int, Future[bytes]] = {}
        self._last = -1
        self._pool = ReaderPool(_NUM_AHEAD)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        number, begin = divmod(self._position, _BLOCK_BYTES)
        if self._position >= self._size:
            return 0
        part = self._block(number)[begin : begin + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._blocks.clear()
            self._pool.close()
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _block(self, number: int) -> bytes:
        # Only what follows the block before is read from front to back.
        num_ahead = _NUM_AHEAD if number in (self._last, self._last + 1) and number else 1
        self._last = number
        num_blocks = -(-self._size // _BLOCK_BYTES)
        for each in range(number, min(number + num_ahead, num_blocks)):
            if each not in self._blocks:
                start = each * _BLOCK_BYTES
                end = min(start + _BLOCK_BYTES, self._size)
                self._blocks[each] = self._pool.submit(partial(read_range, self._url, start, end))
        for each in [each for each in self._blocks if not number - 1 <= each < number + _NUM_AHEAD]:
            del self._blocks[each]
        return self._blocks[number].result()
