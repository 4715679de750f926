"""The process that runs the engine of one replica, seen from the pool's side of the pipes."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import AlexDeployError, DeviceError
from alexdeploy.engines.base import Predictions
from alexdeploy.placement.child import Child, Failure
from alexdeploy.placement.devices import environment_for
from alexdeploy.placement.frames import Answer, Batch, Job, Ready, Reply, read_frame, write_frame
from alexdeploy.placement.plan import Replica

DOCTOR = "Run: alexdeploy doctor"
_END_SECONDS = 10.0
_TAKE_SECONDS = 0.5
"""How long a process that should end may take to read the batch that is being sent to it."""


class ReplicaLostError(DeviceError):
    """A replica died, or was killed because it did not answer."""


class RunStoppedError(DeviceError):
    """The run was stopped because its answer is no longer needed."""


class ReplicaProcess:
    """One process of a replica, from start to end. `num_free` is the number of idle streams.

    `was_late`: it was killed because an answer was overdue; `was_stopped`: because its answers are no longer needed.
    """

    def __init__(self, job: Job, replica: Replica) -> None:
        self.num_free = 0
        self.num_failures = 0
        self.was_late = False
        self.was_stopped = False
        self._device = replica.device
        self._process = Child("alexdeploy.placement.worker", environment_for(replica.device), str(replica.device))
        self._requests, self._answers = self._process.requests, self._process.answers
        self._job = job
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, queue.SimpleQueue[Predictions | AlexDeployError]] | None = {}
        self._ended_because: str | None = None

    def open(self, seconds: float) -> Ready | AlexDeployError:
        """Send the job and wait for the engine."""
        frame = None
        # ValueError: another thread closed the pipe because the pool is closing.
        with self._time_limit(seconds, "did not open"), contextlib.suppress(OSError, ValueError):
            write_frame(self._requests, self._job)
            frame = read_frame(self._answers, Reply)
        header = None if frame is None else frame[0]
        if isinstance(header, Ready):
            return header
        if isinstance(header, Failure):
            self._clear_away()
            return header.error()
        return DeviceError(f"{self._device} could not be opened: {self._clear_away()}", hint=DOCTOR)

    def run(self, images: NDArray[np.uint8], seconds: float, *, low_latency: bool = False) -> Predictions:
        reply: queue.SimpleQueue[Predictions | AlexDeployError] = queue.SimpleQueue()
        with self._lock:
            if self._pending is None:
                raise ReplicaLostError(f"{self._device} was lost")
            number = next(self._numbers)
            self._pending[number] = reply
        header = Batch(number=number, num_images=len(images), low_latency=low_latency)
        # A hanging process does not read either, so the time limit includes writing.
        with self._time_limit(seconds, "gave no answer"):
            with contextlib.suppress(OSError, ValueError), self._write_lock:
                # If the pipe is broken, the listening thread finds out why and answers.
                write_frame(self._requests, header, images)
            found = reply.get()
        if isinstance(found, AlexDeployError):
            raise found
        return found

    def listen(self) -> str:
        """Deliver answers until the process ends; return why it ended."""
        while (frame := read_frame(self._answers, Reply)) is not None:
            header, payload = frame
            if not isinstance(header, (Answer, Failure)) or header.number is None:
                # The engine failed to close, after all answers.
                continue
            with self._lock:
                reply = None if self._pending is None else self._pending.pop(header.number, None)
            if reply is not None:
                reply.put(_predictions(header, payload) if isinstance(header, Answer) else header.error())
        return self._clear_away()

    def fail_pending(self, reason: str) -> None:
        with self._lock:
            pending, self._pending = self._pending or {}, None
        kind = RunStoppedError if self.was_stopped else ReplicaLostError
        for reply in pending.values():
            reply.put(kind(f"{self._device} was lost: {reason}"))

    @property
    def is_ending(self) -> bool:
        """Whether the process is ending and takes no more batches."""
        return self._ended_because is not None

    def finish(self) -> None:
        """Send no more batches. The process then exits, or is killed if it does not read the batch being sent."""
        if not self._write_lock.acquire(timeout=_TAKE_SECONDS):
            self.end("closed")
            return
        try:
            with contextlib.suppress(OSError, ValueError):
                self._requests.close()
        finally:
            self._write_lock.release()

    def stop(self) -> None:
        """Kill the process now if it is running a batch; the answer is no longer needed."""
        with self._lock:
            is_busy = bool(self._pending)
        if is_busy:
            self.was_stopped = True
            self.end("the run was stopped")

    def end(self, reason: str) -> None:
        """Kill the process now."""
        self._ended_because = self._ended_because or reason
        self._process.kill()

    def _time_limit(self, seconds: float, failure: str) -> contextlib.AbstractContextManager[None]:
        """Kill the process unless the block ends within `seconds`; `failure` is for the error message."""

        def end() -> None:
            self.was_late = True
            self.end(f"it {failure} in {seconds:g} s")

        return self._process.time_limit(seconds, end)

    def _clear_away(self) -> str:
        """Wait for the process to end and close the pipes; return why it ended."""
        ended = self._process.close(_END_SECONDS)
        return self._ended_because or self._process.with_last_words(ended)


def _predictions(header: Answer, payload: bytes) -> Predictions:
    size = header.num_images * header.num_classes
    probabilities = np.frombuffer(payload, np.float32, size).reshape(header.num_images, header.num_classes)
    view_classes = np.frombuffer(payload, np.int32, offset=4 * size).reshape(header.num_images, header.num_views)
    return Predictions(probabilities, view_classes)
