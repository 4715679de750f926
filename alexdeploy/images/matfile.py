"""A struct array of numbers and texts from a MATLAB 5 file, as far as the devkit of ILSVRC-2012 needs it.

After the MAT-File Format of MathWorks (level 5): a header of 128 bytes, then elements of a type, a length and data.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

_HEADER_BYTES = 128
_MAX_BYTES = 64 << 20
_MAX_DIMENSIONS = 32
_MAX_VALUES = 1 << 20
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_STRUCT_CLASS, _CHAR_CLASS = 2, 4
_NUMERIC_CLASSES = range(6, 16)


class MatError(ValueError):
    """Not a file that can be read here."""


class _Element(NamedTuple):
    kind: int
    data: memoryview


class _Reader:
    """Elements one after the other; every length is held against what is there."""

    def __init__(self, data: bytes | memoryview, *, may_inflate: bool = False) -> None:
        self._rest = memoryview(data)
        self._may_inflate = may_inflate

    def __bool__(self) -> bool:
        return len(self._rest) >= 8

    def next(self) -> _Element:
        first, size = struct.unpack("<II", self._take(8))
        # A small element has its length and at most four bytes of data within these eight.
        if first >> 16:
            if first >> 16 > 4:
                raise MatError(f"a small element of {first >> 16} bytes")
            return _Element(first & 0xFFFF, memoryview(struct.pack("<I", size))[: first >> 16])
        data = self._take(size)
        if first != _COMPRESSED:
            self._rest = self._rest[-size % 8 :]
            return _Element(first, data)
        if not self._may_inflate:
            raise MatError("a compressed element within another element")
        inflater = zlib.decompressobj()
        try:
            inflated = inflater.decompress(data, _MAX_BYTES)
        except zlib.error as exc:
            raise MatError(str(exc)) from exc
        if inflater.unconsumed_tail:
            raise MatError(f"a variable of more than {_MAX_BYTES:,} bytes")
        return _Reader(inflated).next()

    def _take(self, size: int) -> memoryview:
        if size > len(self._rest):
            raise MatError(f"cut off: {size:,} bytes are expected and {len(self._rest):,} are left")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def read_struct(data: bytes, name: str) -> list[dict[str, Any]]:
    """The entries of the struct array `name`: numbers as float, texts as str, everything else as None.

    Raises MatError for a file of another kind or version, one that is cut off, and one without such a variable.
    """
    if len(data) < _HEADER_BYTES or data[126:128] != b"IM" or data[125] != 1:
        raise MatError("not a MATLAB 5 file with the lowest byte first")
    reader = _Reader(memoryview(data)[_HEADER_BYTES:], may_inflate=True)
    while reader:
        element = reader.next()
        if element.kind == _MATRIX:
            found, value = _read_matrix(element.data, wanted=name)
            if found == name:
                if not isinstance(value, list):
                    raise MatError(f"{name} is no struct array")
                return value
    raise MatError(f"no variable {name}")


def _read_matrix(data: memoryview, wanted: str | None = None) -> tuple[str, Any]:
    """The name and the value of a matrix; a struct is only read if it is called `wanted`."""
    if not data:
        return "", None
    reader = _Reader(data)
    matrix_class = _integers(reader.next())[0] & 0xFF
    sides = _integers(reader.next())
    if min(sides) < 0:
        raise MatError(f"a matrix of {len(sides)} dimensions, the smallest {min(sides)}")
    num_entries = math.prod(sides)
    name = bytes(reader.next().data).decode("latin-1")
    if matrix_class == _STRUCT_CLASS and name == wanted:
        return name, _read_entries(reader, num_entries)
    if matrix_class == _CHAR_CLASS and num_entries:
        return name, _text(reader.next())
    if matrix_class in _NUMERIC_CLASSES and num_entries == 1:
        return name, float(_numbers(reader.next())[0])
    return name, "" if matrix_class == _CHAR_CLASS else None


def _read_entries(reader: _Reader, num_entries: int) -> list[dict[str, Any]]:
    width = _integers(reader.next())[0]
    if width < 1:
        raise MatError("field names of no length")
    joined = bytes(reader.next().data)
    # Eight bytes are a value, an empty matrix, and become a hundred: their number is bounded, not only the data.
    num_values = max(num_entries, 1) * -(-len(joined) // width)
    if num_values > _MAX_VALUES:
        raise MatError(f"a struct array of {num_values:,} values; at most {_MAX_VALUES:,} are read")
    fields = [joined[first : first + width].split(b"\0")[0].decode("latin-1") for first in range(0, len(joined), width)]
    entries = []
    for _ in range(num_entries if fields else 0):
        entries.append({field: _read_matrix(_matrix(reader.next()))[1] for field in fields})
    return entries


def _matrix(element: _Element) -> memoryview:
    if element.kind != _MATRIX:
        raise MatError(f"an element of type {element.kind} where a matrix is expected")
    return element.data


def _numbers(element: _Element) -> np.ndarray[Any, Any]:
    kind = _NUMBERS.get(element.kind)
    if kind is None or not len(element.data) or len(element.data) % np.dtype(kind).itemsize:
        raise MatError(f"{len(element.data)} bytes of type {element.kind} where numbers are expected")
    return np.frombuffer(element.data, f"<{kind}")


def _integers(element: _Element) -> list[int]:
    numbers = _numbers(element)
    if numbers.dtype.kind == "f":
        raise MatError("fractions where whole numbers are expected")
    if len(numbers) > _MAX_DIMENSIONS:
        raise MatError(f"{len(numbers):,} numbers where at most {_MAX_DIMENSIONS} are expected")
    return [int(number) for number in numbers]


def _text(element: _Element) -> str:
    encoding = _TEXTS.get(element.kind)
    if encoding is None:
        raise MatError(f"an element of type {element.kind} where a text is expected")
    try:
        return bytes(element.data).decode(encoding)
    except UnicodeDecodeError as exc:
        raise MatError(str(exc)) from exc
