"""Batches that are read while others are learned: in order, and not more of them than memory is for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from alexdeploy.training import pixels
from alexdeploy.training.pixels import read_batches

BYTES = 256 * 256 * 3
BATCHES = [np.arange(first, first + num) for first, num in ((0, 7), (7, 7), (14, 6), (20, 6), (26, 6))]


class Loader:
    """Images full of their index; `calls` has how many were asked for at a time."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def load(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.calls.append(len(indices))
        return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), 256, 256, 3)).copy()


@pytest.mark.parametrize("num_fitting", [0, 2, 3, 4, 100])
@pytest.mark.parametrize("num_workers", [1, 4, 9])
def test_batches_come_in_order_however_they_are_shared_out(monkeypatch, num_fitting, num_workers):
    monkeypatch.setattr(pixels, "_AHEAD_BYTES", num_fitting * 7 * BYTES)
    found = [images[:, 0, 0, 0].tolist() for images in read_batches(Loader().load, BATCHES, num_workers)]
    assert found == [batch.tolist() for batch in BATCHES]


@pytest.mark.parametrize(("num_fitting", "num_begun"), [(0, 2), (3, 3), (100, 5)])
def test_no_more_is_read_ahead_than_fits_and_two_batches_always(monkeypatch, num_fitting, num_begun):
    monkeypatch.setattr(pixels, "_AHEAD_BYTES", num_fitting * 4 * BYTES)
    taken: list[int] = []

    def batches():
        for number in range(20):
            taken.append(number)
            yield np.arange(4)

    reading = read_batches(Loader().load, batches(), 4)
    next(reading)
    # The one that was given out, and those that wait.
    assert len(taken) == 1 + num_begun
    reading.close()


def test_workers_share_out_batches_that_are_too_large_for_one_each(monkeypatch):
    monkeypatch.setattr(pixels, "_AHEAD_BYTES", 0)
    loader = Loader()
    list(read_batches(loader.load, [np.arange(8)] * 3, 4))
    assert loader.calls == [2] * 12


def test_without_batches_nothing_is_read():
    assert list(read_batches(Loader().load, [], 4)) == []


def test_an_error_in_a_share_comes_out(monkeypatch):
    monkeypatch.setattr(pixels, "_AHEAD_BYTES", 0)

    def fail(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        raise OSError(f"image {indices[0]}")

    with pytest.raises(OSError, match="image"):
        list(read_batches(fail, BATCHES, 4))
