"""A small real engine, and pictures it can tell apart: what the pipeline is tested with, faults included."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, check_images

COLOURS = ("red", "green", "blue")


def make_picture(colour: str, *, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, {"red": (200, 30, 20), "green": (20, 200, 30), "blue": (30, 20, 200)}[colour]).save(
        file, "JPEG"
    )
    return file.getvalue()


PICTURES = {colour: make_picture(colour) for colour in COLOURS}


@dataclass
class ColourEngine:
    """Classifies by mean colour, in NumPy. The last view of each image disagrees with the others.

    `before_run` is called with the batch by the thread that runs it: the place for slowness and faults. `refuses` says
    of an image whether it has an error instead of an answer.
    """

    options: EngineOptions = field(default_factory=EngineOptions)
    num_streams: int = 1
    artifact: str = "c0ffee" * 10 + "0000"
    before_run: Callable[[NDArray[np.uint8]], None] = lambda images: None
    refuses: Callable[[NDArray[np.uint8]], bool] = lambda image: False
    batch_sizes: list[int] = field(default_factory=list)
    is_open: bool = False
    max_running: int = 0
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            backend="colour",
            device="CPU",
            precision=self.options.precision,
            num_views=self.options.num_views,
            classes=COLOURS,
            artifact=self.artifact,
            batch_size=self.options.batch_size,
            num_streams=self.num_streams,
        )

    def __enter__(self) -> ColourEngine:
        self.is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running == 0, "closed while a batch is running"
        self.is_open = False

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        assert self.is_open
        check_images(images, self.options.batch_size)
        with self._lock:
            self.batch_sizes.append(len(images))
            self._running += 1
            self.max_running = max(self.max_running, self._running)
        try:
            self.before_run(images)
            means = images.mean(axis=(1, 2), dtype=np.float64)
            with np.errstate(invalid="ignore"):
                probabilities = (means / means.sum(axis=1, keepdims=True)).astype(np.float32)
            view_classes = np.repeat(means.argmax(axis=1)[:, None], self.options.num_views, axis=1)
            if self.options.num_views > 1:
                view_classes[:, -1] = (view_classes[:, -1] + 1) % 3
            errors = {row: "bad kernel" for row, image in enumerate(images) if self.refuses(image)}
            return Predictions(probabilities, view_classes.astype(np.int32), errors)
        finally:
            with self._lock:
                self._running -= 1
