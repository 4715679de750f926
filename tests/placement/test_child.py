from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alexdeploy.core.errors import DeviceError
from alexdeploy.placement.child import Child, failure_of
from alexdeploy.placement.frames import Batch, read_frame, write_frame

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A child that runs `code`; `requests` and `answers` are its own there."""

    def start(code: str, **options: str) -> Child:
        head = "import os, sys, time\nfrom alexdeploy.placement.child import adopt_stdio\n"
        (tmp_path / "child_of_a_test.py").write_text(f"{head}requests, answers = adopt_stdio()\n{code}\n")
        others = os.environ.get("PYTHONPATH")
        path = f"{tmp_path}{os.pathsep}{others}" if others else str(tmp_path)
        return Child("child_of_a_test", {"PYTHONPATH": path}, **options)

    return start


def test_what_a_library_prints_on_stdout_is_no_answer(start: Start) -> None:
    child = start("print('a banner', flush=True)\nos.system('echo another')\nanswers.write(requests.readline())")
    child.requests.write(b"a frame\n")
    child.requests.flush()
    assert child.answers.read() == b"a frame\n"
    assert child.with_last_words(child.close(10)) == "ended with exit code 0: another"


def test_a_process_that_does_not_go_when_it_is_to_is_killed(start: Start) -> None:
    child = start("answers.close()\ntime.sleep(60)")
    assert child.answers.read() == b""
    assert child.close(0.1) == "ended by signal 9"
    assert child.close(0.1) == "ended by signal 9"


def test_the_last_words_are_the_last_line_that_is_not_empty(start: Start) -> None:
    child = start("sys.stderr.write('first\\nlast \\n\\n'); sys.exit(3)")
    assert child.with_last_words(child.close(10)) == "ended with exit code 3: last"
    assert child.with_last_words("no answer in 1 s") == "no answer in 1 s: last"


def test_with_debug_all_of_stderr_is_shown(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_DEBUG", "1")
    start("sys.stderr.write('one\\ntwo\\n')", shown_as="cuda:1").close(10)
    start("sys.stderr.write('three\\n')").close(10)
    assert capsys.readouterr().err == "cuda:1: one\ncuda:1: two\n"


def test_whatever_a_runtime_raises_comes_as_an_error_of_the_device() -> None:
    error = failure_of(RuntimeError("bad kernel\n  at line 1\n")).error()
    assert (type(error), error.message, error.hint) == (DeviceError, "RuntimeError: bad kernel", None)


@pytest.mark.parametrize("left", [0, 3, 8, 20, -1])
def test_a_frame_that_ends_early_is_the_end(left: int) -> None:
    whole = io.BytesIO()
    write_frame(whole, Batch(number=1, num_images=2, low_latency=False), np.arange(64, dtype=np.uint8))
    assert read_frame(io.BytesIO(whole.getvalue()), Batch) == (
        Batch(number=1, num_images=2, low_latency=False),
        bytes(range(64)),
    )
    assert read_frame(io.BytesIO(whole.getvalue()[:left]), Batch) is None
