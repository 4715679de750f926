"""Variables of a .mat file of MATLAB 5 to 7: numbers, texts, structs and cell arrays, as plain Python objects.

After the MAT-File Format of MathWorks (level 5): a header of 128 bytes, then elements of a type, a length and data.
Every length is held against what is there, and values and nesting are bounded: SciPy's reader follows cells in cells
until the stack of the process ends.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

_HEADER_BYTES = 128
_MAX_BYTES = 64 << 20
_MAX_DIMENSIONS = 32
_MAX_VALUES = 1 << 20
"""Eight bytes are a value, an empty matrix, and become a hundred: their number is bounded, not only the data."""

_MAX_DEPTH = 32
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_CELL_CLASS, _STRUCT_CLASS, _CHAR_CLASS = 1, 2, 4
_NUMERIC_CLASSES = range(6, 16)


class MatError(ValueError):
    """Not a file that can be read here."""


class _Element(NamedTuple):
    kind: int
    data: memoryview


class _Reader:
    """Elements one after the other; every length is held against what is there."""

    def __init__(self, data: bytes | memoryview, max_inflated_bytes: int = 0) -> None:
        self._rest = memoryview(data)
        self._max_inflated_bytes = max_inflated_bytes

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
        if not self._max_inflated_bytes:
            raise MatError("a compressed element within another element")
        inflater = zlib.decompressobj()
        try:
            inflated = inflater.decompress(data, self._max_inflated_bytes)
        except zlib.error as exc:
            raise MatError(str(exc)) from exc
        if inflater.unconsumed_tail:
            raise MatError(f"a variable of more than {self._max_inflated_bytes:,} bytes")
        return _Reader(inflated).next()

    def _take(self, size: int) -> memoryview:
        if size > len(self._rest):
            raise MatError(f"cut off: {size:,} bytes are expected and {len(self._rest):,} are left")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


def is_mat_file(head: bytes) -> bool:
    """Whether a file that begins with `head`, 128 bytes or more, is one that `read_variables` can read."""
    return head[124:128] == b"\x00\x01IM"


def read_struct(data: bytes, name: str) -> list[dict[str, Any]]:
    """The entries of the struct array `name`: numbers as float, texts as str, everything else as None.

    Raises MatError for a file of another kind or version, one that is cut off, and one without such a variable.
    """
    value = read_variables(data, (name,)).get(name)
    if value is None:
        raise MatError(f"no variable {name}")
    entries = [value] if isinstance(value, dict) else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MatError(f"{name} is no struct array")
    return [{field: _simple(value) for field, value in entry.items()} for entry in entries]


def _simple(value: Any) -> float | str | None:
    if isinstance(value, np.ndarray) and value.size == 1:
        return float(value.reshape(-1)[0])
    return value if isinstance(value, str) else None


def read_variables(data: bytes, names: Collection[str], max_inflated_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """Those of the variables `names` that are there, each of at most `max_inflated_bytes` where it is compressed.

    A struct is a dictionary; an array of structs and a cell array are lists, columns first; a text is a str; numbers
    are an array in MATLAB's shape, which may be a view of `data`; everything else is None. Raises MatError.
    """
    if len(data) < _HEADER_BYTES or not is_mat_file(data[:_HEADER_BYTES]):
        raise MatError("not a MATLAB 5 file with the lowest byte first")
    reader = _Reader(memoryview(data)[_HEADER_BYTES:], max_inflated_bytes)
    values = _Values()
    found: dict[str, Any] = {}
    while reader and len(found) < len(names):
        element = reader.next()
        if element.kind == _MATRIX:
            values.read_variable(element.data, names, found)
    return found


class _Values:
    """Reads matrices and what is in them, up to _MAX_VALUES."""

    def __init__(self) -> None:
        self._num_values = 0

    def read_variable(self, data: memoryview, names: Collection[str], found: dict[str, Any]) -> None:
        if not data:
            return
        reader = _Reader(data)
        matrix_class, sides, name = _read_header(reader)
        if name in names:
            found[name] = self._read_body(reader, matrix_class, sides, depth=0)

    def _read_matrix(self, data: memoryview, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise MatError(f"values nested deeper than {_MAX_DEPTH}")
        if not data:
            return None
        reader = _Reader(data)
        matrix_class, sides, _ = _read_header(reader)
        return self._read_body(reader, matrix_class, sides, depth)

    def _read_body(self, reader: _Reader, matrix_class: int, sides: list[int], depth: int) -> Any:
        num_entries = math.prod(sides)
        if matrix_class == _CELL_CLASS:
            self._count("a cell array", num_entries)
            return [self._read_matrix(_matrix(reader.next()), depth + 1) for _ in range(num_entries)]
        if matrix_class == _STRUCT_CLASS:
            return self._read_structs(reader, num_entries, depth)
        if matrix_class == _CHAR_CLASS:
            return _text(reader.next()) if num_entries else ""
        if matrix_class not in _NUMERIC_CLASSES:
            return None
        if not num_entries:
            return np.zeros(sides)
        numbers = _numbers(reader.next())
        if len(numbers) != num_entries:
            raise MatError(f"{len(numbers):,} numbers in a matrix of {sides}")
        return numbers.reshape(sides, order="F")

    def _read_structs(self, reader: _Reader, num_entries: int, depth: int) -> Any:
        width = _integers(reader.next())[0]
        if width < 1:
            raise MatError("field names of no length")
        joined = bytes(reader.next().data)
        self._count("a struct array", max(num_entries, 1) * -(-len(joined) // width))
        starts = range(0, len(joined), width)
        fields = [joined[first : first + width].split(b"\0")[0].decode("latin-1") for first in starts]
        entries = [
            {field: self._read_matrix(_matrix(reader.next()), depth + 1) for field in fields}
            for _ in range(num_entries if fields else 0)
        ]
        return entries[0] if len(entries) == 1 else entries

    def _count(self, what: str, num_values: int) -> None:
        self._num_values += num_values
        if self._num_values > _MAX_VALUES:
            raise MatError(f"{what} of {num_values:,} values; at most {_MAX_VALUES:,} are read")


def _read_header(reader: _Reader) -> tuple[int, list[int], str]:
    """The class, the sides and the name of a matrix."""
    matrix_class = _integers(reader.next())[0] & 0xFF
    sides = _integers(reader.next())
    if min(sides) < 0:
        raise MatError(f"a matrix of {len(sides)} dimensions, the smallest {min(sides)}")
    return matrix_class, sides, bytes(reader.next().data).decode("latin-1")


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
