"""A data set as training sees it, independent of its form on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from alexdeploy.core.files import sha256_bytes
from alexdeploy.core.memory import host_memory
from alexdeploy.images.folder import LabelledImages
from alexdeploy.images.originals import from_labelled
from alexdeploy.images.packed import PackedSet, check_resize
from alexdeploy.images.packed_files import BROKEN_NAME, BYTES_PER_IMAGE
from alexdeploy.training.pixels import FilePixels, PackedPixels, Pixels
from alexdeploy.training.statistics import PixelSums, Statistics

_DEFAULT_CACHE_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """Both splits, decoded.

    `data_sha256` identifies the data set. `statistics` are those of the training images; None if they must be measured
    by a scan of both splits, which also finds the images that cannot be decoded. `in_memory`: the scan keeps the
    pixels, so a resumed run repeats it. `notes` are shown to the user.
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
    data: LabelledImages | PackedSet,
    resize: Literal["crop", "warp"],
    *,
    num_threads: int,
    cache_bytes: int = 0,
) -> TrainingData:
    """Open a data set for training, without decoding any image yet.

    Decoded files are kept in memory if all fit in `cache_bytes`. Raises DataError for a packed set that was not made
    with `resize`.
    """
    if isinstance(data, PackedSet):
        return _open_packed(data, resize, num_threads)
    num_bytes = (len(data.train) + len(data.val)) * BYTES_PER_IMAGE
    in_memory = num_bytes <= cache_bytes
    train, val = (
        FilePixels(examples, resize=resize, in_memory=in_memory, num_threads=num_threads)
        for examples in (data.train, data.val)
    )
    return TrainingData(
        classes=data.classes,
        train=train,
        val=val,
        data_sha256=from_labelled(data).sha256(),
        in_memory=in_memory,
    )


def _open_packed(data: PackedSet, resize: Literal["crop", "warp"], num_threads: int) -> TrainingData:
    check_resize(data.path, resize)
    index, plan = data.index, data.index.plan
    # Raw rows equal the pixels decoded from the files, so a run may resume with either. JPEG rows differ.
    sha256 = plan.sources_sha256
    if plan.jpeg_quality is not None:
        sha256 = sha256_bytes(f"{sha256} jpeg {plan.jpeg_quality}".encode())
    num_broken = index.train.num_broken + index.val.num_broken
    notes: tuple[str, ...] = ()
    if num_broken:
        notes = (
            f"{num_broken:,} of {plan.num_train + plan.num_val:,} images could not be decoded when the set was packed; "
            f"{data.path / BROKEN_NAME} names them",
        )
    sums = PixelSums(
        num_images=index.statistics.num_images,
        pixels=data.pixel_sums(),
        products=np.array(index.statistics.products, np.int64),
    )
    return TrainingData(
        classes=index.classes,
        train=PackedPixels(data.train, num_threads=num_threads),
        val=PackedPixels(data.val, num_threads=num_threads),
        data_sha256=sha256,
        statistics=sums.statistics(),
        notes=notes,
    )


def half_of_free_memory() -> int:
    """Default limit in bytes for decoded pixels in memory; 2 GB where the system does not report free memory."""
    free, _ = host_memory()
    return _DEFAULT_CACHE_BYTES if free is None else free // 2
