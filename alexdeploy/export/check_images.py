"""A few network inputs to check a conversion on, where no calibration images are named."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import ImageError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.images import sample
from alexdeploy.images.decode import ResizePolicy, decode
from alexdeploy.images.listing import walk_images
from alexdeploy.images.preprocess import network_input
from alexdeploy.images.sources import iter_sources, read_file

_NUM_RANDOM = 2
_NUM_REAL = 4
_MOST_FILES = 100_000
_MOST_CANDIDATES = 64


def check_images(
    folder: ModelFolder,
    spec: ModelSpec,
    named: str | None,
    on_step: Callable[[str], None] = lambda message: None,
) -> NDArray[np.float32]:
    """Network inputs to check on, float32 [N, 3, crop, crop]: some random, some from real photographs.

    `named` is anything that `iter_sources` takes. Raises ImageError if one of its first images cannot be read.
    """
    steps, mean = spec.preprocessing, folder.mean_image(spec)
    origin = named or str(spec.provenance.get("data") or "")
    photographs = _named_photographs(named, steps.resize) if named else _training_photographs(origin, steps.resize)
    if not photographs:
        origin = "rendered pictures"
        photographs = [_rendered(index, steps.resize) for index in range(_NUM_REAL)]
    on_step(f"checking on {_NUM_RANDOM} random inputs and {len(photographs)} images of {origin}")
    real = np.concatenate([network_input(photograph, steps, 1, mean) for photograph in photographs])
    rng = np.random.default_rng(0)
    random = rng.normal(float(real.mean()), float(real.std()), (_NUM_RANDOM, *real.shape[1:])).astype(np.float32)
    return np.concatenate([random, real])


def _named_photographs(named: str, resize: ResizePolicy) -> list[NDArray[np.uint8]]:
    photographs = []
    for source in islice(iter_sources([named]), _NUM_REAL):
        try:
            photographs.append(decode(source.read(), resize))
        except ImageError as exc:
            raise ImageError(f"{source.name}: {exc.message}", cure="Name photographs that can be read.") from exc
    return photographs


def _training_photographs(origin: str, resize: ResizePolicy) -> list[NDArray[np.uint8]]:
    """Up to four images from all over the folder `origin`, so of several classes; none if it is not a folder here.

    The name comes from `spec.json`, whoever wrote that: it is never read as a list, a pattern or an archive.
    """
    photographs: list[NDArray[np.uint8]] = []
    if not origin or not Path(origin).is_dir():
        return photographs
    files = (found.path for found in walk_images(origin) if found.problem is None)
    for path in _spread(islice(files, _MOST_FILES)):
        with suppress(ImageError):
            photographs.append(decode(read_file(path, was_listed=True), resize))
        if len(photographs) == _NUM_REAL:
            break
    return photographs


def _spread(paths: Iterable[str]) -> list[str]:
    """At most 64 of `paths`, ordered so that the first four, and every four after them, lie evenly over all."""
    kept: list[str] = []
    step = 1
    for index, path in enumerate(paths):
        if index % step == 0:
            kept.append(path)
        if len(kept) > _MOST_CANDIDATES:
            kept, step = kept[::2], 2 * step
    stride = -(-len(kept) // _NUM_REAL)
    return [path for first in range(stride) for path in kept[first::stride]]


def _rendered(index: int, resize: ResizePolicy) -> NDArray[np.uint8]:
    picture = sample.render_image(index % len(sample.CLASSES), np.random.default_rng(index))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return decode(buffer.getvalue(), resize)
