"""A reader of the protobuf wire format, for Caffe's files, without Caffe's schema and the protobuf compiler."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_MAX_FIELDS = 1_000
"""Maximum number of fields of one message, not counting unpacked repeated floats: Caffe networks have a few hundred
layers. A file of many tiny fields must not fill the memory."""

_MAX_INTEGERS = 1_000
"""Maximum number of integers packed in one field, which are shapes in Caffe."""

_VARINT, _FIXED64, _CHUNK, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protobuf message, or a field has another type than requested."""


class Message:
    """One message: its fields by number, in the order of the file. Text, bytes and messages inside are not copied.

    A length is checked against the available bytes before reading. Getters raise WireError for a field of another
    type. If a value occurs twice, the last one counts, as protobuf specifies.
    """

    __slots__ = ("_chunks", "_fixed", "_varints")

    def __init__(self, data: memoryview) -> None:
        self._varints: dict[int, list[int]] = {}
        self._chunks: dict[int, list[memoryview]] = {}
        # Unpacked repeated numbers are kept as bytes, not as objects.
        self._fixed: dict[tuple[int, int], bytearray] = {}
        position, end, num_fields = 0, len(data), 0
        while position < end:
            key, position = _varint(data, position)
            number, kind = key >> 3, key & 7
            if kind in (_FIXED32, _FIXED64):
                size = 4 if kind == _FIXED32 else 8
                value = _part(data, position, size)
                num_fields += (number, size) not in self._fixed
                self._fixed.setdefault((number, size), bytearray()).extend(value)
                position += size
            elif kind == _VARINT:
                num_fields += 1
                integer, position = _varint(data, position)
                self._varints.setdefault(number, []).append(integer)
            elif kind == _CHUNK:
                num_fields += 1
                size, position = _varint(data, position)
                self._chunks.setdefault(number, []).append(_part(data, position, size))
                position += size
            else:
                raise WireError(f"field {number} has unknown wire type {kind}")
            if num_fields > _MAX_FIELDS:
                raise WireError(f"a message of more than {_MAX_FIELDS:,} fields")

    def has(self, number: int) -> bool:
        """Whether there is an integer, text or message with that field number."""
        return number in self._varints or number in self._chunks

    def messages(self, number: int) -> Iterator[Message]:
        """Each message is parsed when it is reached, and not kept."""
        return (Message(chunk) for chunk in self._chunks.get(number, ()))

    def message(self, number: int) -> Message:
        """The nested message; if missing, an empty one, which has all defaults."""
        chunks = self._chunks.get(number)
        return Message(chunks[-1] if chunks else memoryview(b""))

    def texts(self, number: int) -> tuple[str, ...]:
        return tuple(bytes(chunk).decode("utf-8", "replace") for chunk in self._chunks.get(number, ()))

    def text(self, number: int) -> str:
        return self.texts(number)[-1] if number in self._chunks else ""

    def integers(self, number: int) -> tuple[int, ...]:
        """Repeated integers, packed or not."""
        values = list(self._varints.get(number, ()))
        for chunk in self._chunks.get(number, ()):
            position = 0
            while position < len(chunk):
                if len(values) >= _MAX_INTEGERS:
                    raise WireError(f"field {number} has more than {_MAX_INTEGERS:,} integers")
                value, position = _varint(chunk, position)
                values.append(value)
        return tuple(value - (1 << 64) if value >= 1 << 63 else value for value in values)

    def integer(self, number: int, default: int = 0) -> int:
        values = self.integers(number)
        return values[-1] if values else default

    def number(self, number: int, default: float) -> float:
        """A float32 as its shortest decimal: 0.0001, not 9.999999747378752e-05."""
        values = self.floats(number)
        return float(str(values[-1])) if len(values) else default

    def floats(self, number: int) -> NDArray[np.float32]:
        """Repeated float32, packed or not. If packed in one piece, the result is a view of the file."""
        return np.frombuffer(self._repeated(number, 4), "<f4")

    def doubles(self, number: int) -> NDArray[np.float64]:
        return np.frombuffer(self._repeated(number, 8), "<f8")

    def _repeated(self, number: int, size: int) -> bytes | bytearray | memoryview:
        chunks = self._chunks.get(number, [])
        if any(len(chunk) % size for chunk in chunks):
            raise WireError(f"field {number} is not a multiple of {size} bytes")
        single = self._fixed.get((number, size))
        if single is None:
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return bytes(single) if not chunks else b"".join([*chunks, single])


def _part(data: memoryview, start: int, size: int) -> memoryview:
    if size > len(data) - start:
        raise WireError(f"a field of {size:,} bytes but only {len(data) - start:,} are left")
    return data[start : start + size]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The integer at `position`, of up to 64 bits, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(data):
            raise WireError("truncated inside a field")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise WireError("an integer of more than 64 bits")
