"""The training entry point: look, decode, measure, then run the epochs and leave the best in the model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder, output_error
from alexdeploy.core.errors import DataError, DeviceMemoryError, UsageError
from alexdeploy.core.processors import available_processors
from alexdeploy.core.recipe import Recipe
from alexdeploy.core.spec import ModelSpec
from alexdeploy.images.folder import LabelledImages
from alexdeploy.images.packed import PackedSet
from alexdeploy.training.checkpoint import (
    Checkpoint,
    Identity,
    Progress,
    check_same_run,
    checkpoint_path,
    describe_run,
    read_checkpoint,
)
from alexdeploy.training.data import TrainingData, open_data
from alexdeploy.training.events import AlreadyFinished, Decoded, Event, Notice, Started
from alexdeploy.training.learner import Learner, choose_device
from alexdeploy.training.log import TrainingLog
from alexdeploy.training.pixels import Broken, refuse_broken
from alexdeploy.training.pretrained import Parent, describe_start, first_weights
from alexdeploy.training.publish import (
    encode_weights,
    is_published,
    make_contract,
    publish_spec,
    publish_weights,
)
from alexdeploy.training.run import Run, Setting
from alexdeploy.training.statistics import Statistics, StatisticsSum


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a run is done, as against what is learned, which the recipe says.

    `device` is "cpu", "cuda" or "cuda:1", None for the best there is. `threads` is for PyTorch on the CPU and for
    decoding. `cache_bytes` is how much decoded pixels may take in memory, None for half of what is free.
    `data_path` goes into the provenance as it is. `parent` is the model whose weights are the first ones, and that
    the recipe must have been made for.
    """

    device: str | None = None
    threads: int | None = None
    resume: bool = False
    overwrite: bool = False
    skip_broken: bool = False
    checkpoint_seconds: float = 60.0
    cache_bytes: int | None = None
    data_path: str | None = None
    parent: Parent | None = None


def train(
    data: LabelledImages | PackedSet,
    recipe: Recipe,
    folder: ModelFolder,
    options: TrainOptions,
    on_event: Callable[[Event], None],
) -> ModelSpec:
    """Train a network, leave its best epoch in `folder`, and return the spec of that.

    With `options.resume` a run goes on from its checkpoint; on the CPU with one thread it ends with the same bits
    as one that was never stopped, since every random draw comes from (seed, epoch, step). KeyboardInterrupt
    writes a checkpoint and goes up. Raises UsageError for a folder in use or a resumed run that has changed,
    DataError for images that cannot be decoded, DivergedError, DeviceError, OutputError.
    """
    if not data.train or not data.val:
        raise DataError(f"{len(data.train)} training and {len(data.val)} validation images; it takes both")
    device = choose_device(options.device, recipe.training.precision)
    opened = open_data(
        data,
        recipe.preprocessing.resize,
        num_threads=options.threads or available_processors(),
        cache_bytes=options.cache_bytes,
    )
    identity = describe_run(recipe, opened)
    checkpoint = _find_checkpoint(folder, identity, options)
    if checkpoint is not None:
        _publish_again(opened, recipe, folder, options, checkpoint)
        num_epochs = checkpoint.progress.schedule.num_epochs
        if num_epochs >= recipe.training.epochs and _is_judged(folder):
            on_event(AlreadyFinished(num_epochs=num_epochs))
            return folder.spec()
    with _torch_settings(options.threads, device):
        try:
            return _train(opened, recipe, folder, options, on_event, device, identity, checkpoint)
        except torch.OutOfMemoryError as exc:
            raise DeviceMemoryError(
                f"{device} ran out of memory with batches of {recipe.training.batch_size}",
                cure="Use smaller ones: --batch-size",
            ) from exc


def _find_checkpoint(folder: ModelFolder, identity: Identity, options: TrainOptions) -> Checkpoint | None:
    path = checkpoint_path(folder)
    if options.resume:
        if path.is_file():
            checkpoint = read_checkpoint(path)
            check_same_run(checkpoint.identity, identity)
            return checkpoint
        if folder.spec_path.is_file():
            raise UsageError(
                f"{folder.path} has no checkpoint to resume from",
                cure="Start anew: --overwrite, or another --name",
            )
    elif not options.overwrite and (path.is_file() or folder.spec_path.is_file()):
        raise UsageError(
            f"{folder.path} already holds a model",
            cure="Go on with it: --resume; train beside it: --name NAME; replace it: --overwrite",
        )
    return None


def _is_judged(folder: ModelFolder) -> bool:
    """Whether the ten views of the best epoch were looked at; a kill may have come just before."""
    return folder.spec().provenance.get("val_top1_error_10_views") is not None


def _publish_again(
    data: TrainingData, recipe: Recipe, folder: ModelFolder, options: TrainOptions, checkpoint: Checkpoint
) -> None:
    """Write the best epoch to the model folder if a kill came between its checkpoint and that."""
    progress = checkpoint.progress
    best = progress.best
    # The checkpoint's own weights are the best ones only right after the best epoch; that is when it can happen.
    if best is None or progress.step or best.record.epoch != progress.schedule.num_epochs:
        return
    if is_published(folder, best):
        return
    contract = make_contract(folder.path.name, data.classes, recipe, checkpoint.statistics, options.parent)
    publish_weights(folder, contract, encode_weights(checkpoint.learner["weights"], contract))
    publish_spec(folder, contract, recipe, checkpoint.identity, progress, options.data_path)


def _train(
    data: TrainingData,
    recipe: Recipe,
    folder: ModelFolder,
    options: TrainOptions,
    on_event: Callable[[Event], None],
    device: torch.device,
    identity: Identity,
    checkpoint: Checkpoint | None,
) -> ModelSpec:
    statistics, progress, skipped = _scan(data, options, checkpoint, on_event)
    learner = Learner(recipe, len(data.classes), device)
    if checkpoint is not None:
        learner.load_state(checkpoint.learner)
    elif options.parent is not None:
        learner.load_weights(first_weights(options.parent, learner.weights(), data.classes))
        on_event(Notice(message=describe_start(options.parent, data.classes)))
    if checkpoint is None:
        _clear(folder)
    setting = Setting(
        recipe=recipe,
        folder=folder,
        identity=identity,
        statistics=statistics,
        contract=make_contract(folder.path.name, data.classes, recipe, statistics, options.parent),
        train=data.train,
        train_indices=_without(data.num_train, progress.broken_train),
        val=data.val,
        val_indices=_without(data.num_val, progress.broken_val),
        checkpoint_seconds=options.checkpoint_seconds,
        data_path=options.data_path,
    )
    with TrainingLog(folder, num_epochs=progress.schedule.num_epochs) as log:
        if not log.tensorboard:
            on_event(Notice(message="TensorBoard is not installed: its log is not written, log.jsonl is"))
        for note in data.notes:
            on_event(Notice(message=note))
        log.describe_data(statistics, skipped)
        on_event(
            Started(
                device=str(device),
                num_train=len(setting.train_indices),
                num_val=len(setting.val_indices),
                num_skipped=len(skipped),
                in_memory=data.in_memory,
                num_epochs=progress.schedule.num_epochs,
                num_steps=progress.step,
            )
        )
        run = Run(setting, learner, log, progress, on_event)
        run.finish()
        return run.publish_spec(run.ten_view_errors())


def _scan(
    data: TrainingData,
    options: TrainOptions,
    checkpoint: Checkpoint | None,
    on_event: Callable[[Event], None],
) -> tuple[Statistics, Progress, tuple[str, ...]]:
    """Decode everything once: statistics, progress with the broken images, and the paths of those left out.

    A resumed run takes them from its checkpoint, and decodes only to have the pixels in memory. A data set that
    knows its statistics has no broken images.
    """
    known = Progress() if checkpoint is None else checkpoint.progress
    if data.statistics is not None:
        return data.statistics, known, ()
    if checkpoint is not None and not data.in_memory:
        return checkpoint.statistics, known, _skipped(data, known)
    total = data.num_train + data.num_val
    sums = StatisticsSum()
    broken_train = data.train.scan(sums.add, lambda done: on_event(Decoded(num_done=done, num_total=total)))
    broken_val = data.val.scan(
        lambda _image: None, lambda done: on_event(Decoded(num_done=data.num_train + done, num_total=total))
    )
    if checkpoint is not None:
        fresh = [item for index, item in broken_train.items() if index not in known.broken_train]
        fresh += [item for index, item in broken_val.items() if index not in known.broken_val]
        refuse_broken(tuple(fresh), total)
        return checkpoint.statistics, known, _skipped(data, known)
    broken: tuple[Broken, ...] = (*broken_train.values(), *broken_val.values())
    if not options.skip_broken:
        refuse_broken(broken, total)
    if len(broken_train) == data.num_train or len(broken_val) == data.num_val:
        raise DataError("no training image, or no validation image, can be decoded")
    progress = Progress(broken_train=tuple(broken_train), broken_val=tuple(broken_val))
    return sums.result().statistics(), progress, _skipped(data, progress)


def _skipped(data: TrainingData, progress: Progress) -> tuple[str, ...]:
    paths = [data.train.name(index) for index in progress.broken_train]
    return (*paths, *(data.val.name(index) for index in progress.broken_val))


def _without(num: int, left_out: tuple[int, ...]) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(num), np.array(left_out, np.int64))


def _clear(folder: ModelFolder) -> None:
    """Remove an earlier model: first the spec, without which a folder is no model. Raises OutputError."""
    for path in (folder.spec_path, folder.weights_path, folder.mean_path, checkpoint_path(folder)):
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise output_error(path, exc) from exc
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


@contextmanager
def _torch_settings(threads: int | None, device: torch.device) -> Iterator[None]:
    """Set what PyTorch keeps for the whole process, and put it back."""
    num_threads = torch.get_num_threads()
    benchmark = torch.backends.cudnn.benchmark
    if threads is not None:
        torch.set_num_threads(threads)
    # All batches have one shape, or two: worth trying out which convolution is the fastest.
    torch.backends.cudnn.benchmark = True
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(num_threads)
