"""A limit on the pixels that all threads decode at a time: a file of a few kilobytes can have millions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Lets images be decoded beside each other for as long as they have no more than `max_pixels` together.

    One that has more alone is decoded alone. Those with no more than `free_pixels` are never counted, and never wait.
    """

    def __init__(self, max_pixels: int, free_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._free_pixels = free_pixels
        self._num_pixels = 0
        self._changed = threading.Condition()
        # Held by the image that waits: those behind it cannot pass it for ever.
        self._turn = threading.Lock()

    @contextmanager
    def take(self, num_pixels: int) -> Iterator[None]:
        """Reserve this number of pixels, waiting if necessary, and release them when the block ends. Thread-safe."""
        if num_pixels <= self._free_pixels:
            yield
            return
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._has_room(num_pixels))
            self._num_pixels += num_pixels
        try:
            yield
        finally:
            with self._changed:
                self._num_pixels -= num_pixels
                self._changed.notify()

    def _has_room(self, num_pixels: int) -> bool:
        return self._num_pixels == 0 or self._num_pixels + num_pixels <= self._max_pixels
