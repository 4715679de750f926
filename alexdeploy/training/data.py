"""A data set as training sees it, whatever form it has on disk."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.images.folder import LabelledImages
from alexdeploy.training.pixels import FilePixels, Pixels
from alexdeploy.training.statistics import Statistics

BYTES_PER_IMAGE = IMAGE_SIZE * IMAGE_SIZE * 3
_DEFAULT_CACHE_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """Both splits, decoded.

    `data_sha256` tells data sets apart. `statistics` are those of the training images; None where they have to be
    measured, by a scan of both splits, which also finds the images that cannot be decoded. `in_memory`: that scan
    keeps the pixels, so that a resumed run does it again. `notes` are for the user.
    """

    classes: tuple[str, ...]
    train: Pixels
    val: Pixels
    data_sha256: str
    statistics: Statistics | None = None
    in_memory: bool = False
    notes: tuple[str, ...] = ()

    @property
    def num_train(self) -> int:
        return len(self.train.labels)

    @property
    def num_val(self) -> int:
        return len(self.val.labels)


def open_data(
    data: LabelledImages, resize: Literal["crop", "warp"], *, num_threads: int, cache_bytes: int | None = None
) -> TrainingData:
    """Make it ready for training; nothing is decoded yet.

    Decoded files are kept in memory if all fit `cache_bytes`; None stands for half of the memory that is free.
    """
    num_bytes = (len(data.train) + len(data.val)) * BYTES_PER_IMAGE
    in_memory = num_bytes <= (_half_of_free_memory() if cache_bytes is None else cache_bytes)
    train, val = (
        FilePixels(examples, resize=resize, in_memory=in_memory, num_threads=num_threads)
        for examples in (data.train, data.val)
    )
    return TrainingData(classes=data.classes, train=train, val=val, data_sha256=fingerprint(data), in_memory=in_memory)


def fingerprint(data: LabelledImages) -> str:
    """SHA-256 over the classes and, of every image in order, its split, relative path, label and size in bytes."""
    digest = hashlib.sha256(repr(data.classes).encode())
    folders = {os.path.dirname(os.path.abspath(example.path)) for example in (*data.train, *data.val)}
    root = os.path.commonpath(folders) if folders else ""
    for split, examples in (("train", data.train), ("val", data.val)):
        for path, label in sorted(examples):
            name = os.path.relpath(os.path.abspath(path), root).replace(os.sep, "/")
            size = -1
            with suppress(OSError):
                size = os.path.getsize(path)
            digest.update(os.fsencode(f"{split}\0{name}\0{label}\0{size}\n"))
    return digest.hexdigest()


def _half_of_free_memory() -> int:
    limits = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        # A container's own limit, which /proc/meminfo does not know ("max" where there is none).
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits) // 2 if limits else _DEFAULT_CACHE_BYTES
