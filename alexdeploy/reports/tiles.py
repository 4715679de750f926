"""Kernels and activation maps as pictures of exact pixels: tiles in rows, PNG, and animated PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]

COLUMNS = 16
"""Tiles in a row, as in figure 3 of Krizhevsky et al. 2012."""

GAP, TOWER_GAP = 2, 10
"""White pixels between two tiles, and between the tiles of two towers."""

_TILE = 44
"""About the size of a tile in pixels: an 11x11 kernel with 4 pixels for each weight."""

_CAPTION_HEIGHT = 20


def scale_of(side: int) -> int:
    """Pixels for each side of a value, so that a tile of `side` values is about 44 pixels wide; at least 1."""
    return max(1, round(_TILE / side))


def kernel_pixels(kernels: NDArray[np.floating]) -> Pixels:
    """RGB kernels [C, 3, K, K] -> uint8 [C, K, K, 3]: of each kernel, the least weight is 0 and the largest 255.

    One scale for the three channels of a kernel, so that a kernel without colour is grey. A constant kernel is 128.
    """
    wide = kernels.astype(np.float64).transpose(0, 2, 3, 1)
    least, most = (pick(wide, axis=(1, 2, 3), keepdims=True) for pick in (np.min, np.max))
    span = most - least
    levels = np.where(span > 0, 255 * (wide - least) / np.where(span > 0, span, 1), 128)
    return np.rint(levels).astype(np.uint8)


def map_pixels(maps: NDArray[np.floating]) -> Pixels:
    """The maps of one layer -> uint8 of the same shape, all on one scale: 0 is black and the largest value white.

    Between them, the brightness is the square root of the share: few values of a layer are large. If there are negative
    values, 0 is grey (128) and the largest magnitude black or white.
    """
    wide = maps.astype(np.float64)
    most = float(np.abs(wide).max(initial=0.0)) or 1.0
    share = np.sign(wide) * np.sqrt(np.abs(wide) / most)
    levels: NDArray[np.float64] = 255 * share if wide.min(initial=0.0) >= 0 else 128 + 127 * share
    return np.rint(levels).astype(np.uint8)


def tile(pictures: Pixels, *, towers: int = 1, scale: int = 1) -> Pixels:
    """Pictures [N, H, W] or [N, H, W, 3] in rows of 16, the rows of each tower below those of the one before.

    Each value becomes `scale` x `scale` equal pixels. Between tiles it is white. `towers` must divide N.
    """
    height, width = (scale * side for side in pictures.shape[1:3])
    per_tower = len(pictures) // towers
    columns = min(COLUMNS, per_tower)
    rows = math.ceil(per_tower / columns)
    block = rows * (height + GAP) - GAP
    shape = (towers * (block + TOWER_GAP) - TOWER_GAP, columns * (width + GAP) - GAP, *pictures.shape[3:])
    drawn = np.full(shape, 255, np.uint8)
    for index, picture in enumerate(pictures.repeat(scale, axis=1).repeat(scale, axis=2)):
        tower, place = divmod(index, per_tower)
        row, column = divmod(place, columns)
        top, left = tower * (block + TOWER_GAP) + row * (height + GAP), column * (width + GAP)
        drawn[top : top + height, left : left + width] = picture
    return drawn


def png(pixels: Pixels) -> bytes:
    """A PNG file of uint8 [H, W] or [H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def animated_png(frames: Iterable[tuple[str, Pixels]], *, frame_ms: int, last_ms: int) -> bytes:
    """An animated PNG that repeats, of captions and uint8 [H, W, 3]; each caption is below its pixels."""
    images = [_captioned(pixels, caption) for caption, pixels in frames]
    durations: Sequence[int] = [*[frame_ms] * (len(images) - 1), last_ms]
    file = io.BytesIO()
    images[0].save(file, "PNG", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return file.getvalue()


def _captioned(pixels: Pixels, caption: str) -> Image.Image:
    height, width = pixels.shape[:2]
    image: Any = Image.new("RGB", (width, height + _CAPTION_HEIGHT), "white")
    image.paste(Image.fromarray(pixels), (0, 0))
    ImageDraw.Draw(image).text((2, height + 4), caption, fill=(60, 60, 60))
    return image  # type: ignore[no-any-return]
