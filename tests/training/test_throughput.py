from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_helpers import tiny_recipe

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.training.log import log_path, read_log
from alexdeploy.training.pixels import FilePixels
from alexdeploy.training.throughput import SpeedMeter, loader_speed
from alexdeploy.training.trainer import TrainOptions, train

BATCHES = [np.arange(10)] * 8


class SlowPixels(FilePixels):
    """Ten images take 50 ms."""

    def __init__(self) -> None:
        super().__init__((), resize="crop", in_memory=False, num_threads=1)

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        for batch in batches:
            time.sleep(0.05)
            yield np.zeros((len(batch), 256, 256, 3), np.uint8)


def test_the_loader_alone_is_timed_over_all_batches_if_they_are_few():
    assert loader_speed(SlowPixels(), BATCHES) == pytest.approx(200, rel=0.3)


def test_the_loader_alone_is_timed_for_as_long_as_is_said():
    began = time.perf_counter()
    assert loader_speed(SlowPixels(), BATCHES * 100, seconds=0.2) == pytest.approx(200, rel=0.3)
    assert time.perf_counter() - began < 2


def test_a_loader_of_nothing_has_no_speed():
    assert loader_speed(SlowPixels(), []) == 0


def test_the_steps_alone_leave_out_what_is_between_them():
    meter = SpeedMeter(torch.device("cpu"))
    for _ in range(5):
        time.sleep(0.05)
        with meter.step(10):
            time.sleep(0.02)
    speed = meter.stop()
    assert speed.all_in_all == pytest.approx(50 / 0.35, rel=0.3)
    assert speed.steps_alone == pytest.approx(50 / 0.1, rel=0.3)


def test_an_epoch_of_no_steps_has_no_speed():
    speed = SpeedMeter(torch.device("cpu")).stop()
    assert (speed.all_in_all, speed.steps_alone) == (0.0, None)


def test_the_log_says_what_limits_training(tmp_path, tiny_data):
    """Decoding 256x256 PNG files for so small a network takes longer than its steps do, with one thread for both."""
    folder = ModelFolder(tmp_path / "model")
    options = TrainOptions(device="cpu", threads=1, cache_bytes=0)
    train(tiny_data, tiny_recipe("training.epochs=2"), folder, options, lambda event: None)
    records = read_log(log_path(folder))
    for record in records:
        assert record.step_images_per_second > record.images_per_second
    assert records[0].loader_images_per_second == records[1].loader_images_per_second > 0
