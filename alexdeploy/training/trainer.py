"""The training entry point: scan and measure the images, run the epochs, and publish the best one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from alexdeploy.core.errors import DeviceMemoryError, UsageError
from alexdeploy.core.events import Notice
from alexdeploy.core.locks import hold_folder
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.recipe import Recipe
from alexdeploy.core.spec import ModelSpec
from alexdeploy.images.folder import LabelledImages, check_both_splits
from alexdeploy.images.packed import PackedSet
from alexdeploy.network.layers import plan_layers
from alexdeploy.training.checkpoint import Checkpoint, Identity, describe_run, find_checkpoint, keep_kernels
from alexdeploy.training.data import TrainingData, half_of_free_memory, open_data
from alexdeploy.training.events import AlreadyFinished, Event, Started
from alexdeploy.training.kernels import drop_kernels
from alexdeploy.training.learner import Learner, choose_device
from alexdeploy.training.log import TrainingLog, log_path
from alexdeploy.training.parallel import ALONE, ProcessGroup
from alexdeploy.training.pretrained import Parent, describe_start, first_weights, recipe_for_child
from alexdeploy.training.publish import (
    best_spec,
    encode_weights,
    is_published,
    make_contract,
    publish_best,
    published_folder,
    update_spec,
)
from alexdeploy.training.report import can_write_report
from alexdeploy.training.run import Run, Setting
from alexdeploy.training.same_everywhere import check_same_everywhere
from alexdeploy.training.scan import names_left_out, scan, without
from alexdeploy.training.towers import TowerLearner, check_towers

_LARGE_MACS = 300_000_000
"""Per image: the full networks have 0.7 billion or more, `alexnet-quarter` a tenth of that."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is executed; the recipe defines what is learned.

    `device` is "cpu", "cuda" or "cuda:1"; None selects the best available. `threads` is for PyTorch on the CPU and for
    decoding. `cache_bytes` limits the memory of decoded pixels; None means half of the free memory. `data_path` is
    recorded verbatim in the provenance. `parent` is the model to start from; the recipe must have been made for it.
    `parallel` is what is divided among several processes: each batch, or the two towers. `compile` compiles the network
    with torch.compile.
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
    parallel: Literal["batches", "towers"] = "batches"
    compile: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """The arguments of `train`, and the facts known before any pixel is read."""

    recipe: Recipe
    folder: ModelFolder
    options: RunOptions
    device: torch.device
    identity: Identity
    group: ProcessGroup


def train(
    data: LabelledImages | PackedSet,
    recipe: Recipe,
    folder: ModelFolder,
    options: RunOptions,
    on_event: Callable[[Event], None],
    group: ProcessGroup = ALONE,
) -> ModelSpec:
    """Train a network, write its best epoch to `folder`, and return the spec of that epoch.

    With `options.resume` a run continues from its checkpoint. On the CPU with one thread the result is bit-identical to
    that of an uninterrupted run, since every random draw is seeded by (seed, epoch, step). On KeyboardInterrupt, writes
    a checkpoint and re-raises. Raises UsageError for a folder that is in use, also by another process, or a
    resumed run whose settings have changed, DataError for images that cannot be decoded, DivergedError, DeviceError,
    OutputError.

    Every process of a `group` must call this with the same arguments; only rank 0 reads and writes `folder` and emits
    events. Processes that replace others resume from their checkpoint. Raises UsageError if the processes differ in
    anything that affects what is learned.
    """
    check_both_splits(len(data.train), len(data.val))
    if options.parent is not None:
        recipe = recipe_for_child(recipe, options.parent, data.classes)
    if options.parallel == "towers":
        check_towers(recipe.architecture, group.size)
        if options.compile:
            raise UsageError("--compile does not go with --parallel towers", hint="Leave out one of them.")
    device = choose_device(group.device or options.device, recipe.training.precision)
    num_threads = options.threads or max(1, available_processors() // group.local_size)
    cache_bytes = half_of_free_memory() if options.cache_bytes is None else options.cache_bytes
    opened = open_data(
        data, recipe.preprocessing.resize, num_threads=num_threads, cache_bytes=cache_bytes // group.local_size
    )
    if group.is_main and (note := _slow_note(recipe, len(data.classes), len(data.train), device, options)) is not None:
        on_event(Notice(message=note))
    identity = describe_run(recipe, opened)
    check_same_everywhere(group, _shared_facts(identity, recipe, options, device))
    if group.has_begun:
        options = dataclasses.replace(options, resume=True, overwrite=False)
    with _lock_model_folder(folder) if group.is_main else nullcontext():
        checkpoint = group.on_main(
            lambda: find_checkpoint(folder, identity, resume=options.resume, overwrite=options.overwrite)
        )
        if options.resume and not group.has_begun and group.is_main and checkpoint is None:
            # Not an error: a loop that restarts a run after each kill also starts it the first time.
            on_event(Notice(message=f"no checkpoint in {folder.path}: starting from the beginning"))
        if group.has_begun and group.is_main and checkpoint is None and not log_path(folder).is_file():
            on_event(
                Notice(
                    message=f"the processes were started again, and {folder.path} has no checkpoint: training "
                    "starts from the beginning; if rank 0 is on another machine than before, the checkpoint is there"
                )
            )
        job = _Job(recipe=recipe, folder=folder, options=options, device=device, identity=identity, group=group)
        if checkpoint is not None:
            finished = group.on_main(lambda: _finished(opened, job, checkpoint))
            if finished is not None:
                if group.is_main:
                    progress = checkpoint.progress
                    skipped = names_left_out(opened, progress)
                    on_event(AlreadyFinished(num_epochs=progress.schedule.num_epochs, skipped=skipped))
                return finished
        threads = options.threads if group.size == 1 else num_threads
        with _torch_settings(threads, device):
            try:
                watch = on_event if group.is_main else _ignore
                return _train(opened, job, checkpoint, watch)
            except torch.OutOfMemoryError as exc:
                raise DeviceMemoryError(
                    f"{device} ran out of memory with batches of {recipe.training.batch_size}",
                    hint="Use smaller ones: --set training.batch_size=N",
                ) from exc


def _slow_note(
    recipe: Recipe, num_classes: int, num_train: int, device: torch.device, options: RunOptions
) -> str | None:
    """A hint to use a smaller recipe if a full-size network is about to be trained from scratch on a CPU."""
    macs = sum(layer.macs for layer in plan_layers(recipe.architecture, num_classes))
    if device.type != "cpu" or macs < _LARGE_MACS or options.resume or options.parent is not None:
        return None
    # The forward pass, and twice as much for the backward pass.
    total = 3 * macs * num_train * recipe.training.epochs
    return (
        f"{recipe.name} takes {2e-9 * macs:.1f} GFLOP for an image, {2e-15 * total:,.1f} PFLOP for "
        f"{recipe.training.epochs} epochs of {num_train:,} images: slow on a CPU. A recipe of the size of "
        "alexnet-quarter is many times faster: --recipe alexnet-quarter"
    )


def _ignore(_event: Event) -> None:
    pass


def _shared_facts(identity: Identity, recipe: Recipe, options: RunOptions, device: torch.device) -> dict[str, Any]:
    """The values that must be equal in all processes, by their names in messages."""
    return identity.recipe | {
        "training.epochs": recipe.training.epochs,
        "training.stop_after": recipe.training.stop_after,
        "kind of device": device.type,
        "--parallel": options.parallel,
        "--compile": options.compile,
        "--skip-broken": options.skip_broken,
        "training images": identity.num_train,
        "validation images": identity.num_val,
        "classes": identity.num_classes,
        "sha256 of names, classes and sizes of the images": identity.data_sha256,
    }


def _lock_model_folder(folder: ModelFolder) -> AbstractContextManager[None]:
    """Lock taken before anything is read: otherwise two runs would each continue from what the other writes."""
    return hold_folder(
        folder.path,
        UsageError(f"another process is writing {folder.path}", hint="Wait for it, or choose another --name."),
    )


def _finished(data: TrainingData, job: _Job, checkpoint: Checkpoint) -> ModelSpec | None:
    """The spec of a run that is finished, else None. Publishes the best epoch if a kill prevented that."""
    _republish_best(data, job, checkpoint)
    best = checkpoint.progress.best
    if best is None or not checkpoint.progress.is_over(job.recipe.training):
        return None
    spec = published_folder(job.folder, best.weights_sha256).spec()
    # A kill may have come just before the ten views of the best epoch were evaluated.
    return spec if spec.provenance.get("val_top1_error_10_views") is not None else None


def _republish_best(data: TrainingData, job: _Job, checkpoint: Checkpoint) -> None:
    """Write the best epoch to the model folder if a kill came after its checkpoint but before it was published."""
    recipe, folder, options, progress = job.recipe, job.folder, job.options, checkpoint.progress
    best = progress.best
    # The checkpoint contains the best weights only right after the best epoch, the only time this can happen.
    if best is None or progress.step or best.record.epoch != progress.schedule.num_epochs:
        return
    if is_published(folder, best):
        return
    contract = make_contract(folder.path.name, data.classes, recipe, checkpoint.statistics, options.parent)
    spec = best_spec(contract, recipe, checkpoint.identity, progress, options.data_path)
    publish_best(
        folder,
        contract,
        spec,
        encode_weights(checkpoint.published, contract),
    )


def _train(
    data: TrainingData, job: _Job, checkpoint: Checkpoint | None, on_event: Callable[[Event], None]
) -> ModelSpec:
    recipe, folder, options, group = job.recipe, job.folder, job.options, job.group
    scanned = scan(data, checkpoint, skip_broken=options.skip_broken, on_event=on_event, group=group)
    progress = scanned.progress
    learner = _make_learner(job, len(data.classes))
    if checkpoint is not None:
        learner.load_state(checkpoint.learner)
    elif options.parent is not None:
        learner.load_weights(first_weights(options.parent, learner.weights(), data.classes))
        on_event(Notice(message=describe_start(options.parent, data.classes)))
    setting = Setting(
        recipe=recipe,
        folder=folder,
        identity=job.identity,
        statistics=scanned.statistics,
        contract=make_contract(folder.path.name, data.classes, recipe, scanned.statistics, options.parent),
        train=data.train,
        train_indices=without(data.num_train, progress.broken_train),
        val=data.val,
        val_indices=without(data.num_val, progress.broken_val),
        checkpoint_seconds=options.checkpoint_seconds,
        data_path=options.data_path,
    )
    _check_batches(len(setting.train_indices), recipe.training.batch_size, learner.split.size)
    # Of both towers, where there are two processes for them.
    weights = learner.weights() if checkpoint is None else {}
    if group.is_main:
        if checkpoint is None:
            folder.clear()
            keep_kernels(folder, progress, weights)
        drop_kernels(folder, after=progress.schedule.num_epochs)
    group.begin()
    num_epochs = progress.schedule.num_epochs
    opened_log = TrainingLog(folder, num_epochs=num_epochs, num_steps=progress.step) if group.is_main else nullcontext()
    with opened_log as log:
        if log is not None and not log.tensorboard:
            on_event(Notice(message="TensorBoard is not installed: its log is not written, log.jsonl is"))
        for note in data.notes:
            on_event(Notice(message=note))
        if log is not None:
            log.describe_data(scanned.statistics, scanned.skipped)
        on_event(
            Started(
                device=str(job.device) if group.size == 1 else f"{job.device.type} in {group.size} processes",
                num_train=len(setting.train_indices),
                num_val=len(setting.val_indices),
                skipped=scanned.skipped,
                in_memory=data.in_memory,
                num_epochs=progress.schedule.num_epochs,
                num_steps=progress.step,
            )
        )
        run = Run(setting, learner, log, progress, on_event, group)
        run.finish()
        errors = run.ten_view_errors()
        if group.is_main:
            if can_write_report():
                # Before the spec says that the run is finished, so that a resumed run writes what a kill prevented.
                run.write_report(errors)
            else:
                needed = "matplotlib is not installed: curves.png and report.html are not written"
                on_event(Notice(message=f"{needed} (pip install 'alexdeploy[report]')"))
        spec = run.spec(errors)
        return group.on_main(lambda: update_spec(folder, spec))


def _make_learner(job: _Job, num_classes: int) -> Learner | TowerLearner:
    if job.options.parallel == "towers":
        return TowerLearner(job.recipe, num_classes, job.device, job.group)
    learner = Learner(job.recipe, num_classes, job.device, group=job.group)
    if job.options.compile:
        learner.compile()
    return learner


def _check_batches(num_train: int, batch_size: int, num_processes: int) -> None:
    """Raise UsageError if a process would get no images in a step."""
    smallest = num_train // math.ceil(num_train / batch_size)
    if smallest < num_processes:
        raise UsageError(
            f"{num_processes} processes would share batches of {smallest} images",
            hint="Use larger batches, --set training.batch_size=N, or fewer processes, --nproc-per-node.",
        )


@contextmanager
def _torch_settings(threads: int | None, device: torch.device) -> Iterator[None]:
    """Set PyTorch's process-wide settings, and restore them afterwards."""
    num_threads = torch.get_num_threads()
    benchmark = torch.backends.cudnn.benchmark
    if threads is not None:
        torch.set_num_threads(threads)
    # Batches have only one or two shapes, so benchmarking the convolution algorithms pays off.
    torch.backends.cudnn.benchmark = True
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(num_threads)
