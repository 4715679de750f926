"""The bar that commands show on a terminal."""

from __future__ import annotations

import os
import sys

import pytest
from program import terminal_output
from rich.progress import Progress

from alexdeploy.cli import output
from alexdeploy.cli.output import _speed


@pytest.mark.parametrize(("kept", "speed"), [(0, 16.0), (4, 8.0)])
def test_the_rate_is_what_was_done_by_the_time_it_took_however_the_counts_came(kept: int, speed: float) -> None:
    now = 0.0
    bar = Progress(get_time=lambda: now, disable=True)
    task = bar.add_task("predict", total=100, kept=kept)
    # A batch of eight comes all at once, half a second after the start.
    now = 0.5
    for number in range(8):
        now += 1e-6
        bar.update(task, completed=number + 1)
    assert _speed(bar.tasks[0]) == pytest.approx(speed, rel=1e-3)


def test_there_is_no_rate_before_anything_is_done() -> None:
    bar = Progress(disable=True)
    bar.add_task("predict", start=False, total=None, kept=0)
    assert _speed(bar.tasks[0]) is None


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_line_that_is_longer_than_the_terminal_is_not_folded_above_a_bar() -> None:
    code = (
        "from alexdeploy.cli import output\n"
        "with output.progress('images') as bar:\n"
        "    bar.add_task('work', total=2)\n"
        "    output.note('note ' + 'n' * 200)\n"
        "    output.warn('w' * 200)\n"
        "    output.fail(output.AlexDeployError('e' * 200))\n"
    )
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    exit_code, shown = terminal_output([sys.executable, "-c", code], environment)
    assert exit_code == 0
    for word in (b"note " + b"n" * 200, b"w" * 200, b"e" * 200):
        assert word in shown


def test_a_terminal_shows_what_is_being_done_and_other_streams_do_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with output.status() as tell:
        tell("reading")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with output.status() as tell:
        tell("reading a\x1b[31m")
    shown = capsys.readouterr().err
    assert "reading a\\x1b[31m ..." in shown
