"""Several replicas as one engine, each in its own process. Batches may finish in any order."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError, ModelError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import IMAGE_SIZE, Precision, graph_precision
from alexdeploy.engines.base import ENGINE_BACKENDS, EngineInfo, Predictions, check_images, join_predictions
from alexdeploy.placement.devices import Device
from alexdeploy.placement.plan import Replica
from alexdeploy.placement.process import DOCTOR, ReplicaLostError, ReplicaProcess, RunStoppedError
from alexdeploy.placement.replica import CLOSE_SECONDS, ReplicaReport, ReplicaSupervisor, TimeLimits

_HURRY_SECONDS = 0.5
"""How long replicas may take to end after an error or Ctrl-C."""


class Pool:
    """An engine made of replicas, with the sum of their streams.

    A batch goes to the replica with the most free streams. A batch that fails, or whose replica is lost, is retried
    on another. A replica that is lost, or fails repeatedly, is restarted. A replica that runs out of memory gets
    fewer images at a time; this does not help OpenVINO, which always computes the number of images that it was opened
    for. A batch that fails twice is halved until the failing image is alone. That image gets an error instead of an
    answer if a black image succeeds.
    """

    def __init__(self, folder: ModelFolder, replicas: Sequence[Replica], limits: TimeLimits | None = None) -> None:
        self._changed = threading.Condition()
        self._folder, self._precision = folder, replicas[0].options.precision
        limits = limits or TimeLimits()
        self._supervisors = [ReplicaSupervisor(folder, replica, limits, self._changed) for replica in replicas]
        self._info: EngineInfo | None = None
        self._num_cancels = 0
        self._opened: OpenedHere | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise DeviceError("the pool is not open", hint="Open it in a with statement.")
        return self._info

    def __enter__(self) -> Pool:
        self._opened = OpenedHere(self)
        try:
            before = file_identities(self._folder, self._precision)
            for supervisor in self._supervisors:
                supervisor.start()
            ready = [supervisor.wait_until_open().info for supervisor in self._supervisors]
            if file_identities(self._folder, self._precision) != before:
                raise ModelError("the model changed while its replicas opened", hint="Run the command again.")
            self._info = join_infos([supervisor.replica.device for supervisor in self._supervisors], ready)
        except BaseException:
            self._close(_HURRY_SECONDS)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The replicas are children of the process that opened the pool.
        if self._opened is None or not self._opened.is_fork:
            self._close(CLOSE_SECONDS if kind is None else _HURRY_SECONDS)

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows; `errors` has the rows that no replica could answer."""
        if self._opened is not None:
            self._opened.check("pool")
        check_images(images, self.info.batch_size)
        return self._run(images, 0, low_latency=low_latency)

    def cancel(self) -> None:
        """Make all running calls of `run` raise DeviceError; replicas that are computing are restarted.

        Repeat it until they have ended: a call that is about to send its batch continues. The pool remains usable.
        """
        with self._changed:
            self._num_cancels += 1
            for supervisor in self._supervisors:
                supervisor.cancel()
            self._changed.notify_all()

    @property
    def failure(self) -> str | None:
        """Why no replica will answer any more; None as long as one may."""
        if not all(supervisor.has_given_up for supervisor in self._supervisors):
            return None
        losses = (f"{each.replica.device}: {each.last_loss or 'closed'}" for each in self._supervisors)
        return f"all replicas failed: {'; '.join(losses)}"

    def reports(self) -> tuple[ReplicaReport, ...]:
        """The statistics of each replica so far."""
        with self._changed:
            return tuple(supervisor.report() for supervisor in self._supervisors)

    def _run(
        self,
        images: NDArray[np.uint8],
        num_failures: int,
        avoid: ReplicaSupervisor | None = None,
        *,
        low_latency: bool = False,
    ) -> Predictions:
        supervisor, process = self._acquire(avoid)
        try:
            return supervisor.run(process, images, low_latency=low_latency)
        except RunStoppedError:
            raise
        except DeviceError as exc:
            # One failure may be the device's, so try another; two are the batch's.
            if num_failures == 0:
                return self._run(images, 1, supervisor, low_latency=low_latency)
            if len(images) > 1:
                return self._halved(images, supervisor)
            self._check_health(exc)
            return self._refused(exc.message)

    def _halved(self, images: NDArray[np.uint8], avoid: ReplicaSupervisor) -> Predictions:
        middle = (len(images) + 1) // 2
        return join_predictions([self._run(images[:middle], 1, avoid), self._run(images[middle:], 1, avoid)])

    def _check_health(self, exc: DeviceError) -> None:
        """Raise `exc` if a black image fails too: then the image is not the cause."""
        while True:
            supervisor, process = self._acquire(None)
            try:
                supervisor.run(process, np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
            except RunStoppedError:
                raise
            except ReplicaLostError:
                # The replica is restarted until it is given up.
                continue
            except DeviceError:
                raise exc from None
            return

    def _refused(self, message: str) -> Predictions:
        num_views = self.info.num_views if self.info.layer is None else 0
        outputs = np.zeros((1, self.info.num_outputs), np.float32)
        return Predictions(outputs, np.zeros((1, num_views), np.int32), {0: message})

    def _acquire(self, avoid: ReplicaSupervisor | None) -> tuple[ReplicaSupervisor, ReplicaProcess]:
        """Wait for the replica with the most free streams, if possible another than `avoid`.

        Raises DeviceError if all replicas are permanently lost, or if the call is cancelled.
        """
        with self._changed:
            num_cancels = self._num_cancels
            while True:
                if self._num_cancels != num_cancels:
                    raise RunStoppedError("the run was stopped")
                if (failure := self.failure) is not None:
                    raise DeviceError(failure, hint=DOCTOR)
                living = [supervisor for supervisor in self._supervisors if not supervisor.has_given_up]
                others = [supervisor for supervisor in living if supervisor is not avoid] or living
                free = [supervisor for supervisor in others if supervisor.num_free > 0]
                if free:
                    supervisor = max(free, key=lambda supervisor: supervisor.num_free)
                    return supervisor, supervisor.take()
                self._changed.wait()

    def _close(self, seconds: float) -> None:
        for supervisor in self._supervisors:
            supervisor.close()
        deadline = time.monotonic() + seconds
        for supervisor in self._supervisors:
            supervisor.join(deadline)


def join_infos(devices: Sequence[Device], infos: Sequence[EngineInfo]) -> EngineInfo:
    """Combine the infos of replicas. Raises ModelError unless they run the same network.

    Only engine files are specific to a GPU: replicas of any other backend have the same artifact.
    """
    contents = {(each.precision, each.num_views, each.classes, each.layer) for each in infos}
    portable = {(each.backend, each.artifact) for each in infos if each.backend not in ENGINE_BACKENDS}
    if len(contents) > 1 or len(portable) > len({backend for backend, _ in portable}):
        raise ModelError("the replicas opened different models", hint="Run the command again.")
    first = infos[0]
    return EngineInfo(
        backend="+".join(dict.fromkeys(each.backend for each in infos)),
        device=",".join(map(str, devices)),
        precision=first.precision,
        num_views=first.num_views,
        classes=first.classes,
        artifact="+".join(dict.fromkeys(each.artifact for each in infos)),
        batch_size=max(each.batch_size for each in infos),
        num_streams=sum(each.num_streams for each in infos),
        layer=first.layer,
        feature_shape=first.feature_shape,
    )


def file_identities(folder: ModelFolder, precision: Precision) -> list[tuple[int, int, int] | None]:
    """Identities of the files that engines are made from or compared with, to detect a replaced file."""
    found: list[tuple[int, int, int] | None] = []
    for path in (folder.spec_path, folder.weights_path, folder.mean_path, folder.onnx_path(graph_precision(precision))):
        try:
            facts = path.stat()
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns))
        except OSError:
            found.append(None)
    return found
