"""Messages of `alexdeploy train` during training and at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexdeploy.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress

    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.core.spec import ModelSpec
    from alexdeploy.training.events import EpochRecord, Event, Planned, Started, Step


_NUM_CLASSES_SHOWN = 10

_FIRST_LINE_SECONDS = 5.0
"""Seconds of training before the first line: by then the batches show the speed, unless a step takes longer."""


class Watcher:
    """Shows events as a moving bar on a terminal, and as one plain line per epoch everywhere."""

    def __init__(self, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = bar
        self._clock = clock
        self._began = clock()
        self._next_line = _FIRST_LINE_SECONDS
        self._planned: Planned | None = None
        self._task = bar.add_task("", total=None, detail="", visible=False)
        self._last: EpochRecord | None = None
        self.skipped: tuple[str, ...] = ()
        """Names of the skipped images."""

    @property
    def folder(self) -> ModelFolder | None:
        """The output folder, once it is known."""
        return None if self._planned is None else self._planned.folder

    @property
    def _plan(self) -> Planned:
        assert self._planned is not None, "Planned is the first event of training"
        return self._planned

    @property
    def _num_epochs(self) -> int:
        return self._plan.recipe.training.epochs

    def show(self, event: Event) -> None:
        from alexdeploy.core.events import Notice, Status
        from alexdeploy.training import events

        if isinstance(event, events.Rendered):
            self._count(f"rendering {event.folder}", event.num_done, event.num_total)
        elif isinstance(event, events.Planned):
            self._planned = event
            self._say_plan(event)
        elif isinstance(event, events.Decoded):
            self._count("decoding", event.num_done, event.num_total)
        elif isinstance(event, events.Started):
            self._start(event)
        elif isinstance(event, events.Step):
            rate = f"{_rate(event.images_per_second)} images/s"
            detail = f"{rate}, loss {event.loss:.3f}"
            self._say_first_steps(event, rate)
            done = (event.epoch - 1) * event.num_steps + event.step
            self._bar.update(
                self._task,
                description=f"epoch {event.epoch}/{self._num_epochs}",
                completed=done,
                total=self._num_epochs * event.num_steps,
                detail=detail,
                seconds_left=event.seconds_left,
            )
        elif isinstance(event, events.EpochFinished):
            self._say(_epoch_line(event.record, self._num_epochs, len(self._plan.classes), event.is_best))
            if self._last is None and (line := _speed_line(event.record, self._plan.is_packed)):
                self._say(line)
            self._last = event.record
        elif isinstance(event, events.AlreadyFinished):
            self.skipped = event.skipped
            takes_more = self._plan.recipe.training.schedule != "cosine"
            more = f"; more: --resume --epochs {event.num_epochs + 10}" if takes_more else ""
            self._say(f"all {event.num_epochs} epochs are done{more}")
        elif isinstance(event, Notice | Status):
            self._say(event.message)

    def _count(self, what: str, num_done: int, num_total: int) -> None:
        self._bar.update(self._task, description=what, completed=num_done, total=num_total, visible=True)

    def _say_plan(self, plan: Planned) -> None:
        self._say(_describe_classes(plan.classes))
        self._say(
            f"recipe {plan.recipe.name}, {len(plan.classes)} classes, {plan.num_train:,} training and "
            f"{plan.num_val:,} validation images from {plan.data}"
        )
        training = plan.recipe.training
        if training.freeze:
            since = f" from epoch {training.freeze_epoch} on" if training.freeze_epoch > 1 else ""
            self._say(f"frozen{since}: {', '.join(training.freeze)}")

    def _say_first_steps(self, event: Step, rate: str) -> None:
        """Without a bar: print lines in the first epoch, each after twice the time of the one before."""
        seconds = self._clock() - self._began
        if not self._bar.disable or self._last is not None or seconds < self._next_line:
            return
        self._next_line = 2 * seconds
        left = timedelta(seconds=round(event.seconds_left))
        where = f"step {event.step} of {event.num_steps} of epoch {event.epoch}/{self._num_epochs}"
        self._say(f"{where}  loss {event.loss:.4f}  {rate}  about {left} left")

    def speeds(self) -> dict[str, float | None]:
        """Images per second of the last finished epoch, overall and by part."""
        if self._last is None:
            return {}
        return {
            "images_per_second": self._last.images_per_second,
            "step_images_per_second": self._last.step_images_per_second,
            "loader_images_per_second": self._last.loader_images_per_second,
        }

    def _start(self, event: Started) -> None:
        # A new task: the decoding rate says nothing about the training time.
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task("training", total=None, detail="")
        self._began = self._clock()
        self._say(f"training on {event.device}")
        self.skipped = event.skipped
        if event.skipped:
            for line in output.first_few([f"{name} cannot be decoded and is left out" for name in event.skipped]):
                self._warn(line)
            self._warn(f"{output.count(len(event.skipped), 'image')} left out in all")
        if event.num_epochs or event.num_steps:
            done = f"{output.count(event.num_epochs, 'epoch')} and {output.count(event.num_steps, 'step')}"
            self._say(f"resuming after {done}")

    def _warn(self, line: str) -> None:
        output.warn(line)

    def _say(self, line: str) -> None:
        output.note(line)


def _describe_classes(classes: Sequence[str]) -> str:
    from alexdeploy.images.sources import printable_path

    shown = ", ".join(map(printable_path, classes[:_NUM_CLASSES_SHOWN]))
    rest = len(classes) - _NUM_CLASSES_SHOWN
    return f"classes: {shown}" + (f" and {rest:,} more" if rest > 0 else "")


@contextlib.contextmanager
def watch() -> Iterator[Watcher]:
    """Show a bar on a terminal while the block runs; pass training events to `show`."""
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        """The time left from training's own events: rich shows no speed where a step takes more than half a minute."""

        def render(self, task: Task) -> Text:
            if (seconds := task.fields.get("seconds_left")) is None:
                return super().render(task)
            return Text(str(timedelta(seconds=round(seconds))), style="progress.remaining")

    console = output.stderr()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeLeft(),
    )
    is_shown = console.is_terminal and not output.is_quiet()
    with output.showing(Progress(*columns, console=console, disable=not is_shown, transient=True)) as bar:
        yield Watcher(bar)


def _epoch_line(record: EpochRecord, num_epochs: int, num_classes: int, is_best: bool) -> str:
    return (
        f"epoch {record.epoch:>{len(str(num_epochs))}}/{num_epochs}  loss {record.loss:.4f}  "
        f"val top-1 error {record.val_top1_error:6.2%}{_top5('  ', record.val_top5_error, num_classes)}  "
        f"lr {record.learning_rate:.3g}  {_rate(record.images_per_second)} images/s{'  best' if is_best else ''}"
    )


def _speed_line(record: EpochRecord, is_packed: bool) -> str | None:
    """What limits the speed, after the first epoch; later epochs are in the log."""
    loader, steps = record.loader_images_per_second, record.step_images_per_second
    if loader is None or steps is None:
        return None
    total, loader_alone, steps_alone = (_rate(speed) for speed in (record.images_per_second, loader, steps))
    line = f"{total} images/s; the loader alone gives {loader_alone}, steps alone {steps_alone}"
    return f"{line} (decode only once: alexdeploy prepare)" if loader < steps and not is_packed else line


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.{0 if images_per_second >= 10 else 1}f}"


def summary(path: Path, spec: ModelSpec) -> str:
    """The written files, their errors with 95 % intervals, and what these errors are of."""
    from alexdeploy.core.metrics import has_top5, wilson_interval

    facts: dict[str, Any] = dict(spec.provenance)
    num_val = facts["num_val"]

    def line(views: str, key: str) -> str:
        top1 = facts[f"val_top1_error{key}"]
        low, high = wilson_interval(round(top1 * num_val), num_val)
        top5 = f", top-5 {facts[f'val_top5_error{key}']:6.2%}" if has_top5(spec.num_classes) else ""
        return f"  {views} top-1 error {top1:6.2%} (95 % interval: {low:.2%} to {high:.2%}){top5}"

    return "\n".join(
        (
            f"wrote {path} (epoch {facts['best_epoch']} of {facts['num_epochs']}, {num_val:,} validation images)",
            line("one view: ", ""),
            line("ten views:", "_10_views"),
            "  the epoch was chosen by its error on these images; that of others is likely to be higher",
        )
    )


def _top5(gap: str, error: float, num_classes: int) -> str:
    from alexdeploy.core.metrics import has_top5

    return f"{gap}top-5 {error:6.2%}" if has_top5(num_classes) else ""
