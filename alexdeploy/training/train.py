"""The training step: choose recipe, data and model folder, and train. Imports PyTorch only to train."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alexdeploy.core.arguments import Count, NotNegative, check_argument, check_fields, check_layer_names
from alexdeploy.core.errors import UsageError
from alexdeploy.core.events import Status, warn_of_notices
from alexdeploy.core.model_folder import ModelFolder, find_model, model_named
from alexdeploy.core.packages import missing_package
from alexdeploy.core.recipe import (
    DEFAULT_RECIPE,
    SAMPLE_RECIPE,
    Recipe,
    fine_tuning_recipe,
    load_recipe,
)
from alexdeploy.core.shipped import SAMPLE_NUM_TRAIN, SAMPLE_NUM_VAL
from alexdeploy.core.spec import ModelSpec
from alexdeploy.core.stores.copies import copy_packed
from alexdeploy.core.stores.urls import as_path, printable_url
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.images.packed import PackedSet, is_packed, open_packed
from alexdeploy.images.sample import write_photographs, write_sample
from alexdeploy.training.events import Event, Planned, Rendered

if TYPE_CHECKING:
    from alexdeploy.training.parallel import ProcessGroup
    from alexdeploy.training.pretrained import Parent

SAMPLE_FOLDER = Path("data/sample")
PHOTOGRAPHS_FOLDER = Path("images")
_NUM_PHOTOGRAPHS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """What to train, and how.

    `recipe` is a name or a file; None uses `alexnet`, or `alexnet-quarter` for the rendered images. `overrides` change
    its keys: ("training.epochs=3",). `pretrained` is the model to continue from, with new classes or the same; the
    layers in `freeze` keep its weights. The model is written to models/`name`, by default the recipe's name. `val` is a
    folder of validation images; without it, `val_fraction` of each class is used, a tenth if None. Folders in `exclude`
    are not classes.

    `device` is "cpu", "cuda" or "cuda:1"; None selects the best available. `resume` continues from the last checkpoint,
    `overwrite` replaces an existing model. `skip_broken` skips images that cannot be decoded. `parallel` is what is
    divided among several processes: each batch, or the two towers. `logger` also sends recipe, curves and report to the
    server that MLFLOW_TRACKING_URI names.
    """

    recipe: str | os.PathLike[str] | None = None
    overrides: tuple[str, ...] = ()
    pretrained: str | os.PathLike[str] | None = None
    freeze: tuple[str, ...] | None = None
    name: str | None = None
    val: str | os.PathLike[str] | None = None
    val_fraction: float | None = None
    exclude: tuple[str, ...] = ()
    device: str | None = None
    num_threads: Count | None = None
    resume: bool = False
    overwrite: bool = False
    skip_broken: bool = False
    checkpoint_seconds: NotNegative = 60.0
    parallel: Literal["batches", "towers"] = "batches"
    logger: Literal["mlflow"] | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The model folder, and the spec of the best epoch.

    The epoch's weights are in the folder or, if the folder has exported graphs, in its candidate.
    """

    folder: ModelFolder
    spec: ModelSpec


def train(
    data: str | os.PathLike[str] | None = None,
    options: TrainOptions | None = None,
    on_event: Callable[[Event], None] = warn_of_notices,
) -> Trained:
    """Train a network on `data` and write its best epoch to models/NAME.

    `data` is a folder, or a URL, with one folder of images per class, or with train/ and val/ folders of this form, or
    a packed set; None renders ten classes of shapes to data/sample/. On KeyboardInterrupt, writes a checkpoint and
    re-raises. Raises UsageError for conflicting options and for a folder in use, DataError for images that cannot be
    decoded, DivergedError, DeviceError, OutputError.
    """
    path: str | None = check_argument("data", data, str | None)
    options = check_argument("options", options or TrainOptions(), TrainOptions)
    return train_in_group(path, options, on_event, None)


def train_in_group(
    data: str | None, options: TrainOptions, on_event: Callable[[Event], None], group: ProcessGroup | None
) -> Trained:
    """`train` in one process of a `group`; all processes must call it with the same arguments."""
    if options.logger is None or (group is not None and not group.is_main):
        return _train_in_group(data, options, on_event, group)
    from alexdeploy.training.mlflow_log import logging_to_mlflow

    with logging_to_mlflow(on_event) as watch:
        return _train_in_group(data, options, watch, group)


def _train_in_group(
    data: str | None, options: TrainOptions, on_event: Callable[[Event], None], group: ProcessGroup | None
) -> Trained:
    chosen = _choose(options, is_sample=data is None)
    begins = group is None or (group.is_main and not group.has_begun)
    # Checked before anything is rendered or decoded; training checks again.
    if begins and options.resume:
        chosen.folder.check_resumable()
    elif begins and not options.overwrite:
        chosen.folder.check_unused(can_resume=True)
    _need_torch()
    from alexdeploy.training.parallel import ALONE
    from alexdeploy.training.trainer import RunOptions
    from alexdeploy.training.trainer import train as run_training

    is_sample = data is None
    if is_sample and options.val is not None:
        raise UsageError("--val has no meaning for the rendered images", hint="Name the training images too.")
    path = SAMPLE_FOLDER if data is None else as_path(data)
    if group is None:
        _render_what_is_missing(on_event, is_needed=is_sample)
    else:
        # In all processes: machines may have different images, or none. Differences are detected later.
        group.once_here(lambda: _render_what_is_missing(on_event, is_needed=is_sample))
    # A packed set is used as a local copy; each machine has its own.
    local = path
    if isinstance(path, str):
        if group is not None:
            group.once_here(lambda: copy_packed(path))
        local = copy_packed(path) or path
    images = _open_images(local, options, chosen.recipe.training.seed, on_event)
    on_event(
        Planned(
            folder=chosen.folder,
            recipe=chosen.recipe,
            classes=tuple(images.classes),
            num_train=len(images.train),
            num_val=len(images.val),
            data=path if isinstance(path, Path) else printable_url(path),
            is_packed=is_packed(local),
        )
    )
    run_options = RunOptions(
        device=options.device,
        threads=options.num_threads,
        resume=options.resume,
        overwrite=options.overwrite,
        skip_broken=options.skip_broken,
        checkpoint_seconds=options.checkpoint_seconds,
        parallel=options.parallel,
        data_path=path.as_posix() if isinstance(path, Path) else printable_url(path),
        parent=chosen.parent,
        compile=options.compile,
    )
    spec = run_training(images, chosen.recipe, chosen.folder, run_options, on_event, group or ALONE)
    return Trained(folder=chosen.folder, spec=spec)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    """The recipe, the model folder, and the model to start from."""

    recipe: Recipe
    folder: ModelFolder
    parent: Parent | None = None


def _choose(options: TrainOptions, *, is_sample: bool) -> _Choice:
    if options.resume and options.overwrite:
        raise UsageError("--resume continues a model and --overwrite removes it", hint="Give one of them.")
    recipe = None if options.recipe is None else os.fspath(options.recipe)
    if options.pretrained is None:
        if options.freeze is not None:
            raise UsageError("--freeze keeps layers of a trained model", hint="Name one: --pretrained MODEL")
        loaded = load_recipe(recipe or (SAMPLE_RECIPE if is_sample else DEFAULT_RECIPE), list(options.overrides))
        return _Choice(recipe=loaded, folder=model_named(loaded.name if options.name is None else options.name))
    parent_folder = find_model(options.pretrained)
    architecture = parent_folder.spec().architecture
    if options.freeze is not None and architecture is not None:
        check_layer_names(options.freeze, architecture.trained_layers)
    folder = model_named(f"{parent_folder.path.resolve().name}-tuned" if options.name is None else options.name)
    if folder.path.resolve() == parent_folder.path.resolve():
        raise UsageError(
            f"--pretrained {parent_folder.path}: the new model would take the place of that one",
            hint="Give it another name: --name NAME",
        )
    _need_torch()
    from alexdeploy.training.pretrained import read_parent

    parent = read_parent(parent_folder)
    overrides = [*options.overrides, *frozen_overrides(options.freeze)]
    tuned = fine_tuning_recipe(parent.spec, parent.weights_sha256, recipe, overrides)
    return _Choice(recipe=tuned, folder=folder, parent=parent)


def frozen_overrides(layers: tuple[str, ...] | None) -> list[str]:
    """Recipe overrides that freeze layers from the first epoch, regardless of the recipe."""
    if layers is None:
        return []
    return [f"training.freeze={list(layers)}", "training.freeze_epoch=1"]


def _open_images(
    data: Path | str, options: TrainOptions, seed: int, on_event: Callable[[Event], None]
) -> LabelledImages | PackedSet:
    """The images of a packed set, or of folders; reports what is ignored in the folders."""
    if not is_packed(data):
        fraction = 0.1 if options.val_fraction is None else options.val_fraction
        val = None if options.val is None else as_path(options.val)
        found = read_image_folder(data, val_fraction=fraction, seed=seed, val_folder=val, exclude=options.exclude)
        for note in found.notes:
            on_event(Status(message=note))
        return found
    if options.val is not None or options.val_fraction is not None or options.exclude:
        raise UsageError(
            f"{data} is a packed set: its validation images were chosen when it was packed",
            hint="Leave out --val, --val-fraction and --exclude, or give them to alexdeploy prepare.",
        )
    return open_packed(data)


def _need_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise missing_package("torch", "training", "train")


def _render_what_is_missing(on_event: Callable[[Event], None], *, is_needed: bool) -> None:
    """Render the data set, and the photographs for predict if their folder does not exist."""
    if not is_needed:
        return
    write_sample(
        SAMPLE_FOLDER,
        num_train=SAMPLE_NUM_TRAIN,
        num_val=SAMPLE_NUM_VAL,
        progress=lambda done, total: on_event(Rendered(folder=SAMPLE_FOLDER, num_done=done, num_total=total)),
    )
    if not PHOTOGRAPHS_FOLDER.exists():
        write_photographs(PHOTOGRAPHS_FOLDER, num=_NUM_PHOTOGRAPHS)
        found = f"{_NUM_PHOTOGRAPHS} more images, not in the data set"
        on_event(Status(message=f"wrote {found}, to {PHOTOGRAPHS_FOLDER}/ for predict"))
