"""Images of many callers in common batches: some threads decode, one thread for each of the engine's streams runs."""

from __future__ import annotations

import copy
import heapq
import itertools
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import Count, NotNegative, check_fields
from alexdeploy.core.errors import AlexDeployError, ImageError, UsageError
from alexdeploy.core.errors import DeadlineError as DeadlineError
from alexdeploy.core.errors import QueueFullError as QueueFullError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import Engine, Predictions, copied
from alexdeploy.images.decode import ResizePolicy
from alexdeploy.images.from_memory import Input, check_input, read_square
from alexdeploy.inference.admission import Admission
from alexdeploy.inference.fair_queue import FairQueue
from alexdeploy.inference.job import Item, Task
from alexdeploy.inference.job import Job as Job
from alexdeploy.inference.job import JobTimes as JobTimes
from alexdeploy.inference.pipeline import Outcome as Outcome
from alexdeploy.inference.pipeline import check_memory, make_outcome, window_size

_PATIENCE_SECONDS = 1.0
"""How long batches whose results nobody waits for may keep running."""

_DECODE_PATIENCE_SECONDS = 0.25

_EARLY_SECONDS = 1e-4
"""A thread that waits for a time is not woken for another that is sooner by less than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatcherOptions:
    """Raises UsageError for an invalid value.

    An image waits at most `max_delay_ms` for others to be submitted while a stream of the engine is free, and for those
    that are being decoded at most as long as a full batch takes. `max_queue` is the largest number of images that wait,
    for decoding or for the engine; None: no limit. `num_decoders` is a number of threads.
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
        self._batch_size = info.batch_size
        self._max_delay = options.max_delay_ms / 1000
        self._window = window_size(info.batch_size, info.num_streams, options.num_decoders)
        self._opened = OpenedHere(self)

        # All of the following is read and written under the lock, except for `_done`.
        self._lock = threading.Lock()
        self._can_decode = threading.Condition(self._lock)
        self._can_run = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._admission = Admission(options.max_queue)
        self._undecoded: FairQueue[Item] = FairQueue()
        self._ready: FairQueue[Item] = FairQueue()
        # The time by which the oldest images in `_ready` were submitted.
        self._ready_since = 0.0
        self._num_decoding = self._num_held = self._num_running = self._num_free = 0
        self._tasks: set[Task] = set()
        # When a waiting runner looks again by itself.
        self._looks_at = math.inf
        self._seconds_per_image = 0.0
        self._deadlines: list[tuple[float, int, weakref.ref[Task]]] = []
        self._numbers = itertools.count()
        self._is_closing = self._is_stopped = False
        # Tasks whose futures are to be set, which is done without the lock: it runs callbacks.
        self._done: deque[Task] = deque()

        # Daemons: a program that ends without closing must not wait for them.
        self._decoders = [self._thread(self._decode_next, f"decode-{n}") for n in range(options.num_decoders)]
        self._runners = [self._thread(self._run_next, f"engine-{n}") for n in range(info.num_streams)]
        for thread in (*self._decoders, *self._runners):
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Images that were submitted and neither run nor have an outcome."""
        return self._admission.num_images

    @property
    def num_running(self) -> int:
        """Images in the engine."""
        return self._num_running

    @property
    def is_open(self) -> bool:
        """Whether it accepts jobs."""
        return not self._is_closing

    def submit(self, images: Sequence[Input], *, client: str = "", deadline: float | None = None) -> Job:
        """Queue images and return at once. Arrays must not be changed until the future is done.

        `client` is anything that names whose images they are. After `deadline`, a time of `time.monotonic()`, images
        that wait are not computed any more and the future raises DeadlineError. Raises UsageError for what is no image,
        QueueFullError if too many wait; the latter is raised by the future of a job that had to leave for another's.
        """
        self._opened.check("batcher")
        for number, image in enumerate(images):
            check_input(image, f"images[{number}]")
        task = Task(images, client, deadline, time.monotonic_ns())
        with self._lock:
            if self._is_closing:
                raise UsageError("the batcher is closed")
            self._expire()
            for displaced in self._admission.admit(task):
                self._leave(displaced, QueueFullError("the queue is full: other clients have the same right to it"))
            self._tasks.add(task)
            if task.num_left:
                self._enqueue(task)
            else:
                self._finish(task)
        self._deliver()
        reference = weakref.ref(task)
        task.future.add_done_callback(lambda future: self._leave_cancelled(reference, future))
        return task

    def close(self, *, finish: bool) -> None:
        """Accept no more jobs and end all threads. May be called again, from any thread.

        `finish`: what was accepted is answered first. Otherwise its futures are cancelled, and only batches that are
        running end.
        """
        if self._opened.is_fork:
            return
        with self._lock:
            self._is_closing = True
            self._can_run.notify_all()
            if finish:
                while self._tasks and not self._is_stopped:
                    self._all_done.wait()
            self._is_stopped = True
            unfinished = list(self._tasks)
            self._can_decode.notify_all()
            self._can_run.notify_all()
            self._all_done.notify_all()
        for task in unfinished:
            task.future.cancel()
        self._join()

    def _join(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for thread in self._runners:
            while thread.is_alive() and thread is not threading.current_thread():
                # Cancel again soon after the deadline: a thread that was about to run its batch has only then begun.
                thread.join(max(deadline - time.monotonic(), 0.1))
                if thread.is_alive():
                    self._cancel()
        deadline = time.monotonic() + _DECODE_PATIENCE_SECONDS
        for thread in self._decoders:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))

    def _thread(self, work: Callable[[], bool], name: str) -> threading.Thread:
        def loop() -> None:
            goes_on = True
            while goes_on:
                goes_on = work()
                self._deliver()

        return threading.Thread(target=loop, name=f"alexdeploy-{name}", daemon=True)

    def _enqueue(self, task: Task) -> None:
        undecoded = [item for item in task.items if item.square is None]
        if undecoded:
            self._undecoded.add(task.client, task, undecoded)
            self._can_decode.notify(len(undecoded))
        if len(undecoded) < len(task.items):
            self._make_ready(task, [item for item in task.items if item.square is not None])
        task.items.clear()
        if task.deadline is not None:
            entry = (task.deadline, next(self._numbers), weakref.ref(task))
            heapq.heappush(self._deadlines, entry)
            if self._deadlines[0] is entry:
                # The decoders watch the deadlines.
                self._can_decode.notify()

    def _make_ready(self, task: Task, items: list[Item]) -> None:
        if not self._ready:
            self._ready_since = task.submitted_ns / 1e9
        self._ready.add(task.client, task, items)
        self._wake_runner()

    def _wake_runner(self) -> None:
        """Wake a runner if one is to act before it would by itself."""
        if self._num_free and (due := self._due()) is not None and due < self._looks_at - _EARLY_SECONDS:
            self._can_run.notify()

    def _due(self) -> float | None:
        """The time from which a free stream takes what is ready; None: nothing is ready."""
        num_ready = len(self._ready)
        if not num_ready:
            return None
        num_undecoded = len(self._undecoded) + self._num_decoding
        if num_ready >= self._batch_size or (self._is_closing and not num_undecoded):
            return 0.0
        due = self._ready_since + self._max_delay
        if num_ready < self._share():
            due += self._batch_size * self._seconds_per_image
        return due

    def _share(self) -> int:
        """How many of the images that wait are for one of the free streams."""
        num_images = len(self._ready) + len(self._undecoded) + self._num_decoding
        return min(self._batch_size, -(-num_images // max(self._num_free, 1)))

    def _decode_next(self) -> bool:
        """Decode one image, or end the tasks that are late; False when the thread is to end."""
        with self._lock:
            self._expire()
            if self._is_stopped:
                return False
            if not self._undecoded or self._num_held >= self._window:
                if not self._done:
                    self._can_decode.wait(self._seconds_to_deadline())
                return True
            item = self._undecoded.pop()
            item.is_held = True
            self._num_decoding += 1
            self._num_held += 1
        task, image = item.task, item.image
        assert image is not None
        began = time.monotonic_ns()
        square: NDArray[np.uint8] | None = None
        problem: str | None = None
        error: Exception | None = None
        try:
            square = read_square(image, self._resize)
        except ImageError as exc:
            problem = exc.text
        except MemoryError:
            problem = "not enough memory"
        # A defect is an error of this job alone.
        except Exception as exc:
            error = exc
        item.square, item.image, item.decode_ns = square, None, time.monotonic_ns() - began
        del image
        with self._lock:
            self._num_decoding -= 1
            if square is None or task.is_done:
                self._release(item)
            if task.is_done:
                return True
            task.times.decode_ns += item.decode_ns
            if square is not None:
                self._make_ready(task, [item])
                return True
            task.times.queue_ns = max(task.times.queue_ns, began - task.submitted_ns)
            if error is not None:
                self._leave(task, error)
                return True
            self._admission.take(task)
            task.add(Outcome(index=item.number, source=item.name, error=problem))
            self._finish(task)
            # What is ready may have waited for this image.
            self._wake_runner()
        return True

    def _release(self, item: Item) -> None:
        """Count a decoded image as gone."""
        if item.is_held:
            item.is_held = False
            self._num_held -= 1
            if self._undecoded:
                self._can_decode.notify()

    def _run_next(self) -> bool:
        """Run one batch; False when the thread is to end."""
        with self._lock:
            batch = self._take_batch()
        if not batch:
            return batch is not None
        began = time.monotonic_ns()
        found: Predictions | None = None
        error: Exception | None = None
        try:
            found = copied(self._engine.run(_stacked(batch), low_latency=True))
        # Any error of a runtime is for those who wait for this batch; the next may succeed.
        except Exception as exc:
            error = exc
        took = time.monotonic_ns() - began
        if found is not None and self._on_batch is not None:
            self._on_batch(len(batch), took)
        with self._lock:
            self._num_running -= len(batch)
            seconds = took / 1e9 / len(batch)
            self._seconds_per_image += (seconds - self._seconds_per_image) / (4 if self._seconds_per_image else 1)
            for task in dict.fromkeys(item.task for item in batch):
                task.times.compute_ns += took
                task.times.num_batches += 1
            for number, item in enumerate(batch):
                self._release(item)
                task = item.task
                if task.is_done:
                    continue
                waited = began - task.submitted_ns - item.decode_ns
                task.times.queue_ns = max(task.times.queue_ns, waited)
                if found is None:
                    assert error is not None
                    self._leave(task, _copy(error))
                else:
                    task.add(make_outcome(item.number, item.name, found, number))
                    self._finish(task)
        return True

    def _take_batch(self) -> list[Item] | None:
        """The next batch; empty if there may be one later, None when the thread is to end."""
        self._num_free += 1
        try:
            self._expire()
            due = self._due()
            seconds = None if due is None else due - time.monotonic()
            if self._is_stopped:
                return None
            if self._done:
                return []
            if seconds is None or seconds > 0:
                self._looks_at = min(self._looks_at, math.inf if due is None else due)
                self._can_run.wait(seconds)
                self._looks_at = math.inf
                return []
            batch = [self._ready.pop() for _ in range(min(self._share(), len(self._ready)))]
        finally:
            self._num_free -= 1
        for item in batch:
            item.task.has_begun = True
            self._admission.take(item.task)
        self._num_running += len(batch)
        # Another stream may be free for the rest.
        self._wake_runner()
        return batch

    def _expire(self) -> None:
        """End the tasks whose deadline has passed, unless all of their images run already."""
        now = time.monotonic()
        while self._deadlines:
            deadline, _, reference = self._deadlines[0]
            task = reference()
            is_over = task is None or task.is_done or not task.num_waiting
            if not is_over and deadline > now:
                return
            heapq.heappop(self._deadlines)
            if task is not None and not is_over:
                seconds = deadline - task.submitted_ns / 1e9
                self._leave(task, DeadlineError(f"no answer within {seconds:.3g} s: it was not computed"))

    def _seconds_to_deadline(self) -> float | None:
        return max(self._deadlines[0][0] - time.monotonic(), 0.0) if self._deadlines else None

    def _leave_cancelled(self, reference: weakref.ref[Task], future: Future[Any]) -> None:
        """The callback of a future: what its caller cancelled does not wait any more."""
        task = reference()
        if task is not None and future.cancelled():
            with self._lock:
                self._leave(task, None)
            self._deliver()

    def _leave(self, task: Task, error: Exception | None) -> None:
        """End a task with an error, or because its future was cancelled; running images of it are for nobody."""
        if task.is_done:
            return
        self._undecoded.remove(task.client, task)
        for item in self._ready.remove(task.client, task):
            self._release(item)
        self._admission.leave(task)
        task.error = error
        self._end(task)
        self._wake_runner()

    def _finish(self, task: Task) -> None:
        """End a task if it has all outcomes."""
        if not task.num_left:
            self._end(task)

    def _end(self, task: Task) -> None:
        task.is_done = True
        self._done.append(task)
        self._tasks.remove(task)
        if not self._tasks:
            self._all_done.notify_all()

    def _deliver(self) -> None:
        """Set the futures of tasks that are done."""
        while self._done:
            try:
                task = self._done.popleft()
            except IndexError:
                return
            task.complete()


def _stacked(batch: list[Item]) -> NDArray[np.uint8]:
    """The images of a batch, uint8 [N, 256, 256, 3]."""
    squares = [item.square for item in batch if item.square is not None]
    if len(squares) == 1:
        return squares[0][None]
    images: NDArray[np.uint8] = np.empty((len(squares), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    return np.stack(squares, out=images)


def _copy(error: Exception) -> Exception:
    """An exception for one of several threads, each of which adds its own traceback."""
    if not isinstance(error, AlexDeployError):
        return error
    own = copy.copy(error)
    own.__cause__ = error
    return own
