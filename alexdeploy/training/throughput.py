"""Training throughput, and whether it is limited by loading images or by the training steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from alexdeploy.training.pixels import Pixels

_LOADER_SECONDS = 1.0


def loader_speed(pixels: Pixels, batches: Sequence[NDArray[np.int64]], seconds: float = _LOADER_SECONDS) -> float:
    """Images per second that `pixels` yields while nothing else runs, over the first batches of an epoch.

    Stops after `seconds`, or after the last batch. Training reads these batches again.
    """
    num, elapsed, began = 0, 0.0, time.perf_counter()
    for batch in pixels.batches(batches):
        num += len(batch)
        elapsed = time.perf_counter() - began
        if elapsed >= seconds:
            break
    return num / elapsed if num else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Images per second of an epoch, and of its steps alone; None if there were none."""

    all_in_all: float
    steps_alone: float | None


class SpeedMeter:
    """Counts the images of an epoch, and the time of its steps alone, without waits for images or saving.

    On a GPU, CUDA events time the steps: a step runs long after it was queued, also while this process waits for
    images. The first step, which selects or compiles kernels, is excluded if there are more.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.perf_counter()
        self._sizes: list[int] = []
        self._seconds: list[float] = []
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def step(self, num_images: int) -> Iterator[None]:
        """Time the block as one step."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record(torch.cuda.current_stream(self._device))
            yield
            end.record(torch.cuda.current_stream(self._device))
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds.append(time.perf_counter() - began)
        self._sizes.append(num_images)

    @property
    def images_per_second(self) -> float:
        """Average since the meter was created."""
        return sum(self._sizes) / (time.perf_counter() - self._began)

    def stop(self) -> Speed:
        """The speeds of the epoch; on a GPU this waits for the last step."""
        all_in_all = self.images_per_second
        for start, end in self._events:
            end.synchronize()
            self._seconds.append(start.elapsed_time(end) / 1000)
        first = 1 if len(self._sizes) > 1 else 0
        seconds = sum(self._seconds[first:])
        return Speed(all_in_all=all_in_all, steps_alone=sum(self._sizes[first:]) / seconds if seconds else None)
