"""One shard of a packed set: making it, or checking an existing one."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexdeploy.core.errors import ImageError
from alexdeploy.core.files import atomic_write, remove_file, sha256_bytes, sha256_file
from alexdeploy.core.reading import MAX_DATA_BYTES, MAX_TEXT_BYTES, decode_json, read_regular
from alexdeploy.images.decode import decode
from alexdeploy.images.originals import Original
from alexdeploy.images.packed_files import Plan, Shard, Split, to_json
from alexdeploy.images.read_ahead import num_readers
from alexdeploy.training.pixels import read_ahead
from alexdeploy.training.statistics import PixelSums, StatisticsSum

_IMAGES_PER_TASK = 16


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished shard. `broken` are the positions of the skipped images among the shard's originals, and why.

    `sums_sha256` is of the file with the sum of a training shard's images; None in records of earlier versions.
    """

    shard: Shard
    broken: dict[int, str]
    products: list[list[int]]
    sums_sha256: str | None = None


class Job(NamedTuple):
    """A shard of some of a split's originals, existing or to be made."""

    split: Split
    path: Path
    record_path: Path
    originals: Sequence[Original]

    @property
    def sums_path(self) -> Path:
        """The file with the sum of a training shard's images."""
        return self.record_path.with_suffix(".npy")


class _Part(NamedTuple):
    """Some images of a shard: the bytes to write of each decoded image, and the errors of the others."""

    encoded: list[bytes]
    broken: dict[int, str]
    sums: PixelSums


def find_record(job: Job, *, check: bool) -> Record | None:
    """The record of an intact shard, checked by size or, with `check`, by hash; None if it has to be made."""
    try:
        record = decode_json(read_regular(job.record_path, MAX_DATA_BYTES), Record)
        if job.path.stat().st_size != record.shard.num_bytes:
            return None
        # Always checked by hash: it is small compared to the shard, and is about to be added up.
        if job.split == "train":
            found = sha256_bytes(read_regular(job.sums_path, MAX_TEXT_BYTES))
            if record.sums_sha256 not in (None, found):
                return None
    except (OSError, msgspec.DecodeError):
        return None
    if check and sha256_file(job.path, record.shard.num_bytes) != record.shard.sha256:
        return None
    return record


def make_shard(job: Job, plan: Plan, num_threads: int, on_progress: Callable[[int], None]) -> Record:
    """Decode the images of a shard and write it; `on_progress` gets the number of images done. Raises OutputError."""
    remove_file(job.record_path)
    broken: dict[int, str] = {}
    begins = [0]
    sums = StatisticsSum()
    num_workers = num_readers(num_threads, (original.path for original in job.originals))
    with atomic_write(job.path) as plain:
        file = _Hashed(plain)
        for part in read_ahead(
            lambda first: _read_part(job, first, plan), range(0, len(job.originals), _IMAGES_PER_TASK), num_workers
        ):
            for encoded in part.encoded:
                file.write(encoded)
                begins.append(file.num_bytes)
            broken |= part.broken
            sums.add_sums(part.sums)
            on_progress(len(begins) - 1 + len(broken))
        if plan.jpeg_quality is not None:
            file.write(np.array(begins, "<i8").tobytes())
    result = sums.result()
    sums_sha256 = None
    if job.split == "train":
        with atomic_write(job.sums_path) as plain:
            sums_file = _Hashed(plain)
            # The sum of all images of a shard fits in 32 bits.
            np.save(sums_file, result.pixels.astype(np.uint32), allow_pickle=False)
        sums_sha256 = sums_file.digest.hexdigest()
    record = Record(
        shard=Shard(
            file=job.path.name, num_images=len(begins) - 1, num_bytes=file.num_bytes, sha256=file.digest.hexdigest()
        ),
        broken=broken,
        products=result.products.tolist(),
        sums_sha256=sums_sha256,
    )
    with atomic_write(job.record_path) as plain:
        plain.write(to_json(record))
    return record


class _Hashed:
    """A file with the hash and the length of the data written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.num_bytes += len(data)


def _read_part(job: Job, first: int, plan: Plan) -> _Part:
    encoded: list[bytes] = []
    broken: dict[int, str] = {}
    sums = StatisticsSum()
    for place, original in enumerate(job.originals[first : first + _IMAGES_PER_TASK], start=first):
        try:
            pixels = decode(original.read(), plan.resize)
        except ImageError as exc:
            broken[place] = exc.message
            continue
        if plan.jpeg_quality is None:
            encoded.append(pixels.tobytes())
        else:
            encoded.append(_to_jpeg(pixels, plan.jpeg_quality))
            # Training uses the re-decoded pixels, so the mean is measured on them.
            pixels = decode(encoded[-1], "crop")
        if job.split == "train":
            sums.add(pixels)
    return _Part(encoded, broken, sums.result())


def _to_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
