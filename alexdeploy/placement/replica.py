"""One replica of a pool: the thread that starts its process, and restarts it when it is lost."""

from __future__ import annotations

import os
import queue
import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, first_line
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import Predictions, join_predictions
from alexdeploy.placement.frames import Job, Ready
from alexdeploy.placement.plan import Replica
from alexdeploy.placement.process import DOCTOR, ReplicaLostError, ReplicaProcess, RunStoppedError

CLOSE_SECONDS = 10.0
_MOST_FAILURES = 3
"""Consecutive batches on which a replica may fail before it is restarted, as if it had died."""

_MOST_LATE = 3
"""Consecutive times that a replica may be killed for a late answer before it is given up."""

_MOST_PATIENCE = 8

_CROPS = 480
"""Crops (images times views) for `TimeLimits.batch_seconds`; AlexNet runs four crops a second on very slow CPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeLimits:
    """A replica that does not answer a batch in time, or does not open within `open_seconds`, is killed.

    `batch_seconds` is the limit for a batch of up to 480 crops; larger batches get proportionally more.
    """

    batch_seconds: float = 120.0
    open_seconds: float = 900.0

    def seconds_for(self, num_crops: int) -> float:
        """The time limit of a batch with `num_crops` views in total."""
        return self.batch_seconds * max(1.0, num_crops / _CROPS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaReport:
    """Statistics of one replica. `busy_seconds` is the sum over its streams; `num_losses` how often it was lost."""

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


class ReplicaSupervisor:
    """One replica: a thread that starts its process, reads the answers, and restarts it when it is lost.

    All mutable state is accessed under `changed`, which all supervisors of a pool share.
    """

    def __init__(self, folder: ModelFolder, replica: Replica, limits: TimeLimits, changed: threading.Condition) -> None:
        self.replica = replica
        self._limits = limits
        self._job = Job(
            folder=os.fsencode(os.path.abspath(folder.path)), backend=replica.backend, options=replica.options
        )
        self._thread = threading.Thread(target=self._supervise, name=f"alexdeploy-{replica.device}", daemon=True)
        self._opened: queue.SimpleQueue[Ready | AlexDeployError] = queue.SimpleQueue()
        # Each step of halving a batch down to the image that kills the process costs one loss.
        self._most_losses = 3 + replica.options.batch_size.bit_length()
        self._changed = changed
        self._process: ReplicaProcess | None = None
        self._most_images = replica.options.batch_size
        # Doubled after each late answer: the replica may be slow, not hanging.
        self._patience = 1
        self._is_closing = False
        self.has_given_up = False
        self.last_loss: str | None = None
        self._num_streams = self._num_losses = self._num_images = self._num_batches = 0
        self._busy_seconds = self._open_seconds = 0.0

    @property
    def num_free(self) -> int:
        return 0 if self._process is None or self._process.is_ending else self._process.num_free

    def start(self) -> None:
        self._thread.start()

    def wait_until_open(self) -> Ready:
        """Raises the error that prevented it from opening."""
        opened = self._opened.get()
        if isinstance(opened, AlexDeployError):
            raise opened
        return opened

    def take(self) -> ReplicaProcess:
        """Reserve one of its free streams; called under `changed`."""
        assert self._process is not None
        self._process.num_free -= 1
        return self._process

    def run(self, process: ReplicaProcess, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """Run a batch on a reserved stream, and release the stream. Raises the engine's error, or ReplicaLostError."""
        began = time.monotonic()
        try:
            found = self._run_in_parts(process, images, low_latency)
        except (ReplicaLostError, RunStoppedError):
            raise
        except DeviceError as exc:
            process.num_failures += 1
            if process.num_failures >= _MOST_FAILURES:
                process.end(f"it failed {process.num_failures} times in a row: {exc.message}")
            raise
        finally:
            with self._changed:
                process.num_free += 1
                self._busy_seconds += time.monotonic() - began
                self._changed.notify_all()
        process.num_failures = 0
        with self._changed:
            self._num_batches += 1
            self._num_images += len(images)
        return found

    def _run_in_parts(self, process: ReplicaProcess, images: NDArray[np.uint8], low_latency: bool) -> Predictions:
        """Run as many images at a time as the replica was opened for, fewer after its device ran out of memory."""
        parts: list[Predictions] = []
        start = 0
        while start < len(images):
            size = min(self._most_images, len(images) - start)
            try:
                seconds = self._limits.seconds_for(size * self.replica.options.num_views) * self._patience
                parts.append(process.run(images[start : start + size], seconds, low_latency=low_latency))
            except DeviceMemoryError:
                if size == 1:
                    raise
                self._most_images = size // 2
            else:
                start += size
        return join_predictions(parts)

    def cancel(self) -> None:
        """Kill the process if it is running a batch; called under `changed`."""
        if self._process is not None:
            self._process.stop()

    def close(self) -> None:
        """Let the process end after its current batches; kill it if it is still opening."""
        with self._changed:
            self._is_closing = True
            process, is_open = self._process, self._num_streams > 0
        if process is None:
            return
        if is_open:
            process.finish()
        else:
            process.end("closed")

    def join(self, deadline: float) -> None:
        """Wait for the process to end, and kill it at `deadline`, a time of the monotonic clock."""
        if self._thread.ident is None:
            return
        self._thread.join(timeout=max(0.0, deadline - time.monotonic()))
        with self._changed:
            process = self._process
        if process is not None:
            process.end("closed")
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
        """Run one process after the other; no caller is left waiting after any error."""
        try:
            self._live()
        # BaseException: however this thread ends, other threads must not be left waiting.
        except BaseException as exc:
            with self._changed:
                process, self._process = self._process, None
                self.has_given_up, self.last_loss = True, f"{type(exc).__name__}: {first_line(exc)}"
                self._changed.notify_all()
            if process is not None:
                process.end(str(self.last_loss))
                process.fail_pending(str(self.last_loss))
            self._opened.put(DeviceError(f"{self.replica.device}: {self.last_loss}", hint=DOCTOR))

    def _live(self) -> None:
        """Restart the process until the pool closes, too many end without an answer, or the model has changed."""
        losses_in_a_row = late_in_a_row = 0
        first: Ready | None = None
        while not (self.has_given_up or self._is_closing):
            num_batches = self._num_batches
            began = time.monotonic()
            process = ReplicaProcess(self._job, self.replica)
            with self._changed:
                self._process = process
            opened = process.open(self._limits.open_seconds)
            with self._changed:
                if isinstance(opened, Ready):
                    self._num_streams = opened.info.num_streams
                    process.num_free = self._num_streams if first in (None, opened) else 0
                    self._open_seconds = time.monotonic() - began
                    if self._is_closing:
                        process.finish()
                    self._changed.notify_all()
            is_other = first is not None and isinstance(opened, Ready) and opened != first
            if first is None:
                self._opened.put(opened)
                first = opened if isinstance(opened, Ready) else None
            if is_other:
                process.end("the model has changed since the run began")
            reason = process.listen() if isinstance(opened, Ready) else opened.message
            with self._changed:
                self._process = None
                if self._num_batches > num_batches:
                    losses_in_a_row = late_in_a_row = 0
                if not (self._is_closing or process.was_stopped):
                    self._num_losses += 1
                    self.last_loss = reason
                    losses_in_a_row += 1
                if process.was_late:
                    late_in_a_row += 1
                    self._patience = min(2 * self._patience, _MOST_PATIENCE)
                is_hopeless = losses_in_a_row >= self._most_losses or late_in_a_row >= _MOST_LATE
                # A replica that never opened will not open the next time.
                self.has_given_up = self._is_closing or first is None or is_other or is_hopeless
                self._changed.notify_all()
            process.fail_pending(reason)
