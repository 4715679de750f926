"""The jobs of a batcher, from their submission to their outcomes: a state without threads or clocks."""

from __future__ import annotations

import copy
import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import AlexDeployError, DeadlineError, QueueFullError
from alexdeploy.engines.base import Predictions
from alexdeploy.inference.admission import Admission
from alexdeploy.inference.fair_queue import FairQueue
from alexdeploy.inference.job import Item, Task, job_times
from alexdeploy.inference.pipeline import Outcome, make_outcome
from alexdeploy.inference.timing import BatchTiming, Deadlines


class Waiting:
    """Images wait to be decoded, then for the engine; clients have turns in both. Not thread-safe.

    At most `window` images are decoded and have no answer; those that need no decoding are not counted. `tasks` have no
    result yet. `done` is a queue of tasks whose futures are to be set: without a lock, since that runs callbacks.
    `max_images` limits those that wait; None: no limit. Times are in seconds.
    """

    def __init__(self, *, batch_size: int, window: int, max_delay: float, max_images: int | None) -> None:
        self.tasks: set[Task] = set()
        self.done: deque[Task] = deque()
        self.num_running = 0
        self._window = window
        self._admission = Admission(max_images)
        self._undecoded: FairQueue[Item] = FairQueue()
        self._ready: FairQueue[Item] = FairQueue()
        self._timing = BatchTiming(batch_size, max_delay)
        self._deadlines = Deadlines()
        self._num_decoding = self._num_held = 0

    @property
    def num_images(self) -> int:
        """Images that neither run nor have an outcome."""
        return self._admission.num_images

    @property
    def num_undecoded(self) -> int:
        """Images that wait for decoding or are being decoded."""
        return len(self._undecoded) + self._num_decoding

    @property
    def num_decodable(self) -> int:
        """Images that can be decoded now."""
        return max(min(len(self._undecoded), self._window - self._num_held), 0)

    @property
    def next_deadline(self) -> float:
        """When to call `end_late`; infinity if no task has a deadline."""
        return self._deadlines.next

    def due(self, num_free: int) -> float:
        """The time from which one of `num_free` streams takes a batch; infinity: nothing is ready."""
        if not self._ready:
            return math.inf
        return self._timing.due(len(self._ready), self.num_undecoded, self._num_idle(num_free))

    def add(self, task: Task, now: float) -> None:
        """Admit a task; others may have to leave for it. Raises QueueFullError."""
        self.end_late(now)
        for displaced in self._admission.admit(task):
            self.leave(displaced, QueueFullError("the queue is full, and other clients have less than their share"))
        self.tasks.add(task)
        self._timing.submitted(now)
        self._deadlines.add(task)
        items, task.items = task.items, []
        self._undecoded.add(task.client, task, [item for item in items if item.square is None])
        self._add_ready(task, [item for item in items if item.square is not None], now)
        self._end_if_complete(task)

    def take_undecoded(self) -> Item:
        """The next image to decode, if there is a decodable one."""
        item = self._undecoded.pop()
        item.is_held = True
        self._num_held += 1
        self._num_decoding += 1
        return item

    def add_decoded(self, item: Item, square: NDArray[np.uint8], now: float) -> None:
        """An image is decoded."""
        self._num_decoding -= 1
        item.square = square
        if item.task.is_done:
            self._release(item)
            return
        item.task.decoding.append(item.decoding)
        self._add_ready(item.task, [item], now)

    def add_broken(self, item: Item, problem: str | Exception) -> None:
        """An image cannot be decoded: `problem` is the error of its outcome, or an exception that ends the task."""
        task = item.task
        self._num_decoding -= 1
        self._release(item)
        if task.is_done:
            return
        task.decoding.append(item.decoding)
        if isinstance(problem, Exception):
            self.leave(task, problem)
            return
        self._admission.take(task)
        task.add(Outcome(index=item.number, source=item.name, error=problem))
        self._end_if_complete(task)

    def take_batch(self, num_free: int, now: float) -> list[Item]:
        """The images for one of `num_free` streams, at least one if any is ready."""
        num_ready = len(self._ready)
        share = self._timing.share(num_ready + self.num_undecoded, self._num_idle(num_free))
        batch = [self._ready.pop() for _ in range(min(share, num_ready))]
        for item in batch:
            item.task.has_begun = True
            self._admission.take(item.task)
        self.num_running += len(batch)
        self._timing.taken(now)
        return batch

    def add_answers(self, batch: list[Item], found: Predictions | Exception, began_ns: int, took_ns: int) -> None:
        """A batch has run. An exception ends the tasks of its images."""
        self.num_running -= len(batch)
        self._timing.finished(took_ns / 1e9, len(batch))
        for task in dict.fromkeys(item.task for item in batch):
            task.computing.append((began_ns, began_ns + took_ns))
        for number, item in enumerate(batch):
            task = item.task
            self._release(item)
            if task.is_done:
                continue
            if isinstance(found, Exception):
                self.leave(task, _copy(found))
            else:
                task.add(make_outcome(item.number, item.name, found, number))
                self._end_if_complete(task)

    def end_late(self, now: float) -> bool:
        """End the tasks whose deadline has passed, unless all of their images run already; whether there are any."""
        late = self._deadlines.pop_late(now)
        for task in late:
            self.leave(task, DeadlineError("no answer in time: the deadline passed while the image waited"))
        return bool(late)

    def leave(self, task: Task, error: Exception | None) -> None:
        """End a task with an error, or because its future was cancelled; answers for it are dropped."""
        if task.is_done:
            return
        self._undecoded.remove(task.client, task)
        for item in self._ready.remove(task.client, task):
            self._release(item)
        self._admission.leave(task)
        task.error = error
        self._end(task)

    def _num_idle(self, num_free: int) -> int:
        """The free streams that have a processor of their own: a decode thread takes one, and then a full batch is
        better than parts of one that run beside it."""
        return max(num_free - self._num_decoding, 1)

    def _add_ready(self, task: Task, items: list[Item], now: float) -> None:
        if items and not self._ready:
            self._timing.first_ready(task.submitted_ns / 1e9, now)
        self._ready.add(task.client, task, items)

    def _release(self, item: Item) -> None:
        """A decoded image is gone."""
        self._num_held -= item.is_held
        item.is_held = False

    def _end_if_complete(self, task: Task) -> None:
        if not task.num_left:
            task.times = job_times(task.submitted_ns, task.decoding, task.computing)
            self._end(task)

    def _end(self, task: Task) -> None:
        task.is_done = True
        self.tasks.remove(task)
        self.done.append(task)


def _copy(error: Exception) -> Exception:
    """An exception for one of several threads, each of which adds its own traceback."""
    if not isinstance(error, AlexDeployError):
        return error
    own = copy.copy(error)
    own.__cause__ = error
    return own
