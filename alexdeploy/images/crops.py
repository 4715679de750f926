"""Cutting the views of one image in NumPy: the reference that every deployed graph is compared with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.core.spec import IMAGE_SIZE

VIEW_COUNTS = (1, 5, 10)


class View(NamedTuple):
    """One square cut from an image: its first row, its first column, and whether it is then mirrored."""

    top: int
    left: int
    mirror: bool


def view_boxes(num_views: int, size: int, image_size: int = IMAGE_SIZE) -> tuple[View, ...]:
    """The positions of the views of a square image.

    1: the centre. 5: TL, TR, BL, BR, C. 10: those five, then their mirror images in the same order.
    The centre starts at floor((image_size - size) / 2), which is 14 for 227 of 256, as in Caffe. A view is
    cut first and then mirrored: the range of offsets is odd, so the other order would be off by one pixel.
    Raises UsageError for another number of views, ImageError if the image is smaller than `size`.
    """
    return _boxes(num_views, size, image_size, image_size)


def cut_views(image: np.ndarray[Any, Any], size: int, num_views: int) -> np.ndarray[Any, Any]:
    """Cut the views of `image`, [H, W, C] of any dtype, as a new array [num_views, size, size, C].

    Raises UsageError for another number of views than 1, 5 or 10, ImageError if a side is below `size`.
    """
    if image.ndim != 3:
        raise UsageError(f"expected an array [H, W, C]; found shape {list(image.shape)}")
    height, width, channels = image.shape
    boxes = _boxes(num_views, size, height, width)
    views = np.empty((num_views, size, size, channels), image.dtype)
    for view, (top, left, mirror) in zip(views, boxes, strict=True):
        cut = image[top : top + size, left : left + size]
        view[...] = cut[:, ::-1] if mirror else cut
    return views


def _boxes(num_views: int, size: int, height: int, width: int) -> tuple[View, ...]:
    if num_views not in VIEW_COUNTS:
        raise UsageError(
            f"num_views is {num_views}; expected 1, 5 or 10.",
            hint="1 is the centre, 5 corners and centre, 10 those and their mirror images.",
        )
    if size < 1:
        raise UsageError(f"the view size is {size} pixels; expected at least 1")
    if min(height, width) < size:
        raise ImageError(f"the image is {width}x{height}, too small for views of {size}x{size}")
    bottom, right = height - size, width - size
    centre = (bottom // 2, right // 2)
    if num_views == 1:
        return (View(*centre, False),)
    places = ((0, 0), (0, right), (bottom, 0), (bottom, right), centre)
    mirrors = (False,) if num_views == 5 else (False, True)
    return tuple(View(top, left, mirror) for mirror in mirrors for top, left in places)
