"""Many replicas as one engine: each in a process of its own, fed from one side and answering in any order."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.engines.base import EngineInfo, Predictions, check_images
from alexdeploy.placement.plan import Replica
from alexdeploy.placement.replica import DOCTOR, Member, PoolOptions, ReplicaProcess, ReplicaReport


class Pool:
    """An engine made of replicas, with as many streams as all of them have.

    A batch goes to the replica with the most free streams. One whose replica is lost goes to another, and the replica
    is started again; a batch that is out of memory is halved; one that fails twice is halved until the image that it
    fails on is alone, which then has an error instead of an answer.
    """

    def __init__(self, folder: ModelFolder, replicas: Sequence[Replica], options: PoolOptions) -> None:
        if not replicas:
            raise UsageError("a pool takes at least one replica")
        self._options = options
        self._changed = threading.Condition()
        self._members = [Member(folder, replica, options, self._changed) for replica in replicas]
        self._most_images = max(replica.batch_size for replica in replicas)
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise DeviceError("the pool is not open", cure="Use it in a with statement.")
        return self._info

    def __enter__(self) -> Pool:
        try:
            for member in self._members:
                member.start()
            ready = [member.wait_until_open().info for member in self._members]
        except BaseException:
            self._close()
            raise
        first = ready[0]
        if any((each.artifact, each.classes) != (first.artifact, first.classes) for each in ready):
            backends = {each.backend for each in ready}
            # Engines of one graph for several kinds of GPU have a hash each; another graph is another model.
            if len(backends) == 1 and backends != {"tensorrt"}:
                self._close()
                raise ModelError("the model changed while its replicas were opened", cure="Run the command again.")
        self._info = EngineInfo(
            backend="+".join(dict.fromkeys(each.backend for each in ready)),
            device=",".join(str(member.replica.device) for member in self._members),
            precision=first.precision,
            num_views=first.num_views,
            classes=first.classes,
            artifact=first.artifact,
            batch_size=self._most_images,
            num_streams=sum(each.num_streams for each in ready),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows; `errors` names those that no replica could answer."""
        check_images(images, self.info.batch_size)
        return self._run(images, 0)

    def reports(self) -> tuple[ReplicaReport, ...]:
        """What each replica has done so far."""
        with self._changed:
            return tuple(member.report() for member in self._members)

    def _run(self, images: NDArray[np.uint8], num_failures: int) -> Predictions:
        try:
            if len(images) > self._most_images:
                return self._halved(images, num_failures)
            return self._run_once(images)
        except DeviceMemoryError:
            if len(images) == 1:
                raise
            with self._changed:
                self._most_images = min(self._most_images, len(images) // 2)
            return self._halved(images, num_failures)
        except _NobodyLeftError:
            raise
        except DeviceError as exc:
            # Once may be the device's fault; twice is the batch's.
            if num_failures == 0:
                return self._run(images, 1)
            if len(images) == 1:
                return self._refused(str(exc.message))
            return self._halved(images, 1)

    def _halved(self, images: NDArray[np.uint8], num_failures: int) -> Predictions:
        middle = (len(images) + 1) // 2
        first, second = self._run(images[:middle], num_failures), self._run(images[middle:], num_failures)
        return Predictions(
            np.concatenate([first.probabilities, second.probabilities]),
            np.concatenate([first.view_classes, second.view_classes]),
            {**first.errors, **{middle + row: message for row, message in second.errors.items()}},
        )

    def _refused(self, message: str) -> Predictions:
        num_classes, num_views = len(self.info.classes), self.info.num_views
        return Predictions(
            np.zeros((1, num_classes), np.float32), np.zeros((1, num_views), np.int32), {0: f"no answer: {message}"}
        )

    def _run_once(self, images: NDArray[np.uint8]) -> Predictions:
        member, life = self._acquire()
        return member.run(life, images)

    def _acquire(self) -> tuple[Member, ReplicaProcess]:
        """The replica with the most free streams, when there is one. Raises DeviceError when all are lost for good."""
        with self._changed:
            while True:
                free = [member for member in self._members if member.num_free > 0]
                if free:
                    member = max(free, key=lambda member: member.num_free)
                    return member, member.take()
                if all(member.has_given_up for member in self._members):
                    losses = "; ".join(f"{member.replica.device}: {member.last_loss}" for member in self._members)
                    raise _NobodyLeftError(f"every replica is lost: {losses}", cure=DOCTOR)
                self._changed.wait()

    def _close(self) -> None:
        with self._changed:
            for member in self._members:
                member.close()
        for member in self._members:
            member.join()


class _NobodyLeftError(DeviceError):
    """Raised through all retries."""
