"""`calibration/<model>.ranges.json`: the ranges of one graph's tensors, and the images they were measured on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from alexdeploy.core.errors import ImageError, ModelError, StaleArtifactError, UsageError
from alexdeploy.core.files import atomic_write, sha256_bytes
from alexdeploy.core.processors import available_processors
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, read_regular
from alexdeploy.core.recipe import CalibrationMethod
from alexdeploy.images.read_ahead import ReadAhead
from alexdeploy.images.sources import Source, iter_sources

QMAX = 127
"""Largest magnitude of symmetric INT8; -128 is not used, so that the range is the same on both sides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRange:
    """Smallest and largest value, percentiles of |x| by percent, and the |x| that INT8 maps to 127."""

    minimum: float
    maximum: float
    percentiles: dict[str, float]
    threshold: float
    scale: float

    @property
    def largest(self) -> float:
        """The largest |x|."""
        return max(abs(self.minimum), abs(self.maximum))


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationImage:
    """An image: its name at the time, and the SHA-256 of its file."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges:
    """One measurement. `images_from` is the source that was given; `skipped` are unreadable images.

    `network_sha256` is the hash of the weights, or of an imported graph. `num_asked` is the number of images requested.
    """

    model: str
    key: str
    network_sha256: str
    contract_sha256: str
    method: CalibrationMethod
    percentile: float
    num_views: Literal[1, 10]
    seed: int
    exclude: tuple[str, ...]
    images_from: str
    num_asked: int
    num_images: int
    warnings: tuple[str, ...]
    tensors: dict[str, TensorRange]
    images: tuple[CalibrationImage, ...]
    skipped: dict[str, str]
    format_version: Literal[1] = 1

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @property
    def sha256(self) -> str:
        """Hash of the measurement and its scales, not of the file, which may be reformatted."""
        scales = {name: tensor.scale for name, tensor in sorted(self.tensors.items())}
        return sha256_bytes(msgspec.json.encode((self.key, scales)))

    @property
    def calibrate_command(self) -> str:
        """The command that repeats the measurement with the same options."""
        method = f" --percentile {self.percentile:g}" if self.method == "percentile" else ""
        return (
            f"alexdeploy calibrate {shlex.quote(self.model)} {shlex.quote(self.images_from)} --method {self.method}"
            f"{method} --views {self.num_views} --seed {self.seed} --num-images {self.num_asked}"
        )


def with_key(ranges: Ranges) -> Ranges:
    """A copy with `key`, a hash of graph, preprocessing, image contents and method."""
    parts = (
        ranges.network_sha256,
        ranges.contract_sha256,
        ranges.method,
        ranges.percentile,
        ranges.num_views,
        sorted(image.sha256 for image in ranges.images),
    )
    return dataclasses.replace(ranges, key=sha256_bytes(msgspec.json.encode(parts)))


def check_owner(path: Path, model: Path) -> None:
    """Raise UsageError if the file contains ranges of another model folder that still exists."""
    with contextlib.suppress(ModelError):
        owner = Path(read_ranges(path).model)
        if os.path.isdir(owner) and not (model.is_dir() and owner.samefile(model)):
            raise UsageError(
                f"{path} contains the ranges of {owner}; those of {model} would replace them",
                hint="Give one of the folders another name, or remove the file.",
            )


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Raises OutputError."""
    with atomic_write(path) as file:
        file.write(ranges.to_json())


def read_ranges(path: Path, model: str = "MODEL") -> Ranges:
    """Raises ModelError if the file is missing or damaged; its hint is the command that measures ranges of `model`."""
    try:
        content = read_regular(path, MAX_TEXT_BYTES)
    except OSError as exc:
        raise ModelError(
            f"no measured ranges at {path}: {exc.strerror}",
            hint=f"Measure them on real images: alexdeploy calibrate {model} IMAGES\n"
            f"or in one command: alexdeploy export {model} --int8 --calibrate IMAGES",
        ) from exc
    try:
        ranges = decode_json(content, Ranges)
    except msgspec.DecodeError as exc:
        raise ModelError(
            f"{path} is damaged: {exc}", hint=f"Measure again: alexdeploy calibrate {model} IMAGES"
        ) from exc
    for name, tensor in ranges.tensors.items():
        if not (tensor.threshold > 0 and tensor.scale > 0):
            raise ModelError(f"{path}: the scale of {name} is {tensor.scale}; it must be above 0")
    return ranges


def check_ranges(path: Path, ranges: Ranges, network_sha256: str, contract_sha256: str) -> None:
    """Raise StaleArtifactError if they are of another network or contract, or their images have changed."""
    hint = f"Measure again: {ranges.calibrate_command}"
    if ranges.contract_sha256 != contract_sha256:
        raise StaleArtifactError(
            f"{path} was measured with another architecture, preprocessing or classes than the model has now", hint=hint
        )
    if ranges.network_sha256 != network_sha256:
        raise StaleArtifactError(
            f"{path} was measured on the weights {ranges.network_sha256[:12]}, which are now {network_sha256[:12]}",
            hint=hint,
        )
    expected = {image.name: image.sha256 for image in ranges.images}
    found: set[str] = set()
    for source in named_sources(ranges.images_from, expected):
        found.add(source.name)
        try:
            digest = sha256_bytes(source.read())
        except ImageError as exc:
            raise StaleArtifactError(f"{path} was measured on {source.name}: {exc.message}", hint=hint) from exc
        if digest != expected[source.name]:
            raise StaleArtifactError(
                f"{path} was measured on {source.name} {expected[source.name][:12]}, which is now {digest[:12]}",
                hint=hint,
            )
    # If none is found, the images are on another machine: there is nothing to compare with.
    if found and (gone := sorted(set(expected) - found)):
        raise StaleArtifactError(
            f"{path} was measured on {gone[0]}, which no longer exists"
            + (f", and {len(gone) - 1} more" if gone[1:] else ""),
            hint=hint,
        )


def named_sources(origin: str, names: Collection[str]) -> Iterator[Source]:
    """The images of `origin` whose name is in `names`, each once."""
    ahead = ReadAhead(_sources_named(origin, set(names)), available_processors())
    try:
        yield from ahead
    finally:
        ahead.close()


def _sources_named(origin: str, waiting: set[str]) -> Iterator[Source]:
    for source in iter_sources([origin]):
        if source.name in waiting:
            waiting.remove(source.name)
            yield source
        if not waiting:
            return


def quantization_scale(threshold: float) -> float:
    """The scale of symmetric INT8: x / scale is rounded and saturates at -127 and 127."""
    return threshold / QMAX
