"""The process that runs the engine of one replica, seen from the pool's side of the pipes."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core import errors
from alexdeploy.core.errors import AlexDeployError, DeviceError
from alexdeploy.engines.base import Predictions
from alexdeploy.placement.frames import Answer, Batch, Failure, Job, Ready, read_frame, write_frame
from alexdeploy.placement.plan import Replica

DOCTOR = "Look at: alexdeploy doctor"
_END_SECONDS = 10.0


class ReplicaLostError(DeviceError):
    """A replica died, or was ended because it did not answer."""


class ReplicaProcess:
    """One process of a replica, from its start to its end. `num_free` streams wait for a batch."""

    def __init__(self, job: Job, replica: Replica) -> None:
        self.num_free = 0
        self.num_failures = 0
        self._device = replica.device
        environment = dict(os.environ)
        if replica.device.kind == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = replica.device.uuid
        self._process = subprocess.Popen(
            [sys.executable, "-m", "alexdeploy.placement.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            # Ctrl-C is for this process, which then closes the pipes.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._job = job
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, queue.SimpleQueue[Predictions | AlexDeployError]] | None = {}
        self._ended_because: str | None = None
        self._last_words: deque[str] = deque(maxlen=5)
        self._listener = threading.Thread(target=self._read_stderr, daemon=True)
        self._listener.start()

    def open(self, seconds: float) -> Ready | AlexDeployError:
        """Send the job and wait for the engine."""
        timer = threading.Timer(seconds, self.end, (f"it did not open in {seconds:g} s",))
        timer.start()
        try:
            write_frame(self._requests, self._job)
            frame = read_frame(self._answers)
        # ValueError: the pipe was closed by another thread, because the pool closes.
        except (OSError, ValueError):
            frame = None
        finally:
            timer.cancel()
        header = None if frame is None else frame[0]
        if isinstance(header, Ready):
            return header
        if isinstance(header, Failure):
            self._clear_away()
            return _exception(header)
        return DeviceError(f"{self._device} could not be opened: {self._clear_away()}", cure=DOCTOR)

    def run(self, images: NDArray[np.uint8], seconds: float) -> Predictions:
        reply: queue.SimpleQueue[Predictions | AlexDeployError] = queue.SimpleQueue()
        with self._lock:
            if self._pending is None:
                raise ReplicaLostError(f"{self._device} was lost")
            number = next(self._numbers)
            self._pending[number] = reply
        # A process that stands still does not read either: the deadline is for writing as well.
        timer = threading.Timer(seconds, self.end, (f"it gave no answer in {seconds:g} s",))
        timer.start()
        try:
            with contextlib.suppress(OSError, ValueError), self._write_lock:
                # If the pipe is broken, whoever listens finds out why and answers.
                write_frame(self._requests, Batch(number=number, num_images=len(images)), images)
            found = reply.get()
        finally:
            timer.cancel()
        if isinstance(found, AlexDeployError):
            raise found
        return found

    def listen(self) -> str:
        """Hand out answers until the process ends; why it ended."""
        while (frame := read_frame(self._answers)) is not None:
            header, payload = frame
            if not isinstance(header, (Answer, Failure)) or header.number is None:
                # The engine failed to close, after all answers.
                continue
            with self._lock:
                reply = None if self._pending is None else self._pending.pop(header.number, None)
            if reply is not None:
                reply.put(_predictions(header, payload) if isinstance(header, Answer) else _exception(header))
        return self._clear_away()

    def fail_pending(self, reason: str) -> None:
        with self._lock:
            pending, self._pending = self._pending or {}, None
        for reply in pending.values():
            reply.put(ReplicaLostError(f"{self._device} was lost: {reason}"))

    @property
    def is_ending(self) -> bool:
        """Whether it is being ended: it takes no more batches."""
        return self._ended_because is not None

    def finish(self) -> None:
        """No more batches: it ends by itself."""
        with contextlib.suppress(OSError, ValueError):
            self._requests.close()

    def end(self, reason: str) -> None:
        """End it now."""
        self._ended_because = self._ended_because or reason
        self._process.kill()

    def _clear_away(self) -> str:
        """Wait for its end and close the pipes; why it ended."""
        try:
            code = self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            # It has said its last word and does not go, as CUDA may do when it is torn down.
            self._process.kill()
            code = self._process.wait()
        self._listener.join(timeout=1)
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError, ValueError):
                pipe.close()
        if self._ended_because is not None:
            return self._ended_because
        ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{ended}: {self._last_words[-1]}" if self._last_words else ended

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last_words.append(text)
            if "ALEXDEPLOY_DEBUG" in os.environ:
                print(f"{self._device}: {text}", file=sys.stderr)
        self._process.stderr.close()


def _predictions(header: Answer, payload: bytes) -> Predictions:
    size = header.num_images * header.num_classes
    probabilities = np.frombuffer(payload, np.float32, size).reshape(header.num_images, header.num_classes)
    view_classes = np.frombuffer(payload, np.int32, offset=4 * size).reshape(header.num_images, header.num_views)
    return Predictions(probabilities, view_classes)


def _exception(failure: Failure) -> AlexDeployError:
    kind = getattr(errors, failure.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, AlexDeployError)):
        kind = DeviceError
    return kind(failure.message, cure=failure.cure)
