"""Events of training and of preparing data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alexdeploy.core.events import Notice, Status
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """`num_done` of `num_total` images of the built-in data set have been written to `folder`."""

    folder: Path
    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will be trained, on which images of `data` (a URL is text), and where the model is written."""

    folder: ModelFolder
    recipe: Recipe
    classes: tuple[str, ...]
    num_train: int
    num_val: int
    data: Path | str
    is_packed: bool


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Images decoded so far in the first pass over the training and validation sets."""

    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """Training steps begin, after `num_epochs` epochs and `num_steps` steps of the next. `skipped` are image names."""

    device: str
    num_train: int
    num_val: int
    skipped: tuple[str, ...]
    in_memory: bool
    num_epochs: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """`step` of `num_steps` of `epoch` (from 1) is done; `loss` is the mean over the epoch so far.

    `images_per_second` is the rate of the epoch so far; `seconds_left` is the time of all remaining steps at that rate.
    """

    epoch: int
    step: int
    num_steps: int
    loss: float
    learning_rate: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of the log. Errors are fractions of the validation set, on the centre view.

    `train_top1_error` is of the augmented views that the epoch learned from, with dropout, before each step. The first
    speed is that of the whole epoch, the second that of its steps without waits for images, the third that of
    the loader alone when the run began. Unknown speeds are None.
    """

    epoch: int
    loss: float
    val_loss: float
    val_top1_error: float
    val_top5_error: float
    learning_rate: float
    images_per_second: float
    num_skipped: int = 0
    step_images_per_second: float | None = None
    loader_images_per_second: float | None = None
    train_top1_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One line of the log of steps. `loss` is the mean over the step's batch, before the step."""

    epoch: int
    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class EpochFinished:
    """An epoch is done and is in the log, in a checkpoint and, if it is the best so far, in the model folder."""

    record: EpochRecord
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint within an epoch was written, after `step` steps of `epoch`."""

    path: Path
    epoch: int
    step: int


@dataclass(frozen=True, kw_only=True)
class AlreadyFinished:
    """A resumed run had already finished all its epochs."""

    num_epochs: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listed:
    """Number of images found in the headers of archives so far."""

    num_found: int


@dataclass(frozen=True, kw_only=True)
class Packed:
    """`num_done` of `num_total` images have been written to the packed set `folder`."""

    folder: Path
    num_done: int
    num_total: int


PrepareEvent = Listed | Packed | Notice | Status

Event = (
    Rendered | Planned | Decoded | Started | Step | EpochFinished | CheckpointSaved | AlreadyFinished | Notice | Status
)
