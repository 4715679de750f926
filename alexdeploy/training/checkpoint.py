"""Checkpoints: the state that a run needs to resume exactly, in one file that is written atomically."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.files import atomic_write
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import decode_json, open_regular
from alexdeploy.core.recipe import Recipe, Training, flatten
from alexdeploy.core.spec import Pooling
from alexdeploy.training.data import TrainingData
from alexdeploy.training.events import EpochRecord
from alexdeploy.training.kernels import write_kernels
from alexdeploy.training.schedule import ScheduleState
from alexdeploy.training.statistics import Statistics

# None affects what is learned up to the checkpoint; a run may be resumed with more epochs.
_FREE_KEYS = ("name", "description", "overrides", "training.epochs", "training.stop_after")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Identifies a run; `recipe` has its values by dotted key. A checkpoint can be resumed only with an equal one."""

    recipe: dict[str, Any]
    data_sha256: str
    num_train: int
    num_val: int
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class Best:
    """The epoch whose weights are in the model folder."""

    record: EpochRecord
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run: `schedule` counts the finished epochs, `step` the finished steps of the next one.

    `loss_sum` and `num_right` are sums over that epoch's images so far; None in a checkpoint of an earlier version.
    `broken` are the indices of the skipped training and
    validation images.
    """

    schedule: ScheduleState = field(default_factory=ScheduleState)
    step: int = 0
    loss_sum: float = 0.0
    num_right: int | None = None
    best: Best | None = None
    broken_train: tuple[int, ...] = ()
    broken_val: tuple[int, ...] = ()

    def is_improved_by(self, record: EpochRecord) -> bool:
        """Whether `record` has a lower top-1 error than the best, or the same and a lower loss."""
        if self.best is None:
            return True
        before = self.best.record
        return (record.val_top1_error, record.val_loss) < (before.val_top1_error, before.val_loss)

    def is_over(self, training: Training) -> bool:
        """Whether all epochs are done, or `stop_after` of them in a row were not better than the best."""
        num_epochs = self.schedule.num_epochs
        if num_epochs >= training.epochs:
            return True
        if training.stop_after is None or self.best is None:
            return False
        return num_epochs - self.best.record.epoch >= training.stop_after


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`learner` is `Learner.state()`: tensors by name."""

    identity: Identity
    progress: Progress
    statistics: Statistics
    learner: Mapping[str, Any]

    @property
    def published(self) -> Mapping[str, torch.Tensor]:
        """The weights that were evaluated: the averages, if the run has any."""
        return self.learner.get("averages", self.learner["weights"])  # type: ignore[no-any-return]


def describe_run(recipe: Recipe, data: TrainingData) -> Identity:
    values = _comparable(msgspec.to_builtins(recipe))
    if recipe.training.schedule == "cosine":
        # Each epoch's learning rate depends on the number of epochs.
        values["training.epochs"] = recipe.training.epochs
    return Identity(
        recipe=values,
        data_sha256=data.data_sha256,
        num_train=data.num_train,
        num_val=data.num_val,
        num_classes=len(data.classes),
    )


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it atomically: after a kill, this checkpoint or the previous one is there. Raises OutputError."""
    statistics = checkpoint.statistics
    content = {
        "identity": msgspec.json.encode(checkpoint.identity).decode(),
        "progress": msgspec.json.encode(checkpoint.progress).decode(),
        "num_images": statistics.num_images,
        "mean_image": torch.from_numpy(statistics.mean_image),
        "covariance": torch.from_numpy(statistics.covariance),
        "learner": dict(checkpoint.learner),
    }
    # If PyTorch writes to the file itself, it turns the OSError of a full disk into a RuntimeError.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def keep_kernels(folder: ModelFolder, progress: Progress, weights: Mapping[str, torch.Tensor]) -> None:
    """At the end of an epoch, and before the first step, write the kernels of conv1 to a file of their own."""
    if progress.step == 0:
        write_kernels(folder, progress.schedule.num_epochs, weights["conv1.weight"].numpy())


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, allowing only tensors and plain values. Raises ModelError."""
    try:
        with open_regular(path) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        return Checkpoint(
            identity=decode_json(content["identity"], Identity),
            progress=decode_json(content["progress"], Progress),
            statistics=Statistics(
                num_images=content["num_images"],
                mean_image=content["mean_image"].numpy(),
                covariance=content["covariance"].numpy(),
            ),
            learner=content["learner"],
        )
    # torch.load raises whatever exceptions its readers raise.
    except Exception as exc:
        reason = str(exc).partition("\n")[0]
        raise ModelError(f"{path} is not a checkpoint: {reason}", hint="Start again: --overwrite") from exc


def find_checkpoint(folder: ModelFolder, identity: Identity, *, resume: bool, overwrite: bool) -> Checkpoint | None:
    """The checkpoint to resume from; None for a new run. Raises UsageError if the folder is in use or has none."""
    if resume:
        if folder.checkpoint_path.is_file():
            checkpoint = read_checkpoint(folder.checkpoint_path)
            check_same_run(checkpoint.identity, identity)
            return checkpoint
        folder.check_resumable()
    elif not overwrite:
        folder.check_unused(can_resume=True)
    return None


def check_same_run(found: Identity, asked: Identity) -> None:
    """Raise UsageError naming what differs between a checkpoint and the requested run."""
    # A checkpoint of an earlier version lacks newer options; they were off.
    newer = _comparable(msgspec.to_builtins(Training()), "training.") | {"architecture.pooling.kind": Pooling().kind}
    before = newer | found.recipe
    changes = [
        f"{key} was {before.get(key)!r}, now {asked.recipe.get(key)!r}"
        for key in sorted(before.keys() | asked.recipe.keys())
        if before.get(key) != asked.recipe.get(key)
    ]
    for what, then, now in (
        ("training images", found.num_train, asked.num_train),
        ("validation images", found.num_val, asked.num_val),
        ("classes", found.num_classes, asked.num_classes),
    ):
        if then != now:
            changes.append(f"{what}: {then:,} then, {now:,} now")
    if not changes and found.data_sha256 != asked.data_sha256:
        changes.append("the names, classes or sizes of some images")
    if changes:
        raise UsageError(
            "the checkpoint differs from the requested run: " + "; ".join(changes),
            hint="Use the same options and data, or start again: another --name, or --overwrite.",
        )


def _comparable(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What must not change, by dotted key, as JSON returns it: lists for tuples."""
    flat = flatten(values, prefix).items()
    return {key: msgspec.json.decode(msgspec.json.encode(value)) for key, value in flat if key not in _FREE_KEYS}
