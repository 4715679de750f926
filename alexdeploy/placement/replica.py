"""One replica of a pool: the process that runs its engine, and the thread that starts it again when it is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core import errors
from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, first_line
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import NumViews, Predictions
from alexdeploy.placement.frames import Answer, Batch, Failure, Job, Ready, read_frame, write_frame
from alexdeploy.placement.plan import Replica

DOCTOR = "Look at: alexdeploy doctor"
CLOSE_SECONDS = 10.0
_END_SECONDS = 10.0
_MOST_FAILURES = 3
"""Batches that a replica may fail on in a row, with no answer between: then it is started again, as if it had died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolOptions:
    """A replica that does not answer a batch in `batch_seconds`, or does not open in `open_seconds`, is ended."""

    precision: Precision = "fp32"
    num_views: NumViews = 1
    batch_seconds: float = 120.0
    open_seconds: float = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaReport:
    """What one replica did. `busy_seconds` of all its streams together; `num_losses` counts how often it was lost."""

    device: str
    name: str
    backend: str
    num_streams: int
    num_images: int
    num_batches: int
    busy_seconds: float
    open_seconds: float
    num_losses: int
    last_loss: str | None


class ReplicaLostError(DeviceError):
    """A replica died, or was ended because it did not answer."""


class Member:
    """One replica: a thread that starts its process, reads what it answers, and starts it again when it is lost.

    Everything but constants is read and written under `changed`, which all members of a pool share.
    """

    def __init__(
        self, folder: ModelFolder, replica: Replica, options: PoolOptions, changed: threading.Condition
    ) -> None:
        self.replica = replica
        self._options = options
        self._job = Job(
            folder=os.path.abspath(folder.path),
            backend=replica.backend,
            precision=options.precision,
            num_views=options.num_views,
            batch_size=replica.batch_size,
            num_threads=replica.num_threads,
            # A worker sees one GPU only, its own.
            device="cpu" if replica.device.kind == "cpu" else "cuda:0",
        )
        self._thread = threading.Thread(target=self._supervise, name=f"alexdeploy-{replica.device}", daemon=True)
        self._opened: queue.SimpleQueue[Ready | AlexDeployError] = queue.SimpleQueue()
        # Halving a batch down to the image that ends the process takes one loss for each step.
        self._most_losses = 3 + replica.batch_size.bit_length()
        self._changed = changed
        self._life: ReplicaProcess | None = None
        self._most_images = replica.batch_size
        self._is_closing = False
        self.has_given_up = False
        self.last_loss: str | None = None
        self._num_streams = self._num_losses = self._num_images = self._num_batches = 0
        self._busy_seconds = self._open_seconds = 0.0

    @property
    def num_free(self) -> int:
        return 0 if self._life is None or self._life.is_ending else self._life.num_free

    def start(self) -> None:
        self._thread.start()

    def wait_until_open(self) -> Ready:
        """Raises what kept it from opening."""
        opened = self._opened.get()
        if isinstance(opened, AlexDeployError):
            raise opened
        return opened

    def take(self) -> ReplicaProcess:
        """Take one of its free streams; called under `changed`."""
        assert self._life is not None
        self._life.num_free -= 1
        return self._life

    def run(self, life: ReplicaProcess, images: NDArray[np.uint8]) -> Predictions:
        """Run a batch on a stream that was taken, and give it back. Raises the engine's error, or ReplicaLostError."""
        began = time.monotonic()
        try:
            found = self._run_in_parts(life, images)
        except ReplicaLostError:
            raise
        except DeviceError as exc:
            life.num_failures += 1
            if life.num_failures >= _MOST_FAILURES:
                life.end(f"it failed {life.num_failures} times in a row: {exc.message}")
            raise
        finally:
            with self._changed:
                life.num_free += 1
                self._busy_seconds += time.monotonic() - began
                self._changed.notify_all()
        life.num_failures = 0
        with self._changed:
            self._num_batches += 1
            self._num_images += len(images)
        return found

    def _run_in_parts(self, life: ReplicaProcess, images: NDArray[np.uint8]) -> Predictions:
        """As many images at a time as the replica was opened for, fewer from when its device ran out of memory."""
        parts: list[Predictions] = []
        start = 0
        while start < len(images):
            size = min(self._most_images, len(images) - start)
            try:
                parts.append(life.run(images[start : start + size], self._options.batch_seconds))
            except DeviceMemoryError:
                if size == 1:
                    raise
                self._most_images = size // 2
            else:
                start += size
        return joined(parts)

    def close(self) -> None:
        """Let the process end when it has answered what it has; one that is still opening is ended."""
        with self._changed:
            self._is_closing = True
            life, is_open = self._life, self._num_streams > 0
        if life is None:
            return
        if is_open:
            life.finish()
        else:
            life.end("closed")

    def join(self, deadline: float) -> None:
        """Wait for the end of the process, and end it at `deadline`, a time of the monotonic clock."""
        if self._thread.ident is None:
            return
        self._thread.join(timeout=max(0.0, deadline - time.monotonic()))
        with self._changed:
            life = self._life
        if life is not None:
            life.end("closed")
        self._thread.join()

    def report(self) -> ReplicaReport:
        return ReplicaReport(
            device=str(self.replica.device),
            name=self.replica.device.name,
            backend=self.replica.backend,
            num_streams=self._num_streams,
            num_images=self._num_images,
            num_batches=self._num_batches,
            busy_seconds=self._busy_seconds,
            open_seconds=self._open_seconds,
            num_losses=self._num_losses,
            last_loss=self.last_loss,
        )

    def _supervise(self) -> None:
        """One life after the other; whatever goes wrong here, nobody is left waiting."""
        try:
            self._live()
        # BaseException: a thread that died of anything at all must not leave the others waiting.
        except BaseException as exc:
            with self._changed:
                life, self._life = self._life, None
                self.has_given_up, self.last_loss = True, f"{type(exc).__name__}: {first_line(exc)}"
                self._changed.notify_all()
            if life is not None:
                life.end(str(self.last_loss))
                life.fail_pending(str(self.last_loss))
            self._opened.put(DeviceError(f"{self.replica.device}: {self.last_loss}", cure=DOCTOR))

    def _live(self) -> None:
        """Start the process again until the pool closes, too many end without an answer, or the model is another."""
        losses_in_a_row = 0
        first: Ready | None = None
        while not (self.has_given_up or self._is_closing):
            num_batches = self._num_batches
            began = time.monotonic()
            life = ReplicaProcess(self._job, self.replica)
            with self._changed:
                self._life = life
            opened = life.open(self._options.open_seconds)
            with self._changed:
                if isinstance(opened, Ready):
                    self._num_streams = opened.info.num_streams
                    life.num_free = self._num_streams if first in (None, opened) else 0
                    self._open_seconds = time.monotonic() - began
                    if self._is_closing:
                        life.finish()
                    self._changed.notify_all()
            is_other = first is not None and isinstance(opened, Ready) and opened != first
            if first is None:
                self._opened.put(opened)
                first = opened if isinstance(opened, Ready) else None
            if is_other:
                life.end("the model has changed since the run began")
            reason = life.listen() if isinstance(opened, Ready) else opened.message
            with self._changed:
                self._life = None
                if not self._is_closing:
                    self._num_losses += 1
                    self.last_loss = reason
                losses_in_a_row = 1 if self._num_batches > num_batches else losses_in_a_row + 1
                # What never opened will not open the next time.
                self.has_given_up = (
                    self._is_closing or first is None or is_other or losses_in_a_row >= self._most_losses
                )
                self._changed.notify_all()
            life.fail_pending(reason)


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


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of consecutive parts of a batch as those of the whole."""
    if len(parts) == 1:
        return parts[0]
    errors_by_row: dict[int, str] = {}
    start = 0
    for part in parts:
        errors_by_row |= {start + row: message for row, message in part.errors.items()}
        start += len(part.probabilities)
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.view_classes for part in parts]),
        errors_by_row,
    )


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
