from __future__ import annotations

import pytest

from alexdeploy.core.errors import first_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [("one", "one"), ("\n one\ntwo\n", "one"), ("", "RuntimeError"), (" \n\n", "RuntimeError")],
)
def test_the_first_line_of_an_exception_is_never_empty(message: str, expected: str) -> None:
    assert first_line(RuntimeError(message)) == expected
