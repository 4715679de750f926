"""Headers written byte by byte after the standards: JPEG (ITU-T T.81), PNG and TGA."""

from __future__ import annotations

import struct
import zlib

import pytest

from alexdeploy.images.headers import JpegFrame, read_jpeg_frame, read_png_bits

START, APP0 = b"\xff\xd8", b"\xff\xe0\x00\x04JF"


def frame(marker: int, bits: int) -> bytes:
    """A start of frame: its length, bits per sample, height, width and no components."""
    return struct.pack(">BBHBHHB", 0xFF, marker, 8, bits, 16, 16, 0)


@pytest.mark.parametrize("marker", range(0xC0, 0xD0))
def test_every_start_of_frame_tells_its_bits_and_whether_it_is_lossless(marker: int) -> None:
    # Table B.1: C4 is a table of Huffman codes, C8 is reserved, CC a table of arithmetic coding.
    is_frame = marker not in (0xC4, 0xC8, 0xCC)
    expected = JpegFrame(12, marker in (0xC3, 0xC7, 0xCB, 0xCF)) if is_frame else None
    assert read_jpeg_frame(START + APP0 + frame(marker, 12) + b"\xff\xd9") == expected


@pytest.mark.parametrize(
    "before",
    [
        b"",
        # B.1.1.2: any marker may be preceded by fill bytes FF.
        b"\xff\xff\xff",
        # Markers without a length: TEM, RST0 to RST7.
        b"\xff\x01" + b"".join(b"\xff" + bytes([each]) for each in range(0xD0, 0xD8)),
        # A length that spans what looks like a frame of 8 bits.
        b"\xff\xe1\x00\x0d" + frame(0xC0, 8) + b"?",
        # Bytes that are no marker are passed over, and so is FF 00, which is a value FF in coded data.
        b"junk\xff\x00",
        APP0 * 300,
    ],
)
def test_what_may_stand_before_a_frame_is_passed_over(before: bytes) -> None:
    assert read_jpeg_frame(START + before + frame(0xC2, 16)) == JpegFrame(16, False)


def test_a_jpeg_without_a_frame_has_none() -> None:
    whole = START + APP0 + frame(0xC0, 8)
    for end in range(len(whole) - 5):
        assert read_jpeg_frame(whole[:end]) is None
    assert read_jpeg_frame(whole[: len(whole) - 5]) == JpegFrame(8, False)
    assert read_jpeg_frame(b"\xff\xd9" + whole[2:]) is None
    # No file makes it read for long.
    assert read_jpeg_frame(START + b"\xff\x01" * 5000 + frame(0xC0, 8)) is None


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))


@pytest.mark.parametrize(
    ("chunks", "bits"),
    [
        (chunk(b"sBIT", bytes([10, 12, 14])), 10),
        (chunk(b"gAMA", bytes(4)) + chunk(b"sBIT", bytes([5])), 5),
        (chunk(b"sBIT", bytes([0, 8, 8])), None),
        (chunk(b"sBIT", b"") + chunk(b"sBIT", bytes([7])), 7),
        # After the pixels it is too late.
        (chunk(b"IDAT", b"") + chunk(b"sBIT", bytes([10])), None),
        (b"", None),
        (struct.pack(">I", 3) + b"sB", None),
    ],
)
def test_the_significant_bits_of_a_png_are_those_of_its_first_channel(chunks: bytes, bits: int | None) -> None:
    assert read_png_bits(PNG + chunks) == bits
    assert read_png_bits(b"x" + PNG[1:] + chunks) is None
