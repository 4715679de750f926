"""The images that a conversion is checked on when no calibration images are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ImageError
from alexdeploy.core.events import Status
from alexdeploy.core.spec import ModelSpec
from alexdeploy.images.decode import decode
from alexdeploy.images.pick import pick_sources
from alexdeploy.images.preprocess import network_input

_NUM_RANDOM = 2
_NUM_REAL = 4
_NUM_SPARE = 60


class CheckImages(NamedTuple):
    """`photographs` uint8 [M, 256, 256, 3]; `inputs` float32 [N, 3, crop, crop]: random ones, then the photographs'."""

    photographs: NDArray[np.uint8]
    inputs: NDArray[np.float32]


def check_images(
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    named: str | None,
    on_event: Callable[[Status], None] = lambda event: None,
) -> CheckImages:
    """The images to check a network on: `check_photographs`, and random inputs.

    `mean_image` is float32 [3, 256, 256] where the spec has one.
    """
    origin, photographs = check_photographs(spec, named)
    message = f"checking on {_NUM_RANDOM} random inputs and {len(photographs)} images of {origin}"
    on_event(Status(message=message))
    real = np.concatenate([network_input(photograph, spec.preprocessing, 1, mean_image) for photograph in photographs])
    rng = np.random.default_rng(0)
    random = rng.normal(float(real.mean()), float(real.std()), (_NUM_RANDOM, *real.shape[1:])).astype(np.float32)
    return CheckImages(photographs, np.concatenate([random, real]))


def check_photographs(spec: ModelSpec, named: str | None) -> tuple[str, NDArray[np.uint8]]:
    """Photographs spaced evenly over `named`, which is anything that `iter_sources` accepts, and where they are from.

    They are uint8 [M, 256, 256, 3]. Raises ImageError if one of them cannot be read. From the training data, which the
    user did not name, it raises only if every image tried is unreadable.
    """
    picked = pick_sources([named] if named else None, spec, _NUM_REAL, num_spare=_NUM_SPARE)
    # The first four are spaced evenly over all images, and so are each four after them.
    stride = -(-len(picked.sources) // _NUM_REAL)
    photographs: list[NDArray[np.uint8]] = []
    for source in (source for first in range(stride) for source in picked.sources[first::stride]):
        try:
            photographs.append(decode(source.read(spec.preprocessing.resize), spec.preprocessing.resize))
        except ImageError as exc:
            if named:
                raise ImageError(f"{source.name}: {exc.message}", hint="Name photographs that can be read.") from exc
        if len(photographs) == _NUM_REAL:
            break
    if not photographs:
        raise ImageError(
            f"none of {len(picked.sources)} images of the training data, {picked.origin}, can be read",
            hint="Name photographs that can be read: --images PATH",
        )
    return picked.origin, np.stack(photographs)
