"""When a batch begins, and which jobs are too late: decisions without threads or clocks. Times are in seconds."""

from __future__ import annotations

import heapq
import itertools
import math
import weakref

from alexdeploy.inference.job import Task

_SMOOTHING = 0.25
"""Weight of the newest batch in the mean time of an image."""


class BatchTiming:
    """Decides when a free stream takes how many of the images that are ready.

    It waits for images that may still be submitted, at most `max_delay` from the first on, and only while images come
    at intervals below `max_delay`: one that comes alone does not wait. While others are being decoded, images that are
    ready wait as long as a full batch takes, however long they had waited for a decoder before.
    """

    def __init__(self, batch_size: int, max_delay: float) -> None:
        self._batch_size = batch_size
        self._max_delay = max_delay
        self._last_submission = -math.inf
        self._interval = math.inf
        self._submitted = self._ready_since = 0.0
        self._seconds_per_image = 0.0

    def submitted(self, now: float) -> None:
        """Images were submitted."""
        self._interval, self._last_submission = now - self._last_submission, now

    def first_ready(self, submitted: float, now: float) -> None:
        """An image is ready, and no other; it was submitted at that time."""
        self._submitted, self._ready_since = submitted, now

    def taken(self, now: float) -> None:
        """Some of the images that were ready run now; the others have just missed a batch."""
        self._ready_since = now

    def finished(self, seconds: float, num_images: int) -> None:
        """A batch took that long."""
        seconds /= num_images
        weight = _SMOOTHING if self._seconds_per_image else 1.0
        self._seconds_per_image += weight * (seconds - self._seconds_per_image)

    def share(self, num_images: int, num_free: int) -> int:
        """How many of the images that wait are for one of the free streams."""
        return min(self._batch_size, -(-num_images // max(num_free, 1)))

    def due(self, num_ready: int, num_undecoded: int, num_free: int) -> float:
        """The time from which a free stream takes images that are ready, of which there is at least one."""
        if num_ready >= self._batch_size:
            return -math.inf
        due = self._submitted
        if self._interval <= self._max_delay:
            due += self._max_delay
        if num_ready < self.share(num_ready + num_undecoded, num_free):
            due = max(due, self._ready_since + self._batch_size * self._seconds_per_image)
        return due


_MIN_ENTRIES = 64


class Deadlines:
    """The tasks that have a deadline, the nearest first. Tasks that are gone take no memory but an entry here.

    There are at most twice as many entries as tasks, and a few.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, weakref.ref[Task]]] = []
        self._numbers = itertools.count()
        self._num_most = _MIN_ENTRIES

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, task: Task) -> None:
        if task.deadline is None:
            return
        heapq.heappush(self._entries, (task.deadline, next(self._numbers), weakref.ref(task)))
        if len(self._entries) > self._num_most:
            # While a nearer task waits, those that are gone do not come to the front.
            self._entries = [entry for entry in self._entries if (each := entry[2]()) is not None and each.num_waiting]
            heapq.heapify(self._entries)
            self._num_most = max(2 * len(self._entries), _MIN_ENTRIES)

    def pop_late(self, now: float) -> list[Task]:
        """Remove and return the tasks with images that wait and whose deadline has passed."""
        late: list[Task] = []
        while self._entries:
            deadline, _, reference = self._entries[0]
            task = reference()
            if task is not None and task.num_waiting:
                if deadline > now:
                    break
                late.append(task)
            heapq.heappop(self._entries)
        return late

    @property
    def next(self) -> float:
        """The nearest deadline; infinity if there is none."""
        return self._entries[0][0] if self._entries else math.inf
