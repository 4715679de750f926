"""Text in pictures, in the font that Pillow brings: it is the same on every machine, and knows few letters."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from PIL import ImageFont

from alexdeploy.core.printable import escape

_UNKNOWN = "\ue000"
"""A character of private use, which no such font has: it looks like every other that is missing."""


@functools.cache
def font(size: int) -> Any:
    """The font, `size` pixels high."""
    return ImageFont.load_default(size)


def legible(text: str) -> str:
    r"""`text` in letters that the font has: é becomes e, and what has no such letter an escape, \u4e2d."""
    return "".join(map(_letter, escape(text)))


def fit(text: str, size: int, width: float, *, keep_end: bool = False) -> str:
    """Legible text, cut to `width` pixels with "..." at its end, or at its beginning."""
    shown = legible(text)
    face = font(size)
    if face.getlength(shown) <= width:
        return shown
    # The number of characters that fit, by bisection: a name may have thousands.
    low, high = 0, len(shown)
    while low < high:
        middle = (low + high + 1) // 2
        kept = shown[-middle:] if keep_end else shown[:middle]
        low, high = (middle, high) if face.getlength(f"{kept}...") <= width else (low, middle - 1)
    return f"...{shown[len(shown) - low :]}" if keep_end else f"{shown[:low].rstrip()}..."


@functools.cache
def _letter(character: str) -> str:
    if _is_known(character):
        return character
    plain = "".join(each for each in unicodedata.normalize("NFKD", character) if not unicodedata.combining(each))
    if plain and all(map(_is_known, plain)):
        return plain
    return character.encode("unicode_escape").decode()


def _is_known(character: str) -> bool:
    return bytes(font(20).getmask(character)) != bytes(font(20).getmask(_UNKNOWN))
