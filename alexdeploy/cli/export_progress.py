"""Progress messages of `alexdeploy export` and `alexdeploy calibrate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from alexdeploy.cli import output

if TYPE_CHECKING:
    from rich.progress import TaskID

    from alexdeploy.export.events import Event, MixtureMeasured


@contextmanager
def watch() -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows an export's events: lines on stderr, and a bar for images on a terminal."""
    from alexdeploy.core.events import Notice, Status
    from alexdeploy.export.events import Calibrated, EngineBuildFailed, MixtureMeasured

    with output.progress("images") as bar:
        tasks: list[TaskID] = []

        def show(event: Event) -> None:
            if isinstance(event, Calibrated):
                if not tasks:
                    tasks.append(bar.add_task("calibrate", total=None))
                bar.update(tasks[0], completed=event.num_done, total=event.num_total)
                return
            while tasks:
                bar.remove_task(tasks.pop())
            if isinstance(event, Status):
                output.note(f"  {event.message}")
            elif isinstance(event, Notice):
                output.warn(event.message)
            elif isinstance(event, MixtureMeasured):
                output.note(f"  {_measured(event)}")
            elif isinstance(event, EngineBuildFailed):
                output.fail(event.error)

        yield show


def _measured(event: MixtureMeasured) -> str:
    from alexdeploy.export.drop import describe

    which = f"{', '.join(event.fp32)} in FP32" if event.fp32 else "all layers in INT8"
    left = timedelta(seconds=round(event.seconds_left))
    progress = f"measurement {event.num_done} of about {event.num_expected}, {left} left"
    return f"{progress}: {which}: {describe(event.drop)}"
