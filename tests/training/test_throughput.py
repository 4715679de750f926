from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from training_helpers import tiny_recipe

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.training import throughput
from alexdeploy.training.log import log_path, read_log
from alexdeploy.training.pixels import FilePixels
from alexdeploy.training.throughput import SpeedMeter, loader_speed
from alexdeploy.training.trainer import RunOptions, train

BATCHES = [np.arange(10)] * 8


class Clock:
    """Time that passes only where a test says so: the machine's own is not the same twice."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput.time, "perf_counter", clock)
    return clock


class SlowPixels(FilePixels):
    """Ten images take 50 ms."""

    def __init__(self, clock: Clock) -> None:
        super().__init__((), resize="crop", in_memory=False, num_threads=1)
        self.clock = clock
        self.num_read = 0

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        for batch in batches:
            self.clock.sleep(0.05)
            self.num_read += 1
            yield np.zeros((len(batch), 256, 256, 3), np.uint8)


def test_the_loader_alone_is_timed_over_all_batches_if_they_are_few(clock):
    assert loader_speed(SlowPixels(clock), BATCHES) == pytest.approx(200)


def test_the_loader_alone_is_timed_for_as_long_as_is_said(clock):
    pixels = SlowPixels(clock)
    assert loader_speed(pixels, BATCHES * 100, seconds=0.18) == pytest.approx(200)
    assert pixels.num_read == 4


def test_a_loader_of_nothing_has_no_speed(clock):
    assert loader_speed(SlowPixels(clock), []) == 0


def test_the_steps_alone_leave_out_what_is_between_them_and_the_first(clock):
    meter = SpeedMeter(torch.device("cpu"))
    for seconds in (0.2, 0.02, 0.02, 0.02, 0.02):
        clock.sleep(0.05)
        with meter.step(10):
            clock.sleep(seconds)
    speed = meter.stop()
    assert speed.all_in_all == pytest.approx(50 / 0.53)
    assert speed.steps_alone == pytest.approx(40 / 0.08)


def test_of_a_single_step_there_is_its_own_time(clock):
    meter = SpeedMeter(torch.device("cpu"))
    with meter.step(10):
        clock.sleep(0.05)
    assert meter.stop().steps_alone == pytest.approx(200)


def test_an_epoch_of_no_steps_has_no_speed():
    speed = SpeedMeter(torch.device("cpu")).stop()
    assert (speed.all_in_all, speed.steps_alone) == (0.0, None)


def test_the_log_says_what_limits_training(tmp_path, tiny_data):
    folder = ModelFolder(tmp_path / "model")
    options = RunOptions(device="cpu", threads=1, cache_bytes=0)
    train(tiny_data, tiny_recipe("training.epochs=2"), folder, options, lambda event: None)
    records = read_log(log_path(folder))
    assert all(record.step_images_per_second > 0 for record in records)
    assert records[0].loader_images_per_second == records[1].loader_images_per_second > 0
