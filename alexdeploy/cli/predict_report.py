"""What `alexdeploy predict` says on stderr: progress, and a summary."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from alexdeploy.cli import output as out

if TYPE_CHECKING:
    from rich.progress import Progress

    from alexdeploy.engines.base import EngineInfo
    from alexdeploy.images.sources import Inputs
    from alexdeploy.inference.predictor import Predictor
    from alexdeploy.inference.row import Row


class Report:
    """Counts rows, shows progress and prints a summary, all on stderr."""

    def __init__(self, *, quiet: bool, shows_progress: bool) -> None:
        self.quiet = quiet
        self.num_rows = self.num_errors = self.num_kept = 0
        # The progress bar replaces sys.stdout; rows must not go through it.
        self.stdout = sys.stdout.buffer
        self._shows_progress = shows_progress and not quiet and sys.stderr.isatty()
        self._stack = ExitStack()
        self._is_over = False

    def __enter__(self) -> Report:
        self._began = time.monotonic()
        self._bar: Progress | None = None
        if self._shows_progress:
            self._bar = self._stack.enter_context(out.progress("images"))
            # No rate is known while the model is being opened.
            self._task = self._bar.add_task("predict", start=False, total=None, kept=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._stack.close()

    def begin(self, inputs: Inputs) -> None:
        """Start the progress bar's clock, and count the inputs in the background while the work walks them."""
        if self._bar is not None:
            self._bar.start_task(self._task)
            threading.Thread(target=self._count_inputs, args=(self._bar, inputs), daemon=True).start()

    def _count_inputs(self, bar: Progress, inputs: Inputs) -> None:
        total = inputs.count(lambda: not self._is_over)
        if total is not None:
            bar.update(self._task, total=total)

    def count(self, row: Row) -> None:
        if self._bar is not None:
            if self.num_rows == 0:
                # The rows before it come from the run that is being resumed.
                self._bar.update(self._task, kept=row.index)
            self._bar.update(self._task, completed=row.index + 1)
        self.num_rows += 1
        self.num_errors += row.error is not None

    def summarize(self, predictor: Predictor, inputs: Inputs) -> None:
        """Print the number of images, the speed and the engine; for replicas, the share of each; skipped files."""
        if self.quiet:
            return
        info, seconds = predictor.info, max(time.monotonic() - self._began, 1e-9)
        rate = self.num_rows / seconds
        for each in predictor.replicas:
            share = each.num_images / max(sum(other.num_images for other in predictor.replicas), 1)
            busy = each.busy_seconds / each.num_streams if each.num_streams else 0.0
            losses = f", lost {out.count(each.num_losses, 'time')} ({each.last_loss})" if each.num_losses else ""
            out.note(
                f"{each.device}{f' {each.name}' if each.name else ''}, {each.backend}: "
                f"{out.count(each.num_images, 'image')} ({share:.0%}), "
                f"{each.num_images / max(busy, 1e-9):,.1f} images/s, waited "
                f"{max(seconds - busy, 0.0):.1f} of {seconds:.1f} s{losses}"
            )
        kept = f", {self.num_kept} of them from before" if self.num_kept else ""
        out.note(
            f"{out.count(self.num_rows + self.num_kept, 'image')}{kept}, {out.count(self.num_errors, 'error')}, "
            f"{rate:,.1f} images/s, {describe(info)}"
        )
        if skipped := str(inputs.skipped):
            out.note(f"skipped {skipped}")


def describe(info: EngineInfo) -> str:
    from alexdeploy.inference.writers import short_artifact

    views = out.count(info.num_views, "view")
    return f"{info.backend} {info.precision}, {views}, artifact {short_artifact(info.artifact)}"
