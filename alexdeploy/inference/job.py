"""Images that were submitted together, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexdeploy.images.from_memory import Input, is_square, name_of
from alexdeploy.inference.pipeline import Outcome


@dataclass(kw_only=True, slots=True)
class JobTimes:
    """How a job spent the time from its submission to its last outcome, in nanoseconds; there when its future is done.

    Each moment counts once, so that the sum is that time: `compute_ns` while any of its images is in the engine, with
    whatever else is in the batch; `decode_ns` while none is, and any is being decoded; `queue_ns` otherwise.
    """

    queue_ns: int = 0
    decode_ns: int = 0
    compute_ns: int = 0


Interval = tuple[int, int]
"""Begin and end, nanoseconds of the monotonic clock."""


def job_times(submitted_ns: int, decoding: Sequence[Interval], computing: Sequence[Interval]) -> JobTimes:
    """The times of a job from when its images were decoded and when its batches ran, in any order."""
    compute, busy = _covered(computing), _covered([*computing, *decoding])
    ended = max((end for _, end in (*computing, *decoding)), default=submitted_ns)
    return JobTimes(compute_ns=compute, decode_ns=busy - compute, queue_ns=max(ended - submitted_ns - busy, 0))


def _covered(intervals: Sequence[Interval]) -> int:
    """The length of the union of intervals."""
    length = at = 0
    for begin, end in sorted(intervals):
        length += max(end - max(begin, at), 0)
        at = max(at, end)
    return length


class Job:
    """Images that were submitted together. `future` has one outcome per image, in order.

    Cancelling the future makes those images leave the queue that do not run yet.
    """

    def __init__(self) -> None:
        self.future: Future[list[Outcome]] = Future()
        self.times = JobTimes()


class Task(Job):
    """A job as the batcher keeps it; everything but the future is read and written under its lock.

    `deadline` is a time of the monotonic clock in seconds. `num_waiting` counts images that neither run nor have an
    outcome, `num_left` those without an outcome. `is_done` is set once; then no image of it waits any more.
    """

    def __init__(self, images: Sequence[Input], client: str, deadline: float | None, submitted_ns: int) -> None:
        super().__init__()
        self.client = client
        self.deadline = deadline
        self.submitted_ns = submitted_ns
        self.items = [Item(self, number, image) for number, image in enumerate(images)]
        self.outcomes: list[Outcome | None] = [None] * len(images)
        self.num_waiting = self.num_left = len(images)
        self.decoding: list[Interval] = []
        self.computing: list[Interval] = []
        self.has_begun = False
        self.is_done = False
        self.error: Exception | None = None

    def add(self, outcome: Outcome) -> None:
        """Add an outcome of a waiting or running image."""
        self.outcomes[outcome.index] = outcome
        self.num_left -= 1

    def complete(self) -> None:
        """Set the future, after `is_done`. Runs the future's callbacks, so no lock may be held."""
        if not self.future.set_running_or_notify_cancel():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result([outcome for outcome in self.outcomes if outcome is not None])


class Item:
    """One image of a task. `square` is uint8 [256, 256, 3] once it is decoded; `is_held`: it takes decoded memory.

    `decoding` is when it was decoded.
    """

    __slots__ = ("decoding", "image", "is_held", "name", "number", "square", "task")

    def __init__(self, task: Task, number: int, image: Input) -> None:
        self.task = task
        self.number = number
        self.name = name_of(image, number)
        self.image: Input | None = image
        self.square: NDArray[np.uint8] | None = None
        self.decoding: Interval = (task.submitted_ns, task.submitted_ns)
        self.is_held = False
        if is_square(image):
            assert isinstance(image, np.ndarray)
            self.square, self.image = image, None
