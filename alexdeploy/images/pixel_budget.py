"""A limit on the pixels that all threads decode at the same time: a file of a few kilobytes can have millions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Lets images be decoded concurrently while they have at most `max_pixels` in total.

    An image with more than that is decoded alone. Images of up to `free_pixels` are not counted and never wait.
    """

    def __init__(self, max_pixels: int, free_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._free_pixels = free_pixels
        self._num_pixels = 0
        self._changed = threading.Condition()
        # Locked by the waiting image, so that later ones cannot starve it.
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
