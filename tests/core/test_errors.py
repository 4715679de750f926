from __future__ import annotations

import pytest

from alexdeploy.core.errors import AlexDeployError, DeviceError, ModelError, by_name, first_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [("one", "one"), ("\n one\ntwo\n", "one"), ("", "RuntimeError"), (" \n\n", "RuntimeError")],
)
def test_the_first_line_of_an_exception_is_never_empty(message: str, expected: str) -> None:
    assert first_line(RuntimeError(message)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ModelError", ModelError), ("ReplicaLostError", DeviceError), ("first_line", DeviceError), ("", DeviceError)],
)
def test_an_error_is_found_by_its_name_and_nothing_else_is(name: str, expected: type[AlexDeployError]) -> None:
    assert by_name(name) is expected
