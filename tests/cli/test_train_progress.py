"""What `train` says while the first epoch goes on and nobody watches a bar."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from alexdeploy.cli.train_progress import Watcher, watch
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.training.events import EpochFinished, EpochRecord, Planned, Started, Step

STARTED = Started(device="cpu", num_train=800, num_val=80, skipped=(), in_memory=True, num_epochs=0, num_steps=0)


def planned() -> Planned:
    return Planned(
        folder=ModelFolder(Path("models/alexnet")),
        recipe=load_recipe("alexnet", ["training.epochs=2"]),
        classes=("a", "b"),
        num_train=800,
        num_val=80,
        data=Path("data"),
        is_packed=False,
    )


def test_lines_of_the_first_epoch_come_after_five_seconds_and_then_ever_more_rarely(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [100.0]
    bar = Progress(console=Console(file=io.StringIO()), disable=True)
    watcher = Watcher(bar, clock=lambda: now[0])
    watcher.show(planned())
    watcher.show(STARTED)

    def step(number: int) -> None:
        now[0] += 2.0
        left = (200 - number) * 2.0
        watcher.show(
            Step(
                epoch=1 + (number > 100),
                step=number,
                num_steps=100,
                loss=1.5,
                learning_rate=0.01,
                images_per_second=4.0,
                seconds_left=left,
            )
        )

    capsys.readouterr()
    for number in range(1, 101):
        step(number)
    lines = output_of(bar, capsys)
    assert [line.split()[1] for line in lines] == ["3", "6", "12", "24", "48", "96"]
    assert "4.0 images/s" in lines[0]
    # 197 steps of 2 s.
    assert "0:06:34 left" in lines[0]
    record = EpochRecord(
        epoch=1,
        loss=1.0,
        val_loss=1.0,
        val_top1_error=0.5,
        val_top5_error=0.1,
        learning_rate=0.01,
        images_per_second=4.0,
    )
    watcher.show(EpochFinished(record=record, is_best=True))
    output_of(bar, capsys)
    for number in range(101, 190):
        step(number)
    assert output_of(bar, capsys) == []


def output_of(bar: Progress, capsys: pytest.CaptureFixture[str]) -> list[str]:
    file = bar.console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue() + capsys.readouterr().err
    file.truncate(0)
    file.seek(0)
    return [line for line in text.splitlines() if line.startswith("step ")]


def test_a_terminal_shows_the_time_left_that_training_expects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with watch() as watcher:
        watcher.show(planned())
        watcher.show(STARTED)
        watcher.show(
            Step(
                epoch=1,
                step=1,
                num_steps=100,
                loss=1.5,
                learning_rate=0.01,
                images_per_second=4.0,
                seconds_left=394.4,
            )
        )
    assert "0:06:34" in capsys.readouterr().err
