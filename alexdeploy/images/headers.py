"""Fields of image headers that Pillow does not report."""

from __future__ import annotations

import struct
from typing import NamedTuple

_MAX_SEGMENTS = 4096
"""Limit before the frame of a JPEG, or the pixels of a PNG; a colour profile takes at most 255."""

# JPEG (ITU-T T.81, table B.1): start-of-frame markers, without the tables among them; and the lossless ones of them.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_LOSSLESS = frozenset((0xC3, 0xC7, 0xCB, 0xCF))
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xDA)))

_PNG_START = b"\x89PNG\r\n\x1a\n"
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"


class JpegFrame(NamedTuple):
    """`bits_per_sample` is 8 except in medical images and the like."""

    bits_per_sample: int
    is_lossless: bool


def read_jpeg_frame(data: bytes) -> JpegFrame | None:
    """The frame header of a JPEG; None for other files, and if none is found."""
    if not data.startswith(b"\xff\xd8"):
        return None
    position = 2
    for _ in range(_MAX_SEGMENTS):
        position = data.find(b"\xff", position)
        marker = data[position + 1 : position + 2]
        if position < 0 or not marker:
            return None
        if marker == b"\xff":
            position += 1
        elif marker[0] in _WITHOUT_LENGTH or marker == b"\0":
            position += 2
        elif marker[0] in _FRAMES:
            bits = data[position + 4 : position + 5]
            return JpegFrame(bits[0], marker[0] in _LOSSLESS) if bits else None
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def read_png_bits(data: bytes) -> int | None:
    """The significant bits of the first channel of a PNG, from its sBIT chunk; None if missing or 0."""
    if not data.startswith(_PNG_START):
        return None
    position = len(_PNG_START)
    for _ in range(_MAX_SEGMENTS):
        header = data[position : position + 8]
        if len(header) < 8 or header.endswith(b"IDAT"):
            return None
        (size, kind) = struct.unpack(">I4s", header)
        if kind == b"sBIT" and size:
            return int.from_bytes(data[position + 8 : position + 9], "big") or None
        position += 12 + size
    return None


def looks_like_tga(data: bytes) -> bool:
    """Whether a file of no other image format is a TGA. TGA has a signature only at its end, and only since 1989.

    Checks the types of colour map and image and their sizes for consistency (Truevision TGA file format 2.0).
    """
    if data.endswith(_TGA_FOOTER):
        return True
    if len(data) <= 18:
        return False
    _, has_map, kind, _, _, _, _, _, width, height, depth, descriptor = struct.unpack("<BBBHHBHHHHBB", data[:18])
    if kind in (1, 9):
        return has_map == 1 and depth in (8, 16) and width * height > 0 and descriptor < 64
    depths = {2: (15, 16, 24, 32), 10: (15, 16, 24, 32), 3: (8, 16), 11: (8, 16)}
    return has_map in (0, 1) and depth in depths.get(kind, ()) and width * height > 0 and descriptor < 64
