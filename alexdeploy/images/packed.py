"""Reading a packed set: images decoded once to 256x256, in memory-mapped shards; see packed_files.py."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DataError, ImageError
from alexdeploy.core.files import sha256_bytes
from alexdeploy.core.reading import MAX_DATA_BYTES, decode_json, open_regular, read_regular
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.images.decode import decode
from alexdeploy.images.listing import describe
from alexdeploy.images.packed_files import (
    BYTES_PER_IMAGE,
    INDEX_NAME,
    PLAN_NAME,
    RECORDS_NAME,
    SPLITS,
    SUMS_NAME,
    Index,
    Plan,
    Shard,
    Split,
    SplitIndex,
    damaged,
    labels_path,
    names_path,
    num_shards,
    read_json,
    read_plan,
)

_SHARD_NAME = re.compile(r"(train|val)-\d{5,}\.bin")
_OTHER_FILES = 256
"""Open files reserved for everything except shards."""
_PPM_HEADER = f"P6 {IMAGE_SIZE} {IMAGE_SIZE} 255\n".encode()


class PackedImages:
    """The images of one split. Shards are memory-mapped: their data is only in the page cache, not copied."""

    def __init__(self, folder: Path, split: Split, index: SplitIndex, plan: Plan, labels: NDArray[np.int64]) -> None:
        self.resize = plan.resize
        self.folder = folder
        self._split = split
        self._names_sha256 = index.names_sha256
        self.labels = labels
        self._is_jpeg = plan.jpeg_quality is not None
        self._firsts = np.cumsum([0, *(shard.num_images for shard in index.shards)])
        self._shards = [
            _map(folder / shard.file) if shard.num_bytes else np.empty(0, np.uint8) for shard in index.shards
        ]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The original names of the images, relative to their data set. Raises DataError."""
        path = names_path(self.folder, self._split)
        try:
            data = read_regular(path, MAX_DATA_BYTES)
        except OSError as exc:
            raise damaged(self.folder, f"{path} cannot be read: {describe(exc)}") from exc
        if sha256_bytes(data) != self._names_sha256:
            raise damaged(self.folder, f"{path} is not the file that was written")
        return decode_json(data, tuple[str, ...])

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [N, 256, 256, 3]. Raises DataError for a damaged JPEG."""
        images = np.empty((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = self._pixels(int(index))
        return images

    def encoded(self, index: int) -> bytes:
        """The image as a file: the JPEG, or a PPM of the row."""
        stored = self._stored(index).tobytes()
        return stored if self._is_jpeg else _PPM_HEADER + stored

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        stored = self._stored(index)
        if not self._is_jpeg:
            return stored.reshape(IMAGE_SIZE, IMAGE_SIZE, 3)
        try:
            # The sides are already 256: neither resize policy changes it.
            return decode(stored.tobytes(), "crop")
        except ImageError as exc:
            raise damaged(self.folder, f"{self.names[index]} in {self.folder}: {exc.message}") from exc

    def _stored(self, index: int) -> NDArray[np.uint8]:
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        shard, row = self._shards[number], index - int(self._firsts[number])
        if not self._is_jpeg:
            return shard[row * BYTES_PER_IMAGE : (row + 1) * BYTES_PER_IMAGE]
        num_images = int(self._firsts[number + 1] - self._firsts[number])
        begins = shard[len(shard) - 8 * (num_images + 1) :].view("<i8")
        return shard[int(begins[row]) : int(begins[row + 1])]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSet:
    """An open, finished set."""

    path: Path
    index: Index
    train: PackedImages
    val: PackedImages

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    def pixel_sums(self) -> NDArray[np.int64]:
        """int64 [256, 256, 3], the sum of all training images. Raises DataError."""
        return _read_array(self.path, self.path / SUMS_NAME, self.index.statistics.pixel_sums_sha256)


def is_packed(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is a packed set, finished or not."""
    try:
        return read_plan(Path(folder)) is not None
    except DataError:
        return True


def open_packed(folder: str | os.PathLike[str]) -> PackedSet:
    """Open a finished set.

    Checks the sizes of all shards, the hashes of labels and names, and the counts. Checking the shards' hashes would
    read all data; `alexdeploy prepare ... --check` does that. Raises DataError for an unfinished or damaged set, with
    the command that repairs it.
    """
    path = Path(folder)
    plan = read_plan(path)
    if plan is None:
        raise DataError(
            f"{path} is not a packed set: it has no {PLAN_NAME}", hint="Make one: alexdeploy prepare DATA OUT"
        )
    if not os.path.isfile(path / INDEX_NAME):
        raise damaged(path, f"{path} is not finished: {_how_far(path, plan)}", verb="Resume it")
    index: Index = read_json(path / INDEX_NAME, Index)
    if index.plan != plan:
        raise damaged(path, f"{path / INDEX_NAME} belongs to another set than {path / PLAN_NAME}")
    _allow_open_files(len(index.train.shards) + len(index.val.shards) + _OTHER_FILES)
    train, val = (_open_split(path, split, getattr(index, split), index) for split in SPLITS)
    return PackedSet(path=path, index=index, train=train, val=val)


def _open_split(folder: Path, split: Split, part: SplitIndex, index: Index) -> PackedImages:
    for shard in part.shards:
        _check_size(folder, shard)
        _check_fit(folder, shard, is_jpeg=index.plan.jpeg_quality is not None)
    labels = _read_array(folder, labels_path(folder, split), part.labels_sha256).astype(np.int64)
    counts = {part.num_images, sum(shard.num_images for shard in part.shards), labels.size}
    if split == "train":
        counts.add(index.statistics.num_images)
    if len(counts) > 1 or part.num_images < 1 or labels.ndim != 1:
        raise damaged(folder, f"{folder / INDEX_NAME} counts the images of {split} as {sorted(counts)}")
    if labels.min() < 0 or labels.max() >= len(index.classes):
        raise damaged(
            folder,
            f"{labels_path(folder, split)} contains labels from {labels.min()} to {labels.max()}; "
            f"expected 0 to {len(index.classes) - 1}",
        )
    return PackedImages(folder, split, part, index.plan, labels)


def _allow_open_files(num_files: int) -> None:
    """Raise this process's limit of open files for `num_files` shards, as far as the system allows."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num_files:
        with suppress(OSError, ValueError):
            wanted = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        with open_regular(path) as file:
            return np.memmap(file, np.uint8, mode="r")
    except OSError as exc:
        hint = "Allow more open files: ulimit -n 10240" if exc.errno in (errno.EMFILE, errno.ENFILE) else None
        raise DataError(f"{path} cannot be opened: {describe(exc)}", hint=hint) from exc


def check_resize(folder: str | os.PathLike[str], resize: str) -> None:
    """Raise DataError if `folder` is a packed set whose images were made with another resize policy."""
    plan = read_plan(Path(folder))
    if plan is not None and plan.resize != resize:
        raise DataError(
            f"{os.fspath(folder)} was packed with --resize {plan.resize}; expected {resize}",
            hint=f"Pack the images again: alexdeploy prepare {shlex.quote(plan.arguments[0])} OUT --resize {resize}",
        )


def _how_far(folder: Path, plan: Plan) -> str:
    total = sum(num_shards(num, plan.images_per_shard) for num in (plan.num_train, plan.num_val))
    done = len(list((folder / RECORDS_NAME).glob("*.json")))
    return f"{done} of {total} shards are written"


def _check_size(folder: Path, shard: Shard) -> None:
    # The name comes from a file: it must not point outside the folder.
    if not _SHARD_NAME.fullmatch(shard.file):
        raise damaged(folder, f"{folder / INDEX_NAME} names a shard {shard.file!r}")
    path = folder / shard.file
    try:
        found = path.stat().st_size
    except OSError as exc:
        raise damaged(folder, f"{path} is missing") from exc
    if found != shard.num_bytes:
        raise damaged(folder, f"{path} has {found:,} bytes; expected {shard.num_bytes:,}")


def _check_fit(folder: Path, shard: Shard, *, is_jpeg: bool) -> None:
    """Raise DataError if the size of a shard does not fit its images."""
    # For JPEGs, only the offsets of each image and of the end are known.
    least = 8 * (shard.num_images + 1) if is_jpeg else shard.num_images * BYTES_PER_IMAGE
    if shard.num_images < 0 or shard.num_bytes < least or (not is_jpeg and shard.num_bytes > least):
        raise damaged(
            folder,
            f"{folder / INDEX_NAME}: {shard.file} has {shard.num_bytes:,} bytes for {shard.num_images:,} images; "
            f"expected {'at least ' if is_jpeg else ''}{least:,}",
        )


def _read_array(folder: Path, path: Path, sha256: str) -> NDArray[np.int64]:
    try:
        content = read_regular(path, MAX_DATA_BYTES)
    except OSError as exc:
        raise damaged(folder, f"{path} cannot be read: {describe(exc)}") from exc
    if sha256_bytes(content) != sha256:
        raise damaged(folder, f"SHA-256 mismatch: {path} is not the file that was written")
    try:
        array: NDArray[np.int64] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as exc:
        raise damaged(folder, f"{path} is damaged: {exc}") from exc
    return array
