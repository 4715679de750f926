"""Images of many callers in common batches: some threads decode, one thread for each of the engine's streams runs."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import Count, NotNegative, check_fields
from alexdeploy.core.errors import DeadlineError as DeadlineError
from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.core.errors import QueueFullError as QueueFullError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.engines.base import Engine, Predictions, copied
from alexdeploy.images.decode import ResizePolicy
from alexdeploy.images.from_memory import Input, check_input, read_square
from alexdeploy.inference.job import Item, Task
from alexdeploy.inference.job import Job as Job
from alexdeploy.inference.job import JobTimes as JobTimes
from alexdeploy.inference.waiting import Waiting
from alexdeploy.inference.window import check_memory, window_size

_PATIENCE_SECONDS = 1.0
"""How long batches whose results nobody waits for may keep running."""

_DECODE_PATIENCE_SECONDS = 0.25
"""How long decoding whose results nobody waits for may keep running."""

_EARLY_SECONDS = 1e-4
"""A thread that waits for a time is not woken for another that is sooner by less than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatcherOptions:
    """Raises UsageError for an invalid value.

    While a stream of the engine is free, an image waits at most `max_delay_ms` for others to be submitted, and only if
    images come at shorter intervals. For images that are being decoded it waits as long as a full batch takes at most.
    `max_queue` is the largest number of images that wait, for decoding or for the engine; None: no limit.
    `num_decoders` is a number of threads.
    """

    max_delay_ms: NotNegative = 2.0
    max_queue: Count | None = None
    num_decoders: Count = 2

    def __post_init__(self) -> None:
        check_fields(self)


class Batcher:
    """Jobs of any number of threads, run in common batches on an engine that is open. Thread-safe.

    A stream that is free takes its share of the images that wait, at most `batch_size` of the engine. Clients have
    turns, both for decoding and for the engine. An image that cannot be read has an outcome with its error. An error of
    the engine fails the jobs of that batch. Memory is bounded: few more images are decoded than run. `on_batch` is
    called by the engine's threads with the size of each batch that was answered, and nanoseconds. `cancel` makes
    running calls of the engine raise, on engines that support it; `close` calls it for batches that do not end.
    """

    def __init__(
        self,
        engine: Engine,
        resize: ResizePolicy,
        options: BatcherOptions,
        *,
        cancel: Callable[[], None] = lambda: None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        """Raises DeviceMemoryError if the images held at a time do not fit into the free memory."""
        info = engine.info
        check_memory(info, options.num_decoders)
        self._engine = engine
        self._resize: ResizePolicy = resize
        self._cancel, self._on_batch = cancel, on_batch
        self._opened = OpenedHere(self)

        # All of the following is read and written under the lock.
        self._lock = threading.Lock()
        self._can_decode = threading.Condition(self._lock)
        self._can_run = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._waiting = Waiting(
            batch_size=info.batch_size,
            window=window_size(info.batch_size, info.num_streams, options.num_decoders),
            max_delay=options.max_delay_ms / 1000,
            max_images=options.max_queue,
        )
        self._num_free = 0
        # When a thread that waits looks again without being woken.
        self._runner_looks_at = self._decoder_looks_at = math.inf
        self._is_closing = self._is_stopped = False

        # Daemons: a program that ends without closing must not wait for them.
        self._decoders = [self._thread(self._decode_next, f"decode-{n}") for n in range(options.num_decoders)]
        self._runners = [self._thread(self._run_next, f"engine-{n}") for n in range(info.num_streams)]
        for thread in (*self._decoders, *self._runners):
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Images that were submitted and neither run nor have an outcome."""
        return self._waiting.num_images

    @property
    def num_running(self) -> int:
        """Images in the engine."""
        return self._waiting.num_running

    @property
    def is_open(self) -> bool:
        """Whether it accepts jobs."""
        return not self._is_closing

    def submit(self, images: Sequence[Input], *, client: str = "", deadline: float | None = None) -> Job:
        """Queue images and return at once. Arrays must not be changed until the future is done.

        `client` is anything that names whose images they are. After `deadline`, a time of `time.monotonic()`, images
        that wait are not computed any more and the future raises DeadlineError. Raises UsageError for what is no image,
        QueueFullError if too many wait. Clients then have equal shares: for the job of one that has less than another,
        the newest job of the other leaves, whose future raises QueueFullError.
        """
        self._opened.check("batcher")
        for number, image in enumerate(images):
            check_input(image, f"images[{number}]")
        now = time.monotonic_ns()
        task = Task(images, client, deadline, now)
        try:
            with self._lock:
                if self._is_closing:
                    raise UsageError("the batcher is closed")
                self._waiting.add(task, now / 1e9)
                self._wake()
        finally:
            # Tasks that left for this one, and late ones even if it is refused.
            self._deliver()
        reference = weakref.ref(task)
        task.future.add_done_callback(lambda future: self._leave_cancelled(reference, future))
        return task

    def close(self, *, finish: bool) -> None:
        """Accept no more jobs and end all threads. May be called again, from any thread but those of callbacks.

        `finish`: what was accepted is answered first. Otherwise all futures are cancelled; batches that run end.
        """
        if self._opened.is_fork:
            return
        with self._lock:
            self._is_closing = True
            self._can_run.notify_all()
            while finish and self._waiting.tasks and not self._is_stopped:
                self._all_done.wait()
            self._is_stopped = True
            unfinished = list(self._waiting.tasks)
            for condition in (self._can_decode, self._can_run, self._all_done):
                condition.notify_all()
        for task in unfinished:
            task.future.cancel()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for thread in self._runners:
            while thread.is_alive():
                # Cancel again soon after the deadline: a thread that was about to run its batch has only then begun.
                thread.join(max(deadline - time.monotonic(), 0.1))
                if thread.is_alive():
                    self._cancel()
        deadline = time.monotonic() + _DECODE_PATIENCE_SECONDS
        for thread in self._decoders:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _thread(self, work: Callable[[], bool], name: str) -> threading.Thread:
        def loop() -> None:
            goes_on = True
            while goes_on:
                goes_on = work()
                self._deliver()

        return threading.Thread(target=loop, name=f"alexdeploy-{name}", daemon=True)

    def _wake(self) -> None:
        """Wake the threads that have something to do after a change; called under the lock."""
        if num_decodable := self._waiting.num_decodable:
            self._can_decode.notify(num_decodable)
        elif self._waiting.next_deadline < self._decoder_looks_at:
            # The decoders watch the deadlines.
            self._can_decode.notify()
        if self._num_free and (due := self._due()) < self._runner_looks_at - _EARLY_SECONDS:
            self._runner_looks_at = due
            self._can_run.notify()
        if not self._waiting.tasks:
            self._all_done.notify_all()

    def _end_late(self) -> None:
        if self._waiting.end_late(time.monotonic()):
            # They may have been the last that `close` waits for, and have made room for others to be decoded.
            self._wake()

    def _due(self) -> float:
        due = self._waiting.due(self._num_free)
        # There will be no more images to wait for.
        return -math.inf if self._is_closing and due < math.inf and not self._waiting.num_undecoded else due

    def _decode_next(self) -> bool:
        """Decode one image, or end the tasks that are late; False when the thread is to end."""
        with self._lock:
            self._end_late()
            if self._is_stopped:
                return False
            if not self._waiting.num_decodable:
                if not self._waiting.done:
                    self._decoder_looks_at = min(self._decoder_looks_at, self._waiting.next_deadline)
                    _wait(self._can_decode, self._waiting.next_deadline)
                    self._decoder_looks_at = math.inf
                return True
            item = self._waiting.take_undecoded()
        found = self._decode(item)
        with self._lock:
            if isinstance(found, np.ndarray):
                self._waiting.add_decoded(item, found, time.monotonic())
            else:
                self._waiting.add_broken(item, found)
            self._wake()
        return True

    def _decode(self, item: Item) -> NDArray[np.uint8] | str | Exception:
        """The image, why it cannot be read, or an exception that nobody foresaw; it must not end the thread."""
        image, item.image = item.image, None
        assert image is not None
        began = time.monotonic_ns()
        try:
            return read_square(image, self._resize)
        except ImageError as exc:
            return exc.text
        except MemoryError:
            return "not enough memory"
        except Exception as exc:
            return exc
        finally:
            item.decoding = (began, time.monotonic_ns())

    def _run_next(self) -> bool:
        """Run one batch; False when the thread is to end."""
        with self._lock:
            if self._is_stopped:
                return False
            batch = self._take_batch()
        if not batch:
            return True
        found: Predictions | Exception
        began = time.monotonic_ns()
        try:
            found = copied(self._engine.run(_stacked(batch), low_latency=True))
        # Any error is for those who wait for this batch; the next may succeed.
        except Exception as exc:
            found = exc
        took = time.monotonic_ns() - began
        if self._on_batch is not None and not isinstance(found, Exception):
            self._on_batch(len(batch), took)
        with self._lock:
            self._waiting.add_answers(batch, found, began, took)
            self._wake()
        return True

    def _take_batch(self) -> list[Item]:
        """The next batch; empty after a wait, and if there are futures to be set first."""
        # Before this thread counts as free: what is woken must be a thread that waits.
        self._end_late()
        self._num_free += 1
        try:
            due = self._due()
            if self._waiting.done:
                return []
            if due > (now := time.monotonic()):
                self._runner_looks_at = min(self._runner_looks_at, due)
                _wait(self._can_run, due)
                self._runner_looks_at = math.inf
                return []
            batch = self._waiting.take_batch(self._num_free, now)
        finally:
            self._num_free -= 1
        # Another stream may be free for the rest.
        self._wake()
        return batch

    def _leave_cancelled(self, reference: weakref.ref[Task], future: Future[Any]) -> None:
        """The callback of a future: what its caller cancelled does not wait any more."""
        task = reference()
        if task is not None and future.cancelled():
            with self._lock:
                self._waiting.leave(task, None)
                self._wake()
            self._deliver()

    def _deliver(self) -> None:
        """Set the futures of tasks that are done; called without the lock."""
        while self._waiting.done:
            try:
                task = self._waiting.done.popleft()
            # Another thread was faster.
            except IndexError:
                return
            task.complete()


def _wait(condition: threading.Condition, until: float) -> None:
    condition.wait(None if until == math.inf else max(until - time.monotonic(), 0.0))


def _stacked(batch: list[Item]) -> NDArray[np.uint8]:
    """The images of a batch, uint8 [N, 256, 256, 3]."""
    squares = [item.square for item in batch if item.square is not None]
    return squares[0][None] if len(squares) == 1 else np.stack(squares)
