"""The table of `alexdeploy bench`, of figures that are known."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from alexdeploy.benchmark.events import Event, Step
from alexdeploy.benchmark.processes import Start
from alexdeploy.benchmark.results import Agreed, Row, make_row
from alexdeploy.benchmark.rounds import Measured
from alexdeploy.benchmark.statistics import BatchConfiguration, Slice
from alexdeploy.cli import bench
from alexdeploy.cli.bench import _print_rows
from alexdeploy.core.events import Notice


def row_of(*rounds: tuple[float, float], **changes: Any) -> Row:
    """A row of `rounds`: images/s of the engine alone and from files. Decoding alone gives 300, a batch takes 10 ms."""
    named: dict[str, Any] = {"backend": "onnxruntime", "precision": "fp32", "num_views": 1, "batch_size": 8}
    return make_row(
        BatchConfiguration(**(named | changes)),
        Measured(
            slices=[Slice(batch_seconds=(0.01,) * 19 + (0.02,) * 2, images_per_second=rate) for rate, _ in rounds],
            file_rates=[rate for _, rate in rounds],
            peak_bytes=123_000_000,
        ),
        device="cpu",
        decode_rates=[300.0] * len(rounds),
        flops=1_000_000_000,
        ceiling_gflops=400.0,
        start=Start(open_seconds=1.0, load_seconds=0.5, first_row_seconds=1.25),
        agreed=Agreed(reference="torch", num_images=64, num_same=63),
    )


def table(*rows: Row, width: int = 120) -> list[str]:
    text = io.StringIO()
    _print_rows(Console(file=text, width=width, highlight=False), list(rows))
    return text.getvalue().splitlines()


def test_every_figure_stands_under_its_name() -> None:
    head, line = table(row_of((100.0, 60.0)))
    assert head.split() == [
        *("backend", "precision", "batch", "engine", "files", "bound", "p50", "p95", "same", "ceiling", "MB", "first")
    ]
    # Decoding and the engine allow 75 images/s; 100 images/s are 100 GFLOP/s.
    assert line.replace(" %", "%").split() == [
        *("onnxruntime", "fp32", "8", "100.0", "60.0", "80%", "10.0", "20.0", "63/64", "25%", "123", "1.25")
    ]


def test_rates_of_more_than_one_round_are_shown_from_least_to_most() -> None:
    head, first, second = table(row_of((100.0, 60.0), (120.0, 70.5), (90.0, 50.0)), row_of((100.0, 60.0), batch_size=2))
    assert head.split()[3:6] == ["engine", "files", "least-most"]
    assert first.split()[3:6] == ["100.0", "60.0", "50.0-70.5"]
    # A round that was cut short has not all of them.
    assert second.replace(" %", "%").split()[3:6] == ["100.0", "60.0", "80%"]


@pytest.mark.parametrize("width", [80, 100])
def test_the_widest_figures_fit(width: int) -> None:
    row = row_of((12_345.6, 1_021.0), (23_456.7, 1_433.0), batch_size=128)
    lines = table(row, width=width)
    assert len(lines) == 2
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "1021-1433" in lines[1]
    assert "…" not in lines[0] + lines[1]


def test_what_was_not_measured_before_the_end_is_no_error() -> None:
    _, line = table(row_of())
    assert line.split() == ["onnxruntime", "fp32", "8", "not", "measured"]


def test_a_terminal_shows_a_bar_of_all_steps_and_other_streams_a_line_for_each_phase(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = [
        Step(phase="opening", name="a", num_done=0, num_total=2),
        Step(phase="opening", name="b", num_done=1, num_total=2),
        Notice(message="told"),
        Step(phase="measuring", name="a", num_done=2, num_total=8, number=1),
    ]
    with bench._watching(quiet=False) as show:
        for event in events:
            show(event)
    assert capsys.readouterr().err.splitlines() == [
        "opening 2 processes, one after the other", "told", "measuring, round after round",
    ]  # fmt: skip
    updates: list[dict[str, object]] = []
    monkeypatch.setattr(Progress, "update", lambda bar, task, **changes: updates.append(changes))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bench._watching(quiet=False) as show:
        for event in events:
            show(event)
    assert [(each["completed"], each["total"]) for each in updates] == [(0, 2), (1, 2), (2, 8)]
    assert "told" in capsys.readouterr().err
