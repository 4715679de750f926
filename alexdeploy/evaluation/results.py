"""What an evaluation tells while it runs, and what it finds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from alexdeploy.engines.base import Configuration
from alexdeploy.evaluation.examples import Examples
from alexdeploy.evaluation.scoring import Answer, Score


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Sent when everything is open. `notes` state what a user might not expect.

    `artifacts` are the SHA-256 of the files that the configurations run. `batch_size` images go through all of them
    together.
    """

    model: str
    num_images: int
    contract_sha256: str
    classes: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    artifacts: tuple[str, ...]
    batch_size: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """One image: an answer for each configuration, or the error. `label` is the index of its class."""

    index: int
    source: str
    label: int
    answers: tuple[Answer, ...] = ()
    error: str | None = None


Event = Plan | ImageResult
"""The plan, once everything is open, followed by each image, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenImage:
    """An image that could not be read; it counts as wrong in every configuration."""

    source: str
    label: int
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The results of an evaluation. Labels are indices into `classes`.

    Each score is compared with the first one of the same number of views; the first one of each number of views is
    compared with the first of all.

    `num_images` is the denominator of every error and includes the `broken` images; the `num_unlabelled` images
    beside them are not included. `thumbnails` are JPEG files of the examples, by index, if the options ask for them.
    """

    format_version: int = 1
    model: str
    name: str
    contract_sha256: str
    data: str
    labels: str | None
    num_images: int
    num_broken: int
    num_unlabelled: int
    classes: tuple[str, ...]
    scores: tuple[Score, ...]
    examples: Examples
    broken: tuple[BrokenImage, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    machine: dict[str, str | int]
    interrupted: bool = False
    """Stopped early: all figures cover the first `num_images` images only."""
    thumbnails: dict[int, bytes] = field(default_factory=dict, repr=False)


def document(found: Evaluation) -> dict[str, Any]:
    """`found` as values for JSON: all of it but the thumbnails."""
    values = dataclasses.asdict(found)
    del values["thumbnails"]
    return values


def describe_exceptions(found: Evaluation) -> str:
    """Unreadable and unlabelled images, as text to follow their number; empty if there are none."""
    text = ""
    if found.num_broken:
        counts = "counts" if found.num_broken == 1 else "count"
        text += f", {found.num_broken:,} of them could not be read and {counts} as wrong"
    if found.num_unlabelled:
        text += f"; {found.num_unlabelled:,} more without a label do not count"
    return text
