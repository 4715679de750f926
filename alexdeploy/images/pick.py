"""Choosing photographs to check a model on: the given ones, else its training data, else rendered pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexdeploy.core.errors import UsageError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.images.listing import is_image_name
from alexdeploy.images.named import check_named
from alexdeploy.images.shapes import CLASSES, render_image
from alexdeploy.images.sources import Source, iter_sources, printable_path

MOST_SOURCES = 100_000
"""Most images considered of one input; in a larger folder, the first ones."""


class Picked(NamedTuple):
    """`origin` describes where `sources` are from; `num_found` counts the images to pick from."""

    origin: str
    num_found: int
    sources: list[Source]


def pick_sources(named: Sequence[str] | None, spec: ModelSpec, count: int, *, num_spare: int = 0) -> Picked:
    """Pick at most `count` images, spaced evenly over all so that they cover several classes.

    `named` is what `iter_sources` accepts, and is used even if none of its images can be read. None uses the folder
    that the model was trained on if it exists and contains an image, else pictures rendered now. From training data,
    `num_spare` more are picked to replace unreadable ones. Raises UsageError for a name that does not exist.
    """
    if named:
        check_named(named)
        return Picked(", ".join(named), *_spread(iter_sources(named), count))
    trained_on = str(spec.provenance.get("data") or "")
    if trained_on and Path(trained_on).is_dir():
        # The name comes from spec.json, which is untrusted: only a folder is accepted, no list or standard input.
        found = iter_sources([os.path.join(os.curdir, trained_on)])
        picked = Picked(trained_on, *_spread(found, count + num_spare))
        if any(source.problem is None for source in picked.sources):
            return picked
    return Picked("rendered pictures", count, [_rendered(index) for index in range(count)])


def refuse_absent(sources: Sequence[Source], origin: str) -> None:
    """Raise UsageError if none of `sources`, from the list `origin`, exists: the list is for other images."""
    paths = [source.path for source in sources]
    if not paths or any(path is None or os.path.lexists(path) for path in paths):
        return
    folder = os.path.dirname(paths[0] or "")
    there: list[str] = []
    with suppress(OSError):
        there = sorted(filter(is_image_name, os.listdir(folder or os.curdir)), key=os.fsencode)
    raise UsageError(
        f"none of the {len(paths):,} images listed in {origin} exists: the list has "
        f"{sources[0].name!r}, the folder {repr(printable_path(there[0])) if there else 'no images'}.",
        hint="Names are relative to the folder of the list.",
    )


def _spread(sources: Iterable[Source], count: int) -> tuple[int, list[Source]]:
    """The number of sources, and `count` of them spaced evenly; keeps at most 2 `count` in memory."""
    kept: list[Source] = []
    step, total = 1, 0
    for source in islice(sources, MOST_SOURCES):
        if total % step == 0:
            kept.append(source)
        total += 1
        if len(kept) > 2 * count:
            kept, step = kept[::2], 2 * step
    number = min(count, len(kept))
    return total, [kept[(2 * index + 1) * len(kept) // (2 * number)] for index in range(number)]


@lru_cache(maxsize=16)
def _rendered(index: int) -> Source:
    buffer = io.BytesIO()
    render_image(index % len(CLASSES), np.random.default_rng(index)).save(buffer, "PNG")
    return Source(name=f"rendered picture {index}", data=buffer.getvalue())
