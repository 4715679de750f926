"""Packing: every image decoded once, so that training only copies pixels."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import PIL

from alexdeploy.core.errors import DataError, OutputError, UsageError
from alexdeploy.core.files import atomic_write, check_output, npy_bytes, remove_file, sha256_bytes
from alexdeploy.core.processors import available_processors
from alexdeploy.core.reading import MAX_TEXT_BYTES, read_regular
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.core.version import __version__
from alexdeploy.images import packed_files
from alexdeploy.images.folder import check_both_splits
from alexdeploy.images.originals import Original, Originals
from alexdeploy.images.packed_files import ColorIndex, Index, Plan, Split, SplitIndex, to_json
from alexdeploy.images.sources import printable_path
from alexdeploy.training.shards import Job, Record, find_record, make_shard
from alexdeploy.training.statistics import PixelSums, color_axes

RAW_IMAGES_PER_SHARD = (1 << 30) // packed_files.BYTES_PER_IMAGE
JPEG_IMAGES_PER_SHARD = 20_000
_TYPICAL_JPEG_BYTES = 50_000
"""Typical size of a 256x256 photograph at quality 95 without chroma subsampling."""
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of a packed set. `jpeg_quality` None keeps raw pixels.

    `check` compares the hashes of existing shards. `overwrite` replaces a finished set, and resumes an unfinished one
    of the same images. `arguments` are the arguments of `alexdeploy prepare` that make the same set, data first and
    without the set's own folder; they appear in messages.
    """

    resize: Literal["crop", "warp"] = "crop"
    jpeg_quality: int | None = None
    num_threads: int | None = None
    overwrite: bool = False
    check: bool = False
    images_per_shard: int | None = None
    arguments: tuple[str, ...] = ("DATA",)


@dataclass(frozen=True, kw_only=True)
class BrokenOriginal:
    """An image left out of the set because it cannot be decoded."""

    split: Split
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A finished set; this run made `num_made` of its `num_shards` shards."""

    index: Index
    broken: tuple[BrokenOriginal, ...]
    num_shards: int
    num_made: int

    @property
    def num_bytes(self) -> int:
        """Total size of all shards."""
        return sum(shard.num_bytes for split in (self.index.train, self.index.val) for shard in split.shards)


def pack_images(
    originals: Originals, folder: Path, options: PackOptions, on_progress: Callable[[int, int], None]
) -> Prepared:
    """Decode all images and write the packed set `folder`; `on_progress` gets the number of images done, and the total.

    Finished shards of an earlier run are kept, so a stopped run can be resumed; the resulting set has the same bytes.
    Raises UsageError for a folder that contains something else, DataError for a split without an image that can be
    decoded, OutputError for failed writes and where the disk lacks space for the missing shards.
    """
    check_both_splits(len(originals.train), len(originals.val))
    quality = options.jpeg_quality
    plan = Plan(
        format=packed_files.FORMAT,
        resize=options.resize,
        jpeg_quality=quality,
        images_per_shard=options.images_per_shard
        or (RAW_IMAGES_PER_SHARD if quality is None else JPEG_IMAGES_PER_SHARD),
        num_train=len(originals.train),
        num_val=len(originals.val),
        sources_sha256=originals.sha256(),
        arguments=options.arguments,
    )
    plan = _begin(folder, plan, options.overwrite)
    jobs = list(_jobs(folder, plan, originals))
    records = [find_record(job, check=options.check) for job in jobs]
    missing = [job for job, record in zip(jobs, records, strict=True) if record is None]
    if missing:
        _check_space(folder, plan, sum(len(job.originals) for job in missing))
        # From here until it is finished, the set cannot be used for training.
        remove_file(folder / packed_files.INDEX_NAME)
    done, total = 0, plan.num_train + plan.num_val
    num_threads = options.num_threads or available_processors()
    finished: list[Record] = []
    for job, record in zip(jobs, records, strict=True):
        if record is None:
            record = make_shard(job, plan, num_threads, lambda num: on_progress(done + num, total))  # noqa: B023
        finished.append(record)
        done += len(job.originals)
        on_progress(done, total)
    return _finish(folder, plan, originals, jobs, finished, len(missing))


def _begin(folder: Path, plan: Plan, overwrite: bool) -> Plan:
    """Claim `folder` for this set. Returns the plan on disk, with the arguments that it was made with."""
    found, is_ours = None, False
    try:
        check_output(folder / packed_files.INDEX_NAME)
        found = packed_files.read_plan(folder)
    except DataError:
        if not overwrite:
            raise
        is_ours = True
    if found is not None:
        changes = _changes(found, plan)
        if not changes and not (overwrite and (folder / packed_files.INDEX_NAME).exists()):
            _sweep(folder)
            return found
        if not overwrite:
            raise _another_set(folder, found, plan, changes)
    if found is None and not is_ours and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists but is not a packed set", hint="Name a new or an empty folder.")
    # Checked before the existing set, whose space counts as free, is removed.
    _check_space(folder, plan, plan.num_train + plan.num_val, room=sum(path.stat().st_size for path in _shards(folder)))
    _clear(folder)
    _sweep(folder)
    with atomic_write(folder / packed_files.PLAN_NAME) as file:
        file.write(to_json(plan))
    return plan


def _another_set(folder: Path, found: Plan, asked: Plan, changes: list[str]) -> UsageError:
    message, hint = f"{folder} holds another packed set", "Replace it: --overwrite, or name another folder."
    if found.arguments != asked.arguments:
        hint = f"Go on with that: {packed_files.prepare_command(folder, found.arguments)}\n{hint}"
    elif found.sources_sha256 != asked.sources_sha256:
        # The command is the same, so the images of the unfinished set no longer exist.
        message = f"the images have changed since {folder} was packed"
    return UsageError(f"{message}: {'; '.join(changes)}", hint=hint)


def _sweep(folder: Path) -> None:
    """Remove the temporary files that a kill left behind."""
    of_splits = [f"{split}-" for split in packed_files.SPLITS]
    others = (packed_files.PLAN_NAME, packed_files.INDEX_NAME, packed_files.BROKEN_NAME, packed_files.SUMS_NAME)
    for place in (folder, folder / packed_files.RECORDS_NAME):
        for beginning in (*of_splits, *others):
            for path in place.glob(f".{beginning}*.tmp"):
                remove_file(path)


def _changes(found: Plan, asked: Plan) -> list[str]:
    """Describe the differences; empty if both plans make the same set."""
    kinds = ["raw pixels" if plan.jpeg_quality is None else f"--jpeg {plan.jpeg_quality}" for plan in (found, asked)]
    changes = [f"of {kinds[0]}, not {kinds[1]}"] if kinds[0] != kinds[1] else []
    if found.resize != asked.resize:
        changes.append(f"--resize {found.resize}, not {asked.resize}")
    if (found.num_train, found.num_val) != (asked.num_train, asked.num_val):
        numbers = [f"{plan.num_train:,} training and {plan.num_val:,} validation images" for plan in (found, asked)]
        changes.append(f"{numbers[0]}, not {numbers[1]}")
    elif found.sources_sha256 != asked.sources_sha256:
        changes.append("the names, classes or sizes of some images have changed")
    if not changes and found.images_per_shard != asked.images_per_shard:
        changes.append(f"{found.images_per_shard:,} images in a shard, not {asked.images_per_shard:,}")
    return changes


def _clear(folder: Path) -> None:
    """Remove only files that this program writes: the index first, the plan last, since it marks the folder as ours."""
    remove_file(folder / packed_files.INDEX_NAME)
    shutil.rmtree(folder / packed_files.RECORDS_NAME, ignore_errors=True)
    for path in _shards(folder):
        remove_file(path)
    for split in packed_files.SPLITS:
        remove_file(packed_files.labels_path(folder, split))
        remove_file(packed_files.names_path(folder, split))
    for name in (packed_files.BROKEN_NAME, packed_files.SUMS_NAME, packed_files.PLAN_NAME):
        remove_file(folder / name)


def _shards(folder: Path) -> list[Path]:
    return [path for split in packed_files.SPLITS for path in folder.glob(f"{split}-*.bin")]


def _jobs(folder: Path, plan: Plan, originals: Originals) -> Iterator[Job]:
    for split in packed_files.SPLITS:
        part: tuple[Original, ...] = getattr(originals, split)
        for number in range(packed_files.num_shards(len(part), plan.images_per_shard)):
            path = folder / packed_files.shard_name(split, number)
            first = number * plan.images_per_shard
            yield Job(
                split,
                path,
                folder / packed_files.RECORDS_NAME / f"{path.stem}.json",
                part[first : first + plan.images_per_shard],
            )


def _check_space(folder: Path, plan: Plan, num_images: int, *, room: int = 0) -> None:
    """Raise OutputError if `num_images` more images do not fit on the disk, where `room` bytes will become free."""
    is_raw = plan.jpeg_quality is None
    needed = num_images * (packed_files.BYTES_PER_IMAGE if is_raw else _TYPICAL_JPEG_BYTES)
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free + room
    if needed + _SPARE_BYTES <= free:
        return
    hint = "Free some space, or name a folder on another disk"
    if is_raw:
        smaller = (plan.num_train + plan.num_val) * _TYPICAL_JPEG_BYTES
        hint += f", or keep JPEGs, about {size_text(smaller)} in all: --jpeg 95"
    raise OutputError(
        f"{num_images:,} images take {'' if is_raw else 'about '}{size_text(needed)}; "
        f"there is room for {size_text(free)} at {folder}",
        hint=f"{hint}.",
    )


def _finish(
    folder: Path, plan: Plan, originals: Originals, jobs: list[Job], records: list[Record], num_made: int
) -> Prepared:
    """Combine the records of all shards and write the files derived from them, the index last."""
    broken = tuple(
        BrokenOriginal(split=job.split, name=printable_path(job.originals[place].name), reason=reason)
        for job, record in zip(jobs, records, strict=True)
        for place, reason in sorted(record.broken.items())
    )
    splits = {split: _finish_split(folder, split, jobs, records) for split in packed_files.SPLITS}
    for split, part in splits.items():
        if part.num_images == 0:
            raise DataError(
                f"none of the {part.num_broken:,} images of {split} can be decoded; the first: {broken[0].reason}"
            )
    index = Index(
        plan=plan,
        classes=originals.classes,
        train=splits["train"],
        val=splits["val"],
        statistics=_finish_statistics(folder, jobs, records, splits["train"].num_images),
        alexdeploy_version=__version__,
        pillow_version=PIL.__version__,
    )
    with atomic_write(folder / packed_files.BROKEN_NAME) as file:
        file.write(to_json(broken))
    with atomic_write(folder / packed_files.INDEX_NAME) as file:
        file.write(to_json(index))
    return Prepared(index=index, broken=broken, num_shards=len(jobs), num_made=num_made)


def _finish_split(folder: Path, split: Split, jobs: list[Job], records: list[Record]) -> SplitIndex:
    mine = [(job, record) for job, record in zip(jobs, records, strict=True) if job.split == split]
    kept = [
        original for job, record in mine for place, original in enumerate(job.originals) if place not in record.broken
    ]
    labels = npy_bytes(np.array([original.label for original in kept], np.int32))
    names = msgspec.json.encode([printable_path(original.name) for original in kept])
    for path, content in (
        (packed_files.labels_path(folder, split), labels),
        (packed_files.names_path(folder, split), names),
    ):
        with atomic_write(path) as file:
            file.write(content)
    return SplitIndex(
        num_images=len(kept),
        num_broken=sum(len(record.broken) for _, record in mine),
        labels_sha256=sha256_bytes(labels),
        names_sha256=sha256_bytes(names),
        shards=tuple(record.shard for _, record in mine),
    )


def _finish_statistics(folder: Path, jobs: list[Job], records: list[Record], num_images: int) -> ColorIndex:
    pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.int64)
    products = np.zeros((3, 3), np.int64)
    for job, record in zip(jobs, records, strict=True):
        if job.split == "train":
            pixels += np.load(io.BytesIO(read_regular(job.sums_path, MAX_TEXT_BYTES)), allow_pickle=False)
            products += np.array(record.products, np.int64)
    content = npy_bytes(pixels)
    with atomic_write(folder / packed_files.SUMS_NAME) as file:
        file.write(content)
    statistics = PixelSums(num_images=num_images, pixels=pixels, products=products).statistics()
    axes = color_axes(statistics.covariance)
    return ColorIndex(
        num_images=num_images,
        products=tuple(map(tuple, products.tolist())),
        pixel_sums_sha256=sha256_bytes(content),
        mean=tuple(statistics.mean.tolist()),
        covariance=tuple(map(tuple, statistics.covariance.tolist())),
        axes=tuple(map(tuple, axes.vectors.T.tolist())),
        std=tuple(axes.std.tolist()),
    )


def size_text(num_bytes: int) -> str:
    """Human-readable size, such as 252.4 GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"
