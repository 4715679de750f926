"""Photographs in a page: small, a bounded number of bytes, and what the network saw."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
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
    return f'<img src="{uri}" alt="{text(name)}" title="{text(name)}"{sides}>'


def gallery(cards: Sequence[str]) -> str:
    """Cards side by side, as many as a line of the page has room for."""
    return '<div class="gallery">\n' + "\n".join(cards) + "\n</div>"


def card(thumbnails: Sequence[bytes | None], name: str, words: Sequence[str]) -> str:
    """One photograph, or several forms of it, above the HTML lines `words` and its file name.

    A thumbnail None leaves a frame: the photograph could not be read again.
    """
    shown = [
        '<div class="none"></div>' if data is None else picture(data, name=name, size=THUMBNAIL_SIZE)
        for data in thumbnails
    ]
    file_name = re.split(r"[/\\]", name)[-1]
    lines = [*words, f'<span class="file" title="{text(name)}">{text(file_name)}</span>']
    return f"<div>{''.join(shown)}{'<br>'.join(lines)}</div>"
