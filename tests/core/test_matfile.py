"""MATLAB 5 files, written by SciPy, whole and damaged, as plain objects."""

from __future__ import annotations

import io
import random
import struct
import sys
from typing import Any

import numpy as np
import pytest
import scipy.io

from alexdeploy.core.errors import UsageError
from alexdeploy.core.matfile import MatError, read_variables


def saved(*, compressed: bool = False, **variables: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=compressed, long_field_names=True)
    return file.getvalue()


def cell(*values: Any) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_have_their_values_and_shape(compressed: bool) -> None:
    numbers = {
        "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "doubles": np.linspace(-1, 1, 6).reshape(3, 2),
        **{kind: np.array([[0, 1, 100]], kind) for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")},
        "truths": np.array([[True, False]]),
        "none": np.zeros((0, 5)),
    }
    # One file: each is read by a process of its own, which imports SciPy.
    found = read_variables(saved(compressed=compressed, **numbers), tuple(numbers))
    assert found.keys() == numbers.keys()
    for name, expected in numbers.items():
        assert found[name].shape == expected.shape
        np.testing.assert_array_equal(found[name], expected)


def test_structs_cells_and_texts_nest() -> None:
    entries = np.array([(1.0, "one"), (2.0, "zwei ä")], [("number", "O"), ("word", "O")])
    value = {"inner": {"names": cell("a", "", cell("b"))}, "entries": entries}
    found = read_variables(saved(a=value, b=np.ones(3)), ("a", "missing"))
    assert found.keys() == {"a"}
    assert found["a"]["inner"] == {"names": ["a", "", ["b"]]}
    assert [entry["word"] for entry in found["a"]["entries"]] == ["one", "zwei ä"]
    assert [float(entry["number"][0, 0]) for entry in found["a"]["entries"]] == [1.0, 2.0]


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data


def nested(depth: int) -> bytes:
    """Cells in cells."""
    headers: list[bytes] = []
    length = 8
    for level in range(depth):
        name = b"a" * 8 if level == depth - 1 else b""
        start = element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, name)
        headers.append(struct.pack("<II", 14, len(start) + length) + start)
        length += len(headers[-1])
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(reversed(headers)) + element(14, b"")


def test_cells_in_cells_without_end_are_refused() -> None:
    """SciPy reads these until the stack of the process is used up."""
    assert read_variables(nested(20), ("a" * 8,)).keys() == {"a" * 8}
    for depth in (1_000, 100_000):
        with pytest.raises(MatError):
            read_variables(nested(depth), ("a" * 8,))


def test_a_compressed_variable_of_more_than_the_limit_is_refused() -> None:
    content = saved(compressed=True, a=np.zeros(1_000_000))
    assert len(content) < 10_000
    with pytest.raises(MatError, match="1,000,000 bytes"):
        read_variables(content, ("a",), 1_000_000)
    assert read_variables(content, ("a",), 9_000_000)["a"].size == 1_000_000


@pytest.mark.parametrize("content", [b"", b"MATLAB", b"\x89HDF\r\n\x1a\n".ljust(600), bytes(200)])
def test_another_file_is_refused(content: bytes) -> None:
    with pytest.raises(MatError, match="not a MATLAB 5 file"):
        read_variables(content, ("a",))


SMALL = saved(a={"x": cell("text", np.arange(6.0)), "y": np.float32(2.5)}, b=np.ones((2, 2)))


@pytest.mark.parametrize(("seed", "count"), [(3, 6), pytest.param(4, 24, marks=pytest.mark.slow)])
def test_damaged_bytes_give_variables_or_a_mat_error(seed: int, count: int) -> None:
    rng = random.Random(seed)
    refused = 0
    for _ in range(count):
        content = bytearray(SMALL)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(124, len(content))] = rng.randrange(256)
        length = rng.choice((len(content), rng.randrange(len(content))))
        try:
            found = read_variables(bytes(content[:length]), ("a", "b"))
        except MatError:
            refused += 1
            continue
        assert set(found) <= {"a", "b"}
    assert refused


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UsageError, match=r"pip install 'alexdeploy\[matlab\]'"):
        read_variables(SMALL, ("a",))
