"""Pillow's many modes as 8 bits per channel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from alexdeploy.images.headers import read_png_bits


def is_negative(image: Image.Image) -> bool:
    """Whether white is 0 in the pixels of a TIFF as returned by Pillow, which inverts them only up to 8 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.mode in ("1", "L"):
        return False
    return image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def to_eight_bit(image: Image.Image, data: bytes) -> Image.Image:
    """Convert any of Pillow's modes to opaque RGB or L with 8 bits per channel. `data` is the whole file."""
    if image.mode in ("RGB", "L", "1", "P") and "transparency" not in image.info:
        return image if image.mode in ("RGB", "L") else image.convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray(_words_to_bytes(np.asarray(image), read_png_bits(data)))
    if image.mode == "I":
        return Image.fromarray(_integers_to_bytes(np.asarray(image)))
    if image.mode == "F":
        return Image.fromarray(_floats_to_bytes(np.asarray(image)))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(colours, mask=colours.getchannel("A"))
        return opaque
    return image.convert("RGB")


def _words_to_bytes(pixels: np.ndarray[Any, Any], significant_bits: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # PNG requires 12-bit samples to be scaled to 16 bits. Programs for microscopes and cameras do not do that; if the
    # file states the number of bits and no sample exceeds it, the samples are taken as unscaled.
    bits = significant_bits or 16
    if not 8 <= bits < 16 or pixels.max(initial=0) >> bits:
        bits = 16
    return np.asarray(pixels >> (bits - 8), dtype=np.uint8)


def _integers_to_bytes(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # Pillow also stores 16-bit samples in mode I (PGM), and unsigned 32-bit ones with wraparound.
    unsigned = pixels.view(np.uint32)
    shift = 8 if unsigned.max(initial=0) <= 0xFFFF else 24
    return np.asarray(unsigned >> shift, dtype=np.uint8)


def _floats_to_bytes(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    # The range of floating-point files is 0 to 1 or 0 to 255; the files do not say which.
    finite = np.nan_to_num(pixels, nan=0.0, posinf=math.inf, neginf=0.0)
    scale = 255.0 if finite.max(initial=0.0) <= 1.0 else 1.0
    return np.asarray(np.clip(np.rint(finite * scale), 0, 255), dtype=np.uint8)
