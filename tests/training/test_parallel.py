"""Training in real processes: the same network as from one, whatever happens to them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from patience import PATIENCE
from torch import nn
from torch.distributed import DistBackendError, HashStore, TCPStore
from training_helpers import TINY, forks_of_torch, tiny_recipe

from alexdeploy.core.errors import AlexDeployError, DeviceError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.training.checkpoint import Checkpoint, read_checkpoint
from alexdeploy.training.events import AlreadyFinished, EpochFinished, Event, Notice, Started, Step
from alexdeploy.training.learner import Learner
from alexdeploy.training.log import log_path, read_log
from alexdeploy.training.parallel import (
    ALONE,
    HeldInterrupts,
    ProcessGroup,
    SlicedDropout,
    _reason,
    _wait,
    held_interrupts,
    process_group,
)
from alexdeploy.training.torchrun import Launch, launched
from alexdeploy.training.trainer import RunOptions, train

ONE_THREAD = RunOptions(device="cpu", threads=1)
RESUME = dataclasses.replace(ONE_THREAD, resume=True)
RECIPE = ("architecture.dropout=0.5", "training.batch_size=7", "training.augmentation.jitter=0.2", "training.epochs=4")
"""40 images in steps of 7 or 6, 24 in all: one process has 4 or 3 rows, the other 3."""

Pair = Callable[..., list[Any]]
_group = ALONE
_stack = ExitStack()


def _environment(rank: int, port: int) -> dict[str, str]:
    """As torchrun sets it."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _join(rank: int, port: int) -> None:
    global _group
    os.environ.update(_environment(rank, port))
    _group = _stack.enter_context(process_group("cpu"))


def _leave() -> None:
    # `_stack.close` itself would be pickled, with the stack of the process that calls.
    _stack.close()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Calls a function of this module in two processes that train together; gives back both results."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = forks_of_torch()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                ProcessPoolExecutor(1, mp_context=context, initializer=_join, initargs=(rank, store.port))
            )
            for rank in range(2)
        ]

        def call(function: Callable[..., Any], *args: Any) -> list[Any]:
            results = [worker.submit(function, *args) for worker in workers]
            return [result.result(timeout=PATIENCE) for result in results]

        yield call
        call(_leave)


def _images(folder: Path) -> LabelledImages:
    data = read_image_folder(folder)
    # Not an even number of them.
    return dataclasses.replace(data, val=data.val[:-3])


def _train(
    data: Path,
    folder: Path,
    *overrides: str,
    options: RunOptions = ONE_THREAD,
    on_event: Callable[[Event], None] | None = None,
) -> list[Event]:
    """Train in this process, or in both if this is one of a pair; returns what was told here."""
    events: list[Event] = []
    # As on another machine: what only rank 0 has.
    own = ModelFolder(folder if _group.is_main else folder.with_name("elsewhere"))
    train(_images(data), tiny_recipe(*RECIPE, *overrides), own, options, on_event or events.append, _group)
    return events


def _resume(data: Path, folder: Path) -> list[Event]:
    return _train(data, folder, options=RESUME)


def _train_interrupted(data: Path, folder: Path) -> bool:
    """Whether it ended by KeyboardInterrupt, after a SIGINT for rank 0 alone."""

    def watch(event: Event) -> None:
        if isinstance(event, Step) and (event.epoch, event.step) == (2, 3):
            os.kill(os.getpid(), signal.SIGINT)

    try:
        _train(data, folder, on_event=watch)
    except KeyboardInterrupt:
        _group.interrupts.arrived.clear()
        return True
    return False


def _message(data: Path, folder: Path, *overrides: str) -> str:
    try:
        _train(data, folder, *overrides)
    except AlexDeployError as error:
        return error.message
    return ""


def _train_without_broken(data: Path, folder: Path) -> None:
    _train(data, folder, "training.epochs=1", options=dataclasses.replace(ONE_THREAD, skip_broken=True))


def _train_on_others(data: Path, other: Path, folder: Path) -> str:
    return _message(data if _group.is_main else other, folder)


def _train_asked_for(data: Path, folder: Path, overrides: list[str], changes: dict[str, Any]) -> str:
    """The second process is asked for something else than the first."""
    if _group.is_main:
        return _message(data, folder)
    try:
        _train(data, folder, *overrides, options=dataclasses.replace(ONE_THREAD, **changes))
    except AlexDeployError as error:
        return error.message
    return ""


def _num_states(data: Path, folder: Path) -> int:
    with mock.patch.object(Learner, "state", autospec=True, side_effect=Learner.state) as state:
        _train(data, folder)
    return int(state.call_count)


def _is_first_to_fail() -> bool:
    return _group.is_first_to_fail()


def _checkpoint(folder: Path) -> Checkpoint:
    return read_checkpoint(ModelFolder(folder).checkpoint_path)


def _largest_difference(found: Path, expected: Path) -> float:
    weights = _checkpoint(expected).learner["weights"]
    return max(
        float((tensor - weights[name]).abs().max()) for name, tensor in _checkpoint(found).learner["weights"].items()
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """What one process makes of 24 steps."""
    folder = tmp_path_factory.mktemp("one") / "model"
    _train(tiny_folder, folder)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, pair: Pair) -> tuple[Path, list[list[Event]]]:
    """What two processes make of them, and what each of them told."""
    folder = tmp_path_factory.mktemp("two") / "model"
    return folder, pair(_train, tiny_folder, folder)


def test_two_processes_train_the_network_of_one(one, two):
    folder, _ = two
    assert _largest_difference(folder, one) <= 1e-5
    assert _checkpoint(folder).progress.schedule.num_epochs == 4


def test_every_validation_image_counts_once(one, two):
    folder, _ = two
    for found, expected in zip(
        read_log(log_path(ModelFolder(folder))), read_log(log_path(ModelFolder(one))), strict=True
    ):
        assert found.val_top1_error == expected.val_top1_error
        assert found.val_top1_error * 13 == pytest.approx(round(found.val_top1_error * 13))
        assert found.val_loss == pytest.approx(expected.val_loss, rel=1e-5)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    found, expected = (ModelFolder(path).spec().provenance for path in (folder, one))
    assert found["val_top1_error_10_views"] == expected["val_top1_error_10_views"]


def test_only_the_first_process_tells_and_writes(two):
    folder, (told, told_by_other) = two
    assert [event.record.epoch for event in told if isinstance(event, EpochFinished)] == [1, 2, 3, 4]
    assert [event.device for event in told if isinstance(event, Started)] == ["cpu in 2 processes"]
    assert told_by_other == []
    assert [record.epoch for record in read_log(log_path(ModelFolder(folder)))] == [1, 2, 3, 4]
    assert not folder.with_name("elsewhere").exists()


def test_a_finished_run_is_finished_for_all(two, tiny_folder, pair):
    told, told_by_other = pair(_resume, tiny_folder, two[0])
    assert told == [AlreadyFinished(num_epochs=4)]
    assert told_by_other == []


def test_an_interrupt_of_one_stops_both_at_the_same_step_and_resuming_gives_the_same_bits(
    tmp_path, tiny_folder, two, pair
):
    folder = tmp_path / "model"
    assert pair(_train_interrupted, tiny_folder, folder) == [True, True]
    progress = _checkpoint(folder).progress
    assert (progress.schedule.num_epochs, progress.step) == (1, 3)
    pair(_resume, tiny_folder, folder)
    assert _largest_difference(folder, two[0]) == 0.0
    assert folder.joinpath("weights.safetensors").read_bytes() == two[0].joinpath("weights.safetensors").read_bytes()


def test_what_two_began_one_can_finish(tmp_path, tiny_folder, one, pair):
    folder = tmp_path / "model"
    pair(_train_interrupted, tiny_folder, folder)
    _resume(tiny_folder, folder)
    assert _largest_difference(folder, one) <= 1e-5


def test_layers_can_freeze_in_the_middle(tmp_path, tiny_folder, pair):
    settings = ("training.epochs=2", "training.freeze=['conv1', 'conv2']", "training.freeze_epoch=2")
    _train(tiny_folder, tmp_path / "one", *settings)
    pair(_train, tiny_folder, tmp_path / "two", *settings)
    assert _largest_difference(tmp_path / "two", tmp_path / "one") <= 1e-5


def test_broken_images_are_found_in_all_shares(tmp_path, tiny_folder, pair):
    data = tmp_path / "data"
    shutil.copytree(tiny_folder, data)
    (data / "train" / "above" / "03.png").write_bytes(b"not an image")
    (data / "train" / "below" / "18.png").write_bytes(b"")
    messages = pair(_message, data, tmp_path / "none")
    assert messages[0] == messages[1]
    assert messages[0].startswith("2 of 53 images cannot be decoded")
    assert not (tmp_path / "none").exists()
    pair(_train_without_broken, data, tmp_path / "two")
    _train_without_broken(data, tmp_path / "one")
    found, expected = (_checkpoint(tmp_path / name) for name in ("two", "one"))
    assert found.progress.broken_train == expected.progress.broken_train == (3, 38)
    # Sums of whole numbers: no rounding.
    assert found.statistics.num_images == expected.statistics.num_images == 38
    np.testing.assert_array_equal(found.statistics.mean_image, expected.statistics.mean_image)
    np.testing.assert_array_equal(found.statistics.covariance, expected.statistics.covariance)


def test_processes_that_see_other_images_are_told(tmp_path, tiny_folder, pair):
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    (other / "train" / "above" / "00.png").unlink()
    messages = pair(_train_on_others, tiny_folder, other, tmp_path / "model")
    assert messages[0] == messages[1]
    assert "training images is 40 in process 0, 39 in process 1" in messages[0]


@pytest.mark.parametrize(
    ("overrides", "changes", "difference"),
    [
        (["training.batch_size=5"], {}, "training.batch_size is 7 in process 0, 5 in process 1"),
        (["training.learning_rate=0.02"], {}, "training.learning_rate is 0.01 in process 0, 0.02 in process 1"),
        (["training.epochs=9"], {}, "training.epochs is 4 in process 0, 9 in process 1"),
        ([], {"skip_broken": True}, "--skip-broken is False in process 0, True in process 1"),
        ([], {"compile": True}, "--compile is False in process 0, True in process 1"),
    ],
)
def test_processes_that_are_asked_for_something_else_are_told_what(
    tmp_path, tiny_folder, pair, overrides, changes, difference
):
    messages = pair(_train_asked_for, tiny_folder, tmp_path / "model", overrides, changes)
    assert messages == [f"not all processes are asked for the same: {difference}"] * 2
    assert not (tmp_path / "model").exists()


def test_states_are_copied_for_the_checkpoints_of_the_first_process_alone(tmp_path, tiny_folder, pair):
    num_copies, num_copies_of_other = pair(_num_states, tiny_folder, tmp_path / "model")
    assert num_copies >= 4
    assert num_copies_of_other == 0


@pytest.mark.parametrize("has_log", [False, True])
def test_processes_started_again_without_anything_to_go_on_from_say_so(tmp_path, tiny_folder, has_log):
    group = ProcessGroup(store=HashStore())
    group.begin()
    folder = ModelFolder(tmp_path / "model")
    if has_log:
        # That of a run that ended before its first checkpoint.
        log_path(folder).parent.mkdir(parents=True)
        log_path(folder).touch()
    events: list[Event] = []
    train(_images(tiny_folder), tiny_recipe(*RECIPE, "training.epochs=1"), folder, ONE_THREAD, events.append, group)
    told = [event.message for event in events if isinstance(event, Notice) and "has no checkpoint" in event.message]
    assert len(told) == (0 if has_log else 1)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "NCCL error in: ../torch/csrc/NCCLUtils.cpp:77, invalid usage, NCCL version 2.21.5\n"
            "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
            "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
        ),
        ("NCCL error in: ../torch/csrc/NCCLUtils.cpp:77, unhandled\nLast error:\n", "NCCL error in: ../torch/csrc"),
        ("Broken pipe\nException raised from sendBytes", "Broken pipe"),
    ],
)
def test_of_what_nccl_says_the_last_error_is_shown(message, reason):
    assert _reason(DistBackendError(message)).startswith(reason)


def test_a_batch_has_an_image_for_every_process(tmp_path, tiny_folder, pair):
    messages = pair(_message, tiny_folder, tmp_path / "model", "training.batch_size=1")
    assert messages == ["2 processes would share batches of 1 images"] * 2
    assert not (tmp_path / "model").exists()


def test_of_all_that_fail_one_is_the_first(pair):
    assert sorted(pair(_is_first_to_fail)) == [False, True]


def test_the_rows_of_all_processes_are_the_batch():
    groups = [
        ProcessGroup(Launch(rank=rank, size=3, local_rank=rank, local_size=3, host="", port=0)) for rank in range(3)
    ]
    for num in range(3, 9):
        parts = [np.arange(num)[group.rows(num)] for group in groups]
        assert np.concatenate(parts).tolist() == list(range(num))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_slices_of_a_dropout_mask_are_those_of_the_whole():
    batch = torch.randn(7, 50)
    torch.manual_seed(3)
    whole = nn.Dropout(0.3)(batch)
    dropout = SlicedDropout(0.3)
    dropout.num_rows = len(batch)
    parts = []
    for rows in (slice(0, 4), slice(4, 7)):
        dropout.rows = rows
        torch.manual_seed(3)
        parts.append(dropout(batch[rows]))
    assert torch.equal(torch.cat(parts), whole)


def test_without_torchrun_there_is_one_process():
    assert launched({}) is None
    assert launched({"RANK": "1", "WORLD_SIZE": "2"}) is None
    with process_group("cpu") as group:
        assert group is ALONE


_ERROR_THEN_SIGTERM = """
import os, signal
from alexdeploy.training.parallel import HeldInterrupts, held_interrupts

signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))
try:
    with held_interrupts(HeldInterrupts()):
        raise ValueError("the reason")
except ValueError as error:
    signal.raise_signal(signal.SIGTERM)
    print(error)
"""


def test_a_reason_to_end_is_told_though_torchrun_sends_sigterm_meanwhile():
    done = subprocess.run(
        [sys.executable, "-c", _ERROR_THEN_SIGTERM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "the reason\n")


_SUICIDE = """
import os, signal, threading, time

def wait():
    while not os.path.exists("models/model/checkpoints/last.pt"):
        time.sleep(0.005)
    open("killed", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    threading.Thread(target=wait, daemon=True).start()
"""
"""A process that dies when there is a checkpoint to go on from."""


def _command(data: Path) -> list[str]:
    words = ["-m", "alexdeploy", "train", str(data), "--recipe", "alexnet-quarter", "--name", "model", "--threads", "1"]
    for setting in (*TINY, *RECIPE):
        words += ["--set", setting]
    return [*words, "--devices", "cpu", "--checkpoint-minutes", "0"]


@pytest.mark.slow
def test_after_sigkill_torchrun_begins_again_and_the_run_goes_on(tmp_path, tiny_folder, one):
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(_SUICIDE)
    model = tmp_path / "models" / "model"
    # An old model, and word to remove it, must not make the second start begin from the beginning.
    shutil.copytree(one, model)
    ModelFolder(model).checkpoint_path.unlink()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=2", "--nproc-per-node=2"]
    result = subprocess.run(
        [*launcher, *_command(tiny_folder), "--overwrite"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "faults"), *sys.path))},
        capture_output=True,
        text=True,
        # Two times three processes import PyTorch, one after the other.
        timeout=3 * PATIENCE,
    )
    assert result.returncode == 0, result.stderr
    # Not by what torchrun says of it: of two that end within one of its looks it names either.
    assert (tmp_path / "killed").exists()
    assert result.stderr.count("error: another of the processes that train together has ended") == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("resuming after") == 1
    assert result.stderr.count("wrote models/model (epoch") == 1
    assert [record.epoch for record in read_log(log_path(ModelFolder(model)))] == [1, 2, 3, 4]
    assert _largest_difference(model, one) <= 1e-5


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("cuda:0", "2 processes cannot all train on cuda:0"),
        ("cuda", "2 processes were started on this machine; PyTorch finds 0"),
    ],
)
def test_processes_without_a_gpu_each_are_refused(monkeypatch, name, error):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for key, value in _environment(0, 1).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(AlexDeployError, match=error), process_group(name):
        pass


def test_one_process_of_torchrun_trains_alone_on_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    for key, value in (_environment(0, 0) | sizes).items():
        monkeypatch.setenv(key, value)
    with process_group() as group:
        assert (group.size, group.is_main, group.device) == (1, True, "cpu")
        assert group.gather("mine") == ["mine"]
        done = []
        group.once_here(lambda: done.append(1))
        assert done == [1]
        assert group.is_first_to_fail()
        assert not group.is_first_to_fail()
    assert ALONE.is_first_to_fail()


def test_who_does_not_come_is_not_waited_for_for_ever():
    with pytest.raises(DeviceError, match=r"process 1 has not come within [0-9]+ minutes"):
        _wait(time.monotonic() - 1, "process 1 has")


def test_signals_are_left_to_the_main_thread():
    def held() -> object:
        with held_interrupts(HeldInterrupts()):
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(held).result() is signal.default_int_handler
