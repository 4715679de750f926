"""The program, run in the process of the test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from program import Result, Run

from alexdeploy.cli import app, output


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`alexdeploy` with the given words; what it prints is the caller's."""
    # Tables are as wide as it says, and whoever runs the tests may have it.
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["alexdeploy", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            app.main()
        captured = capfd.readouterr()
        return Result(exit_code=int(stop.value.code or 0), stdout=captured.out, stderr=captured.err)

    yield call
    # What -q and -v set is of the process.
    output.set_quiet(False)
    output.set_verbose(False)
    os.environ.pop("ALEXDEPLOY_DEBUG", None)
