"""Training in real processes: the same network as from one, whatever happens to them."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import TCPStore
from training_helpers import tiny_recipe

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.launch import Launch, launched
from alexdeploy.images.folder import read_image_folder
from alexdeploy.training.checkpoint import checkpoint_path, read_checkpoint
from alexdeploy.training.events import EpochFinished, EpochRecord, Event
from alexdeploy.training.log import log_path, read_log
from alexdeploy.training.parallel import ProcessGroup, SlicedDropout, process_group
from alexdeploy.training.trainer import TrainOptions, train

_SECONDS = 60
ONE_THREAD = TrainOptions(device="cpu", threads=1)
RECIPE = ("architecture.dropout=0.5", "training.batch_size=7", "training.augmentation.jitter=0.2")
"""40 images in 6 steps of 7 or 6: one process has 4 rows where the other has 3."""

Pair = Callable[..., list[Any]]
_group: ProcessGroup
_stack = ExitStack()


def _join(rank: int, port: int) -> None:
    global _group
    torch.set_num_threads(1)
    os.environ.update(_environment(rank, port))
    _group = _stack.enter_context(process_group("cpu"))


def _environment(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Calls a function of this module in two processes that train together; gives back both results."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                ProcessPoolExecutor(1, mp_context=context, initializer=_join, initargs=(rank, store.port))
            )
            for rank in range(2)
        ]

        def call(function: Callable[..., Any], *args: Any) -> list[Any]:
            results = [worker.submit(function, *args) for worker in workers]
            return [result.result(timeout=_SECONDS) for result in results]

        yield call
        call(_stack.close)


def _train(data: Path, folder: Path, overrides: tuple[str, ...], options: TrainOptions = ONE_THREAD) -> list[Event]:
    events: list[Event] = []
    recipe = tiny_recipe(*RECIPE, *overrides)
    group = {"group": _group} if launched() else {}
    spec = train(read_image_folder(data), recipe, ModelFolder(folder), options, events.append, **group)
    return [*events, spec]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(checkpoint_path(ModelFolder(folder))).learner["weights"]


def _largest_difference(folder: Path, other: Path) -> float:
    found, expected = _weights(folder), _weights(other)
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """What one process makes of 24 steps."""
    folder = tmp_path_factory.mktemp("one") / "model"
    _train(tiny_folder, folder, ("training.epochs=4",))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, pair: Pair) -> tuple[Path, list[list[Event]]]:
    """What two processes make of them, and what each told."""
    folder = tmp_path_factory.mktemp("two") / "model"
    return folder, pair(_train, tiny_folder, folder, ("training.epochs=4",))


def test_two_processes_train_the_network_of_one(one, two):
    assert _largest_difference(two[0], one) <= 1e-5
