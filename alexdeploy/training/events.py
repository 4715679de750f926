"""Events of training and of preparing data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alexdeploy.core.events import Notice, Status
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """`num_done` of `num_total` images of the built-in data set are in `folder`."""

    folder: Path
    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What will be trained, where the model goes, and on which images of `data`."""

    folder: ModelFolder
    recipe: Recipe
    classes: tuple[str, ...]
    num_train: int
    num_val: int
    data: Path
    is_packed: bool


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Images decoded so far in the first pass over the training and validation sets."""

    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """Steps begin. `num_epochs` are finished already, `num_steps` of the next one; `skipped` are names."""

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

    `images_per_second` is the rate of the epoch so far; `seconds_left` what all steps to come take at it.
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

    The first of the speeds is that of the epoch, the second that of its steps without waits for images, the third what
    the loader did alone when the run began; None where they are not known.
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


@dataclass(frozen=True, kw_only=True)
class EpochFinished:
    """An epoch is done, and in the log, in a checkpoint and, where it is the best so far, in the model folder."""

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
    """A resumed run had all its epochs."""

    num_epochs: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listed:
    """So many images are found in the headers of archives."""

    num_found: int


@dataclass(frozen=True, kw_only=True)
class Packed:
    """`num_done` of `num_total` images are in the packed set `folder`."""

    folder: Path
    num_done: int
    num_total: int


PrepareEvent = Listed | Packed | Notice | Status

Event = (
    Rendered | Planned | Decoded | Started | Step | EpochFinished | CheckpointSaved | AlreadyFinished | Notice | Status
)
