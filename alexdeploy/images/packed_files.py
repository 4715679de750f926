"""The files of a packed set: their names, and the contents of its metadata files.

plan.json          the sources and options of the set, written first
train-00000.bin    a shard: consecutive rows of uint8 [256, 256, 3], or JPEGs followed by their offsets
records/           for each finished shard, the results of making it
train-labels.npy   int32, and train-names.json, of all images; the same for val
pixel-sums.npy     int64 [256, 256, 3], the sum of all training images
broken.json        the images that could not be decoded and are in no shard
index.json         shards, counts, hashes and statistics, written last: a set without it is unfinished
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from alexdeploy.core.errors import DataError
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, read_regular
from alexdeploy.core.spec import IMAGE_SIZE

FORMAT = "alexdeploy-packed-1"
BYTES_PER_IMAGE = IMAGE_SIZE * IMAGE_SIZE * 3
INDEX_NAME, PLAN_NAME, BROKEN_NAME, SUMS_NAME = "index.json", "plan.json", "broken.json", "pixel-sums.npy"
RECORDS_NAME = "records"
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The sources and options of a set. `jpeg_quality` None means raw rows.

    `arguments` are those of `alexdeploy prepare`, data first, without the set's own folder.
    """

    format: str
    resize: Literal["crop", "warp"]
    jpeg_quality: int | None
    images_per_shard: int
    num_train: int
    num_val: int
    sources_sha256: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A finished file of images."""

    file: str
    num_images: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitIndex:
    """The shards of a split in the order of its images, and the hashes of its labels and names."""

    num_images: int
    num_broken: int
    labels_sha256: str
    names_sha256: str
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColorIndex:
    """Statistics of all training pixels, RGB from 0 to 255: `products` are the sums of products of each two channels.

    The mean, the covariance and its axes (one per row, the largest `std` first) follow from the sums and are only for
    people who read the file.
    """

    num_images: int
    products: tuple[tuple[int, ...], ...]
    pixel_sums_sha256: str
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    axes: tuple[tuple[float, ...], ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The contents of a finished set."""

    plan: Plan
    classes: tuple[str, ...]
    train: SplitIndex
    val: SplitIndex
    statistics: ColorIndex
    alexdeploy_version: str
    pillow_version: str


def read_plan(folder: Path) -> Plan | None:
    """The plan of a packed set; None if `folder` is not one. Raises DataError for a plan that cannot be read."""
    path = folder / PLAN_NAME
    try:
        data = read_regular(path, MAX_TEXT_BYTES)
    except OSError:
        return None
    if b'"alexdeploy-packed-' not in data[:100]:
        return None
    if f'"{FORMAT}"'.encode() not in data[:100]:
        raise DataError(
            f"{path} has another format than {FORMAT}",
            hint="Use the version of alexdeploy that wrote it, or pack the images again.",
        )
    plan: Plan = read_json(path, Plan)
    return plan


def prepare_command(folder: Path, arguments: tuple[str, ...]) -> str:
    """The command that finishes or repairs a set."""
    return shlex.join(("alexdeploy", "prepare", *arguments[:1], os.fspath(folder), *arguments[1:]))


def damaged(folder: Path, message: str, *, verb: str = "Repair it") -> DataError:
    """An error with `message` and the command that repairs the set."""
    plan = read_plan(folder)
    command = "alexdeploy prepare" if plan is None else prepare_command(folder, plan.arguments)
    return DataError(message, hint=f"{verb}: {command}{' --check' if verb == 'Repair it' else ''}")


def labels_path(folder: Path, split: Split) -> Path:
    return folder / f"{split}-labels.npy"


def names_path(folder: Path, split: Split) -> Path:
    return folder / f"{split}-names.json"


def shard_name(split: Split, number: int) -> str:
    return f"{split}-{number:05d}.bin"


def num_shards(num_images: int, images_per_shard: int) -> int:
    return -(-num_images // images_per_shard)


def to_json(value: object) -> bytes:
    """The JSON encoding used in the files of a set."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def read_json(path: Path, kind: Any) -> Any:
    try:
        return decode_json(read_regular(path, MAX_TEXT_BYTES), kind)
    except (OSError, msgspec.DecodeError) as exc:
        raise DataError(
            f"{path} is damaged: {exc}", hint="Pack the set again: alexdeploy prepare ... --overwrite"
        ) from exc
