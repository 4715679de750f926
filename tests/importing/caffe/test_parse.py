"""The wire format, against bytes written by hand from protobuf's description of it."""

from __future__ import annotations

import struct

import numpy as np
import onnx
import pytest

from alexdeploy.core.protobuf_wire import Message, WireError


def message(content: bytes) -> Message:
    return Message(memoryview(content))


def test_the_examples_of_protobufs_own_description_are_read() -> None:
    # https://protobuf.dev/programming-guides/encoding: 150, "testing", a message inside, and packed integers.
    assert message(bytes.fromhex("089601")).integer(1) == 150
    assert message(bytes.fromhex("120774657374696e67")).text(2) == "testing"
    assert message(bytes.fromhex("1a03089601")).message(3).integer(1) == 150
    assert message(bytes.fromhex("3206038e029ea705")).integers(6) == (3, 270, 86942)


def test_integers_are_signed_and_stand_packed_or_one_by_one() -> None:
    assert message(b"\x08" + b"\xff" * 9 + b"\x01").integer(1) == -1
    assert message(bytes.fromhex("080108020803")).integers(1) == (1, 2, 3)


def test_the_last_of_a_value_given_twice_counts() -> None:
    assert message(bytes.fromhex("08010802")).integer(1) == 2
    assert message(b"\x0a\x01a\x0a\x01b").text(1) == "b"


def test_floats_are_read_packed_in_pieces_and_one_by_one() -> None:
    piece = struct.pack("<2f", 1.5, -2.0)
    packed, single = b"\x2a\x08" + piece, b"\x2d" + struct.pack("<f", 0.25)
    np.testing.assert_array_equal(message(packed).floats(5), np.array([1.5, -2.0], np.float32))
    np.testing.assert_array_equal(message(packed + packed).floats(5), np.array([1.5, -2.0] * 2, np.float32))
    np.testing.assert_array_equal(message(single + single).floats(5), np.array([0.25, 0.25], np.float32))
    np.testing.assert_array_equal(message(b"\x41" + struct.pack("<d", 0.1)).doubles(8), np.array([0.1]))


def test_a_float_becomes_the_decimal_that_was_meant() -> None:
    assert message(b"\x15" + struct.pack("<f", 1e-4)).number(2, 1.0) == 1e-4
    assert message(b"").number(2, 0.75) == 0.75


def test_packed_floats_are_a_view_of_the_file() -> None:
    content = b"\x2a\x08" + struct.pack("<2f", 1.0, 2.0)
    assert np.shares_memory(message(content).floats(5), np.frombuffer(content, np.uint8))


def test_messages_inside_are_parsed_when_their_turn_comes() -> None:
    found = message(bytes.fromhex("1a03089601" + "1a0108")).messages(3)
    assert next(found).integer(1) == 150
    with pytest.raises(WireError, match="truncated inside a field"):
        next(found)


def test_what_protobuf_itself_writes_is_read() -> None:
    tensor = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "name")
    found = message(tensor.SerializeToString())
    assert found.integers(1) == (2, 3)
    assert found.text(8) == "name"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("08", "truncated inside a field"),
        ("0896", "truncated inside a field"),
        ("12ff01", "a field of 255 bytes but only 0 are left"),
        ("12ffffffffffffffff7f00", "a field of 9,223,372,036,854,775,807 bytes but only 1 are left"),
        ("0d0000", "a field of 4 bytes but only 2 are left"),
        ("08ffffffffffffffffffff01", "more than 64 bits"),
        ("0b", "unknown wire type 3"),
    ],
)
def test_damage_is_refused_before_anything_is_allocated(content: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        message(bytes.fromhex(content))


def test_a_file_of_nothing_but_tiny_fields_is_refused() -> None:
    with pytest.raises(WireError, match="more than 1,000 fields"):
        message(b"\x08\x01" * 1_001)
    with pytest.raises(WireError, match="more than 1,000 fields"):
        message(b"\x0a\x00" * 1_001)
    # Tags of two bytes: fields 16 to 1,016, each with a float of its own.
    tags = [bytes([(number << 3 | 5) & 0x7F | 0x80, (number << 3 | 5) >> 7]) for number in range(16, 1_017)]
    with pytest.raises(WireError, match="more than 1,000 fields"):
        message(b"".join(tag + bytes(4) for tag in tags))
    with pytest.raises(WireError, match="more than 1,000 integers"):
        message(b"\x0a\xe9\x07" + b"\x01" * 1_001).integers(1)


def test_floats_one_by_one_may_be_many() -> None:
    assert message(b"\x2d\x00\x00\x80\x3f" * 5_000).floats(5).sum() == 5_000


def test_floats_that_are_cut_off_are_refused() -> None:
    with pytest.raises(WireError, match="not a multiple of 4 bytes"):
        message(b"\x2a\x03abc").floats(5)
