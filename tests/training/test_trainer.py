from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import PATIENCE
from PIL import Image
from safetensors.numpy import load_file
from training_helpers import tiny_recipe, train_and_tell

import alexdeploy
from alexdeploy.core.errors import DataError, DivergedError, ModelError, OutputError, UsageError
from alexdeploy.core.events import Notice
from alexdeploy.core.files import npy_bytes, sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import CONTRACT_KEY
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights
from alexdeploy.training import run
from alexdeploy.training.checkpoint import check_same_run, describe_run, read_checkpoint
from alexdeploy.training.data import open_data
from alexdeploy.training.events import AlreadyFinished, Decoded, EpochFinished, EpochRecord, Event, Started, Step
from alexdeploy.training.kernels import kernel_epochs, read_kernels, write_kernels
from alexdeploy.training.log import TrainingLog, log_path, read_log, read_steps, steps_path
from alexdeploy.training.pixels import FilePixels
from alexdeploy.training.publish import published_folder
from alexdeploy.training.trainer import RunOptions, train
from alexdeploy.training.validation import Validation, ValidationErrors

ONE_THREAD = RunOptions(device="cpu", threads=1)
EMPTY = open_data(LabelledImages(classes=("a", "b"), train=(), val=()), "crop", num_threads=1)


def ignore(event: Event) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "model")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> ModelFolder:
    """Three epochs of five steps, never stopped."""
    folder = ModelFolder(tmp_path_factory.mktemp("whole") / "model")
    train(read_image_folder(tiny_folder), tiny_recipe(), folder, ONE_THREAD, ignore)
    return folder


def final_state(folder: ModelFolder) -> dict[str, bytes]:
    """Weights and velocities of the last checkpoint, and the published weights, to the bit."""
    learner = read_checkpoint(folder.checkpoint_path).learner
    state = {
        f"{kind} {name}": tensor.numpy().tobytes()
        for kind in ("weights", "averages", "velocities")
        for name, tensor in learner.get(kind, {}).items()
    }
    return state | {"published": folder.weights_path.read_bytes()}


def interrupt_at(epoch: int, step: int) -> Callable[[Event], None]:
    def watch(event: Event) -> None:
        if isinstance(event, Step) and (event.epoch, event.step) == (epoch, step):
            raise KeyboardInterrupt

    return watch


def test_a_run_leaves_a_model_that_the_rest_of_the_program_can_read(uninterrupted, tiny_data):
    spec = uninterrupted.spec()
    assert spec.classes == ("above", "below")
    assert spec.preprocessing.crop == 67
    facts = spec.provenance
    assert facts["alexdeploy_version"] == alexdeploy.__version__
    assert facts["num_train"] == 40
    assert facts["num_epochs"] == 3
    assert facts["weights_sha256"] == sha256_file(uninterrupted.weights_path)
    mean_image = uninterrupted.mean_image(spec)
    pixels = [np.asarray(Image.open(example.path)) for example in tiny_data.train]
    np.testing.assert_allclose(mean_image, np.mean(pixels, axis=0).transpose(2, 0, 1), rtol=1e-6)
    load_weights(uninterrupted.weights_path, plan_layers(spec.architecture, spec.num_classes))


def test_the_best_epoch_is_published(uninterrupted):
    records = read_log(log_path(uninterrupted))
    best = min(records, key=lambda record: (record.val_top1_error, record.val_loss))
    facts = uninterrupted.spec().provenance
    assert facts["best_epoch"] == best.epoch
    assert facts["val_loss"] == best.val_loss


def test_an_easy_task_is_learned(folder, tiny_data):
    # A view of 67 pixels cut anywhere else would mostly lie within one of the halves.
    recipe = tiny_recipe("training.epochs=12", "training.augmentation.crop=false")
    spec = train(tiny_data, recipe, folder, ONE_THREAD, ignore)
    records = read_log(log_path(folder))
    assert records[-1].loss < records[0].loss * 0.8
    assert spec.provenance["val_top1_error"] <= 0.1


def test_each_step_tells_the_time_left_by_the_rate_so_far(folder, tiny_data):
    """Two epochs of 40 images in 5 steps of 8."""
    steps: list[Step] = []

    def watch(event: Event) -> None:
        if isinstance(event, Step):
            steps.append(event)

    train(tiny_data, tiny_recipe("training.epochs=2"), folder, ONE_THREAD, watch)
    images_left = [80 - 8 * done for done in range(1, 11)]
    found = [step.seconds_left * step.images_per_second for step in steps]
    assert found == pytest.approx(images_left)


@pytest.mark.parametrize(
    ("recipe", "changes", "is_told"),
    [("alexnet", {}, True), ("alexnet-quarter", {}, False), ("alexnet", {"resume": True}, False)],
)
def test_a_full_size_network_on_a_cpu_gets_a_hint_at_smaller_recipes_before_any_work(
    folder, tiny_data, recipe, changes, is_told
):
    events: list[Event] = []

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, Decoded):
            raise KeyboardInterrupt

    options = dataclasses.replace(ONE_THREAD, **changes)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, load_recipe(recipe), folder, options, stop)
    told = [isinstance(event, Notice) and "--recipe alexnet-quarter" in event.message for event in events]
    assert told.count(True) == is_told
    assert told[0] == is_told


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (2, 3), (3, 5)])
def test_after_ctrl_c_resuming_gives_the_same_bits(folder, tiny_data, uninterrupted, epoch, step):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_recipe(), folder, ONE_THREAD, interrupt_at(epoch, step))
    progress = read_checkpoint(folder.checkpoint_path).progress
    assert (progress.schedule.num_epochs + 1, progress.step) == (epoch, step)
    train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, resume=True), ignore)
    assert final_state(folder) == final_state(uninterrupted)


def test_the_kernels_of_each_epoch_are_kept_also_across_a_kill(folder, tiny_data, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_recipe(), folder, ONE_THREAD, interrupt_at(2, 2))
    assert kernel_epochs(folder) == (0, 1)
    # What a run leaves that was killed between these files and its checkpoint.
    write_kernels(folder, 2, np.zeros((8, 3, 11, 11), np.float32))
    write_kernels(folder, 7, np.zeros((8, 3, 11, 11), np.float32))
    train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, resume=True), ignore)
    assert kernel_epochs(folder) == (0, 1, 2, 3)
    for epoch in range(4):
        np.testing.assert_array_equal(read_kernels(folder, epoch), read_kernels(uninterrupted, epoch))
    last = read_checkpoint(folder.checkpoint_path).learner["weights"]["conv1.weight"]
    np.testing.assert_array_equal(read_kernels(folder, 3), last.numpy())


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", npy_bytes(np.zeros((8, 4, 11, 11), np.float32))])
def test_damaged_kernels_are_a_model_error(folder, content):
    write_kernels(folder, 3, np.zeros((8, 3, 11, 11), np.float32))
    path = folder.checkpoints / "kernels" / "0003.npy"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"0003\.npy") as caught:
        read_kernels(folder, 3)
    assert caught.value.hint == "Remove 0003.npy: it is one frame."


def test_averages_of_weights_are_published_and_survive_ctrl_c(tmp_path, tiny_data):
    recipe = tiny_recipe("training.average=0.8", "training.epochs=2")
    whole, stopped = ModelFolder(tmp_path / "whole"), ModelFolder(tmp_path / "stopped")
    train(tiny_data, recipe, whole, ONE_THREAD, ignore)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, recipe, stopped, ONE_THREAD, interrupt_at(2, 2))
    train(tiny_data, recipe, stopped, dataclasses.replace(ONE_THREAD, resume=True), ignore)
    assert final_state(stopped) == final_state(whole)
    assert steps_path(stopped).read_bytes() == steps_path(whole).read_bytes()
    last, published = read_checkpoint(whole.checkpoint_path), load_file(whole.weights_path)
    if last.progress.best.record.epoch == 2:
        assert all(np.array_equal(published[name], average) for name, average in last.learner["averages"].items())
    assert not np.array_equal(published["fc8.weight"], last.learner["weights"]["fc8.weight"])


def test_training_stops_after_epochs_that_are_not_better(folder, tiny_data):
    """At this rate no float32 weight changes, so that no epoch is better than the first."""
    recipe = tiny_recipe("training.learning_rate=1e-30", "training.epochs=9", "training.stop_after=2")
    events: list[Event] = []
    train(tiny_data, recipe, folder, ONE_THREAD, events.append)
    assert [record.epoch for record in read_log(log_path(folder))] == [1, 2, 3]
    assert any(isinstance(event, Notice) and "no better validation error" in event.message for event in events)
    resume = dataclasses.replace(ONE_THREAD, resume=True)
    train(tiny_data, recipe, folder, resume, events.append)
    assert isinstance(events[-1], AlreadyFinished)
    more = tiny_recipe("training.learning_rate=1e-30", "training.epochs=4")
    train(tiny_data, more, folder, resume, ignore)
    assert [record.epoch for record in read_log(log_path(folder))] == [1, 2, 3, 4]


def test_the_log_of_steps_has_the_loss_of_each_batch_and_sums_to_that_of_the_epoch(uninterrupted):
    steps = list(read_steps(steps_path(uninterrupted)))
    assert [(step.epoch, step.step) for step in steps] == [(e, s) for e in (1, 2, 3) for s in range(1, 6)]
    records = read_log(log_path(uninterrupted))
    # Five batches of eight.
    for record in records:
        losses = [step.loss for step in steps if step.epoch == record.epoch]
        assert np.mean(losses) == pytest.approx(record.loss, rel=1e-12)
        assert (record.train_top1_error * 40) == pytest.approx(round(record.train_top1_error * 40), abs=1e-9)
    with log_path(uninterrupted).with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == [record.val_loss for record in records]


def without_speed(folder: ModelFolder) -> list[object]:
    unknown = {"images_per_second": 0.0, "step_images_per_second": None, "loader_images_per_second": None}
    return [dataclasses.replace(record, **unknown) for record in read_log(log_path(folder))]


def test_the_log_has_each_epoch_once_after_a_resume(folder, tiny_data, uninterrupted):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_recipe(), folder, ONE_THREAD, interrupt_at(2, 2))
    with log_path(folder).open("ab") as file:
        # What a run leaves that was killed between its log and its checkpoint, and in the middle of a line.
        file.write(log_path(uninterrupted).read_bytes().splitlines(keepends=True)[1] + b'{"epoch": 3, "lo')
    train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, resume=True), ignore)
    assert without_speed(folder) == without_speed(uninterrupted)


def test_pixels_decoded_each_time_give_the_same_bits_as_pixels_in_memory(folder, tiny_data, uninterrupted):
    events: list[Event] = []
    options = dataclasses.replace(ONE_THREAD, cache_bytes=0)
    train(tiny_data, tiny_recipe(), folder, options, events.append)
    assert [event.in_memory for event in events if isinstance(event, Started)] == [False]
    assert final_state(folder) == final_state(uninterrupted)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize(("owner", "victim"), [(run.Run, "_save"), (run, "publish_best"), (ModelFolder, "write_spec")])
def test_a_kill_between_the_writes_of_an_epoch_is_mended_by_resuming(
    folder, tiny_data, uninterrupted, monkeypatch, owner, victim
):
    best_epoch = uninterrupted.spec().provenance["best_epoch"]

    def kill_in_best_epoch(real):
        def wrapper(*args):
            if len(read_log(log_path(folder))) == best_epoch:
                raise Killed
            return real(*args)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(owner, victim, kill_in_best_epoch(getattr(owner, victim)))
        with pytest.raises(Killed):
            train(tiny_data, tiny_recipe(), folder, ONE_THREAD, ignore)
    if folder.spec_path.is_file():
        folder.mean_image(folder.spec())
    train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, resume=True), ignore)
    assert final_state(folder) == final_state(uninterrupted)
    assert folder.spec().provenance["weights_sha256"] == sha256_file(folder.weights_path)


@contextmanager
def training(data: Path, folder: ModelFolder, interrupt: int | None = None) -> Iterator[BaseProcess]:
    """A process that trains and has taken a step, unless it was finished before; it has ended when this ends.

    `interrupt` is a signal that it gets before it takes another step.
    """
    # Forked from a process that has imported PyTorch, which takes longer than the training.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alexdeploy.training.trainer"])
    receiver, sender = context.Pipe()
    process = context.Process(target=train_and_tell, args=(data, folder.path, sender))
    process.start()
    sender.close()
    with receiver:
        try:
            with suppress(EOFError):
                receiver.recv()
                if interrupt is not None:
                    os.kill(process.pid, interrupt)
                receiver.send("go on")
            yield process
            process.join(PATIENCE)
            assert process.exitcode is not None
        finally:
            # A test that fails leaves no training behind.
            process.kill()
            process.join()


@pytest.mark.slow
def test_sigkill_at_any_moment_costs_no_bit(folder, tiny_folder, uninterrupted):
    rng = random.Random(3)
    for _ in range(3):
        with training(tiny_folder, folder) as process:
            time.sleep(rng.uniform(0.0, 0.25))
            process.kill()
    with training(tiny_folder, folder) as process:
        pass
    assert process.exitcode == 0
    assert final_state(folder) == final_state(uninterrupted)
    assert without_speed(folder) == without_speed(uninterrupted)


def test_ctrl_c_saves_and_exits_130(folder, tiny_folder):
    with training(tiny_folder, folder, signal.SIGINT) as process:
        pass
    assert process.exitcode == 130
    assert read_checkpoint(folder.checkpoint_path).progress.step > 0


@pytest.mark.parametrize("changes", [{"resume": True}, {"overwrite": True}, {}])
def test_a_folder_that_is_being_trained_into_is_refused_and_the_run_ends_as_alone(
    folder, tiny_data, uninterrupted, changes
):
    pytest.importorskip("fcntl")

    def begin_another(event: Event) -> None:
        # The first step: there is no checkpoint yet.
        if isinstance(event, Step) and (event.epoch, event.step) == (1, 1):
            with pytest.raises(UsageError, match=f"another process is writing {folder.path}"):
                train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, **changes), ignore)

    train(tiny_data, tiny_recipe(), folder, ONE_THREAD, begin_another)
    assert final_state(folder) == final_state(uninterrupted)
    assert not list(folder.path.glob(".*"))


def test_a_changed_recipe_is_not_resumed(folder, tiny_data):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_recipe(), folder, ONE_THREAD, interrupt_at(1, 2))
    resume = dataclasses.replace(ONE_THREAD, resume=True)
    with pytest.raises(UsageError, match=r"training\.learning_rate was 0\.01, now 0\.02"):
        train(tiny_data, tiny_recipe("training.learning_rate=0.02"), folder, resume, ignore)
    fewer = dataclasses.replace(tiny_data, train=tiny_data.train[1:])
    with pytest.raises(UsageError, match="training images: 40 then, 39 now"):
        train(fewer, tiny_recipe(), folder, resume, ignore)
    with pytest.raises(UsageError, match="already holds an unfinished run"):
        train(tiny_data, tiny_recipe(), folder, ONE_THREAD, ignore)


def test_resuming_where_nothing_is_says_so_and_begins(folder, tiny_data):
    resume = dataclasses.replace(ONE_THREAD, resume=True)
    notes: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, Notice):
            notes.append(event.message)
        interrupt_at(1, 2)(event)

    note = f"no checkpoint in {folder.path}: starting from the beginning"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_recipe(), folder, resume, watch)
    assert note in notes
    notes.clear()
    train(tiny_data, tiny_recipe(), folder, resume, watch)
    assert note not in notes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("training.label_smoothing=0.1", r"training\.label_smoothing was 0\.0, now 0\.1"),
        ("architecture.pooling.kind=average", r"architecture\.pooling\.kind was 'max', now 'average'"),
    ],
)
def test_a_checkpoint_from_before_an_option_goes_on_where_that_is_off(change, told):
    identity = describe_run(tiny_recipe(), EMPTY)
    older = {key: value for key, value in identity.recipe.items() if key != change.partition("=")[0]}
    check_same_run(dataclasses.replace(identity, recipe=older), identity)
    changed = describe_run(tiny_recipe(change), EMPTY)
    with pytest.raises(UsageError, match=told):
        check_same_run(dataclasses.replace(identity, recipe=older), changed)


def test_a_run_along_a_cosine_has_as_many_epochs_as_it_began_with():
    found, asked = (
        describe_run(tiny_recipe("training.schedule=cosine", f"training.epochs={num}"), EMPTY) for num in (3, 4)
    )
    with pytest.raises(UsageError, match=r"training\.epochs was 3, now 4"):
        check_same_run(found, asked)


def test_a_finished_run_says_so_and_takes_more_epochs(tmp_path, tiny_data, uninterrupted):
    folder = ModelFolder(tmp_path / "model")
    shutil.copytree(uninterrupted.path, folder.path)
    resume = dataclasses.replace(ONE_THREAD, resume=True)
    events: list[Event] = []
    spec = train(tiny_data, tiny_recipe(), folder, resume, events.append)
    assert events == [AlreadyFinished(num_epochs=3)]
    assert spec == uninterrupted.spec()
    train(tiny_data, tiny_recipe("training.epochs=4"), folder, resume, ignore)
    assert [record.epoch for record in read_log(log_path(folder))] == [1, 2, 3, 4]


def test_overwriting_starts_again(tmp_path, tiny_data, uninterrupted):
    folder = ModelFolder(tmp_path / "model")
    shutil.copytree(uninterrupted.path, folder.path)
    options = dataclasses.replace(ONE_THREAD, overwrite=True)
    train(tiny_data, tiny_recipe("training.epochs=1"), folder, options, ignore)
    assert [record.epoch for record in read_log(log_path(folder))] == [1]


EXPORTED = ("model.onnx", "model.fp16.onnx", "model.int8.onnx", "engines/gpu.engine", "engines/gpu.json")


@pytest.fixture
def exported(tmp_path: Path, uninterrupted: ModelFolder) -> ModelFolder:
    """A model with graphs, engines and a file of the user's."""
    folder = ModelFolder(tmp_path / "model")
    shutil.copytree(uninterrupted.path, folder.path)
    folder.engines.mkdir()
    for name in (*EXPORTED, "notes.txt"):
        (folder.path / name).write_text("old")
    return folder


def test_overwriting_leaves_no_graph_or_engine_of_the_earlier_model_and_what_is_the_users(exported, tiny_data):
    options = dataclasses.replace(ONE_THREAD, overwrite=True)
    spec = train(tiny_data, tiny_recipe("training.epochs=1"), exported, options, ignore)
    assert exported.spec() == spec
    names = {path.name for path in exported.path.iterdir()}
    assert names == {"spec.json", "weights.safetensors", "mean.npy", "checkpoints", "notes.txt"}


def test_a_run_that_cannot_begin_leaves_the_earlier_model_as_it_was(exported, data_with_broken):
    before = {path: path.read_bytes() for path in exported.path.rglob("*") if path.is_file()}
    with pytest.raises(DataError):
        train(data_with_broken, tiny_recipe(), exported, dataclasses.replace(ONE_THREAD, overwrite=True), ignore)
    assert {path: path.read_bytes() for path in exported.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("resume", "message"), [(False, "already holds a model"), (True, "no checkpoint to resume")])
def test_a_graph_that_is_there_is_not_removed_unasked(folder, tiny_data, resume, message):
    folder.path.mkdir()
    folder.onnx_path().write_text("mine")
    with pytest.raises(UsageError, match=message):
        train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, resume=resume), ignore)
    assert folder.onnx_path().read_text() == "mine"


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(folder, tiny_data):
    recipe = tiny_recipe("training.learning_rate=1e5")
    with pytest.raises(DivergedError, match="epoch 1 at learning rate 100000") as caught:
        train(tiny_data, recipe, folder, dataclasses.replace(ONE_THREAD, checkpoint_seconds=0), ignore)
    assert "--set training.learning_rate=" in caught.value.hint
    assert not folder.spec_path.exists()
    if folder.checkpoint_path.is_file():
        weights = read_checkpoint(folder.checkpoint_path).learner["weights"]
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_broken_images_stop_the_run_before_it_begins(folder, data_with_broken):
    with pytest.raises(DataError, match=r"(?s)3 of 56 images.*03\.png.*04\.png.*05\.png") as caught:
        train(data_with_broken, tiny_recipe(), folder, ONE_THREAD, ignore)
    assert "--skip-broken" in caught.value.hint
    assert not folder.path.exists()


@contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """A disk that is full for every file after so many bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(folder, tiny_data, uninterrupted):
    shutil.copytree(uninterrupted.path, folder.path)
    before = folder.checkpoint_path.read_bytes()
    resume = dataclasses.replace(ONE_THREAD, resume=True)
    more = tiny_recipe("training.epochs=4")
    with limited_files(50_000), pytest.raises(OutputError, match=r"last\.pt could not be written"):
        train(tiny_data, more, folder, resume, ignore)
    assert folder.checkpoint_path.read_bytes() == before
    train(tiny_data, more, folder, resume, ignore)
    assert [record.epoch for record in read_log(log_path(folder))] == [1, 2, 3, 4]


def record_of(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        loss=1.0,
        val_loss=1.0,
        val_top1_error=0.5,
        val_top5_error=0.1,
        learning_rate=0.01,
        images_per_second=9.0,
        num_skipped=0,
    )


def test_a_full_disk_under_the_log_is_an_output_error(folder):
    full = pytest.raises(OutputError, match=r"log\.jsonl could not be written")
    with TrainingLog(folder, num_epochs=0) as log, limited_files(10), full:
        log.append(record_of(1))


# TensorBoard's thread raises it as well.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_under_tensorboard_is_an_output_error(folder):
    pytest.importorskip("tensorboard")

    def fill() -> None:
        with TrainingLog(folder, num_epochs=0) as log:
            for epoch in range(1, 100):
                # Another file than the curves, so that these are what the disk is too small for.
                for path in (log_path(folder), log_path(folder).with_suffix(".csv")):
                    path.write_bytes(b"")
                log.append(record_of(epoch))

    threads = set(threading.enumerate())
    with limited_files(5000), pytest.raises(OutputError, match="tensorboard could not be written"):
        fill()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)


def test_a_model_that_cannot_be_removed_is_an_output_error(tmp_path, tiny_data, uninterrupted):
    folder = ModelFolder(tmp_path / "model")
    shutil.copytree(uninterrupted.path, folder.path)
    folder.weights_path.unlink()
    folder.weights_path.mkdir()
    with pytest.raises(OutputError, match=r"weights\.safetensors could not be written"):
        train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, overwrite=True), ignore)


def test_broken_images_are_left_out_when_asked_and_counted(folder, data_with_broken):
    options = dataclasses.replace(ONE_THREAD, skip_broken=True)
    with pytest.raises(KeyboardInterrupt):
        train(data_with_broken, tiny_recipe("training.epochs=1"), folder, options, interrupt_at(1, 2))
    resume = dataclasses.replace(ONE_THREAD, resume=True)
    spec = train(data_with_broken, tiny_recipe("training.epochs=1"), folder, resume, ignore)
    assert (spec.provenance["num_train"], spec.provenance["num_val"]) == (38, 15)
    assert spec.provenance["num_skipped"] == 3
    assert [record.num_skipped for record in read_log(log_path(folder))] == [3]


def test_bfloat16_trains_and_leaves_float32_weights(folder, tiny_data):
    recipe = tiny_recipe("training.precision=bf16", "training.epochs=1")
    spec = train(tiny_data, recipe, folder, ONE_THREAD, ignore)
    assert spec.provenance["precision"] == "bf16"
    assert {array.dtype for array in load_file(folder.weights_path).values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_only_a_gpu_computes_is_refused_on_the_cpu(folder, tiny_data, precision):
    with pytest.raises(UsageError, match=f"{precision} training needs a GPU"):
        train(tiny_data, tiny_recipe(f"training.precision={precision}"), folder, ONE_THREAD, ignore)


def test_every_image_is_in_every_epoch_once(tiny_data, folder, monkeypatch):
    seen: list[int] = []
    take_step = run.Run._take_step

    def note(self, epoch, step, indices, pixels, rate):
        seen.extend(indices.tolist())
        take_step(self, epoch, step, indices, pixels, rate)

    monkeypatch.setattr(run.Run, "_take_step", note)
    events: list[Event] = []
    recipe = tiny_recipe("training.batch_size=7", "training.epochs=2")
    train(tiny_data, recipe, folder, ONE_THREAD, events.append)
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40))
    assert seen[:40] != seen[40:]
    assert sum(isinstance(event, EpochFinished) for event in events) == 2


def test_an_image_that_goes_away_while_training_stops_it(tmp_path, data_with_broken):
    pixels = FilePixels(data_with_broken.train, resize="crop", in_memory=False, num_threads=2)
    with pytest.raises(DataError, match=r"03\.png"):
        list(pixels.batches([np.array([0, 1]), np.array([2, 3])]))


def test_weights_name_the_contract_that_they_belong_to(uninterrupted):
    data = uninterrupted.weights_path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {CONTRACT_KEY: uninterrupted.spec().contract_sha256}
    assert hashlib.sha256(data).hexdigest() == uninterrupted.spec().provenance["weights_sha256"]


def test_without_tensorboard_there_is_a_log_and_a_note(folder, tiny_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    notes: list[str] = []
    recipe = tiny_recipe("training.epochs=1")
    train(tiny_data, recipe, folder, ONE_THREAD, lambda e: notes.append(e.message) if isinstance(e, Notice) else None)
    assert "TensorBoard is not installed: its log is not written, log.jsonl is" in notes
    assert [record.epoch for record in read_log(log_path(folder))] == [1]
    assert not (folder.checkpoints / "tensorboard").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_checkpoint_is_a_model_error(folder, tiny_data, content):
    folder.checkpoint_path.parent.mkdir(parents=True)
    folder.checkpoint_path.write_bytes(content)
    with pytest.raises(ModelError, match=r"last\.pt is not a checkpoint") as caught:
        train(tiny_data, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, resume=True), ignore)
    assert caught.value.hint == "Start again: --overwrite"


def test_other_images_of_the_same_number_are_not_gone_on_with():
    identity = describe_run(tiny_recipe(), EMPTY)
    other = dataclasses.replace(identity, data_sha256="0" * 64)
    with pytest.raises(UsageError, match="the names, classes or sizes of some images"):
        check_same_run(identity, other)


def test_where_no_validation_image_can_be_decoded_none_is_left_out(folder, data_with_broken):
    for each in data_with_broken.val:
        Path(each.path).write_bytes(b"broken")
    with pytest.raises(DataError, match="no training image, or no validation image, can be decoded"):
        train(data_with_broken, tiny_recipe(), folder, dataclasses.replace(ONE_THREAD, skip_broken=True), ignore)


def test_a_run_whose_best_weights_are_gone_is_not_gone_on_with(tmp_path, tiny_data, uninterrupted):
    folder = ModelFolder(tmp_path / "model")
    shutil.copytree(uninterrupted.path, folder.path)
    folder.write_spec(folder.spec().replace_provenance(weights_sha256="0" * 64))
    with pytest.raises(ModelError, match="no longer has the weights of the run's best epoch"):
        published_folder(folder, uninterrupted.spec().recorded_weights)


def test_of_sixteen_bits_that_diverge_more_precision_is_recommended(folder, tiny_data):
    recipe = tiny_recipe("training.learning_rate=1e5", "training.precision=bf16")
    with pytest.raises(DivergedError) as caught:
        train(tiny_data, recipe, folder, ONE_THREAD, ignore)
    assert "or more precision: --set training.precision=fp32 --overwrite" in caught.value.hint


def test_a_validation_loss_that_is_no_number_stops_the_run(folder, tiny_data, monkeypatch):
    centre_view = Validation.centre_view

    def diverged(validation: Validation) -> ValidationErrors:
        return dataclasses.replace(centre_view(validation), loss=math.inf)

    monkeypatch.setattr(Validation, "centre_view", diverged)
    with pytest.raises(DivergedError, match="the validation loss is inf in epoch 1"):
        train(tiny_data, tiny_recipe(), folder, ONE_THREAD, ignore)
    assert not folder.spec_path.exists()
