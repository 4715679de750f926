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
    """Where the time of a job went, in nanoseconds; complete when its future is done.

    `queue_ns` is the longest that one of its images waited, without its decoding; `decode_ns` the sum over its images;
    `compute_ns` the sum over the batches that its images were in: the time in the engine. `num_batches` counts these.
    """

    queue_ns: int = 0
    decode_ns: int = 0
    compute_ns: int = 0
    num_batches: int = 0


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
    """One image of a task. `square` is uint8 [256, 256, 3] once it is decoded; `is_held`: it takes decoded memory."""

    __slots__ = ("decode_ns", "image", "is_held", "name", "number", "square", "task")

    def __init__(self, task: Task, number: int, image: Input) -> None:
        self.task = task
        self.number = number
        self.name = name_of(image, number)
        self.image: Input | None = image
        self.square: NDArray[np.uint8] | None = None
        self.decode_ns = 0
        self.is_held = False
        if is_square(image):
            assert isinstance(image, np.ndarray)
            self.square, self.image = image, None
