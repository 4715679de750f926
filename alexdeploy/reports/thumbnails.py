"""Photographs in a page: small, a bounded number of bytes, and what the network saw."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from alexdeploy.reports.page import text

THUMBNAIL_SIZE = 128
"""Width and height of a thumbnail in pixels; a page shows it at half of that on dense screens."""


def thumbnail(pixels: np.ndarray[Any, np.dtype[np.uint8]], size: int = THUMBNAIL_SIZE) -> bytes:
    """A JPEG file of `size` x `size` pixels, about 4 kB at 128, without metadata.

    `pixels` is uint8 [256, 256, 3], RGB, from `images.decode.decode`: the square that the network gets.
    """
    file = io.BytesIO()
    shown = Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX)
    shown.save(file, "JPEG", quality=75, optimize=True)
    return file.getvalue()


def picture(data: bytes, *, name: str, kind: str = "jpeg", size: int | None = None) -> str:
    """An `img` element that contains the file `data` of a PNG or JPEG; `name` is its text alternative."""
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    sides = "" if size is None else f' width="{size}" height="{size}"'
    return f'<img src="{uri}" alt="{text(name)}" title="{text(name)}"{sides} loading="lazy">'
