"""Images of stores are read before they are decoded, many at a time, so that nothing waits for a store's latency."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace

from alexdeploy.core.errors import ImageError
from alexdeploy.core.reading import TooLargeError
from alexdeploy.core.stores.reader_pool import ReaderPool
from alexdeploy.core.stores.urls import is_url
from alexdeploy.images.sources import Source, read_file
from alexdeploy.images.stored import read_url

READERS_PER_DECODER = 16
"""Decoding takes milliseconds, and a store answers after tens of them."""

_MOST_READERS = 128
_MOST_OBJECT_BYTES = 16 << 20
"""A larger object is read when its turn comes, by the thread that decodes it."""

_WINDOW_BYTES = 512 << 20
_ITEMS_PER_READER = 2


def num_readers(num_decoders: int, paths: Iterable[str]) -> int:
    """How many threads read and decode `paths`: one for each decoder if they are files, more if some are URLs."""
    return min(READERS_PER_DECODER * num_decoders, _MOST_READERS) if any(map(is_url, paths)) else num_decoders


class ReadAhead(Iterator[Source]):
    """The same sources in the same order; those with a URL have been begun to be read.

    At most 512 MB are read or being read and not taken; an object whose size is not known counts as 16 MB until it is
    there. Sources of other kinds are not taken from the iterator before their turn. To be advanced by one thread at a
    time; each source is read once, by any thread. `close` it in the end.
    """

    def __init__(self, sources: Iterator[Source], num_decoders: int) -> None:
        self._sources = sources
        num_threads = min(READERS_PER_DECODER * num_decoders, _MOST_READERS)
        self._pool = ReaderPool(num_threads)
        self._most_items = _ITEMS_PER_READER * num_threads
        self._queue: deque[Source] = deque()
        self._window = _Window()
        self._is_ahead = False
        self._ending: BaseException | None = None

    def __next__(self) -> Source:
        self._fill()
        if not self._queue:
            assert self._ending is not None
            raise self._ending
        return self._queue.popleft()

    def close(self) -> None:
        """End reading, and close the sources."""
        self._queue.clear()
        self._pool.close()
        if isinstance(self._sources, Generator):
            self._sources.close()

    def _fill(self) -> None:
        while self._ending is None and (not self._queue or (self._is_ahead and self._has_room())):
            try:
                source = next(self._sources)
            # The sources before it come first.
            except Exception as exc:
                self._ending = exc
                return
            self._is_ahead = source.is_stored
            self._queue.append(self._begun(source) if source.is_stored else source)

    def _has_room(self) -> bool:
        return len(self._queue) < self._most_items and self._window.num_bytes + _MOST_OBJECT_BYTES <= _WINDOW_BYTES

    def _begun(self, source: Source) -> Source:
        if source.num_bytes is not None and source.num_bytes > _MOST_OBJECT_BYTES:
            return source
        fetched = _Fetched(source, self._window)
        fetched.future = self._pool.submit(fetched.read)
        return replace(source, fetched=fetched.take)


class _Window:
    """The bytes that are held, counted by several threads."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes += num_bytes


class _Fetched:
    """The bytes of one source, from when reading begins to when they are taken."""

    future: Future[bytes | None] | None

    def __init__(self, source: Source, window: _Window) -> None:
        self._source = source
        self._window = window
        self._reserved = _MOST_OBJECT_BYTES if source.num_bytes is None else source.num_bytes
        window.add(self._reserved)

    def read(self) -> bytes | None:
        """The bytes; None for more than may be read ahead. Raises ImageError."""
        source = self._source
        assert source.path is not None
        try:
            data = read_url(source.path, source.was_listed, source.num_bytes, _MOST_OBJECT_BYTES)
        except TooLargeError:
            data = None
        except OSError as exc:
            raise ImageError(exc.strerror or type(exc).__name__) from exc
        self._hold(len(data or b""))
        return data

    def take(self) -> bytes:
        """The bytes, once. Raises ImageError."""
        future, self.future = self.future, None
        data = None
        if future is not None:
            try:
                data = future.result()
            finally:
                self._hold(0)
        if data is None:
            source = self._source
            assert source.path is not None
            return read_file(source.path, source.was_listed, source.num_bytes)
        return data

    def _hold(self, num_bytes: int) -> None:
        self._window.add(num_bytes - self._reserved)
        self._reserved = num_bytes
