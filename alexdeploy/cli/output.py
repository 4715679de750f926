"""Terminal output: results on stdout, everything else on stderr, animations on terminals only."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexdeploy.core.errors import AlexDeployError, OutputError, UsageError
from alexdeploy.core.version import __version__

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

PHOTOGRAPHS_FOLDER = Path("images")
"""Where `train` puts photographs to predict when it is given no data."""

_WIDE = 1000
_NUM_NAMED = 5
_STARTED = time.monotonic()


@dataclass(slots=True)
class _State:
    """The settings of --quiet and --verbose, and the bar that is shown; lines are printed above it."""

    quiet: bool = False
    verbose: bool = False
    bar: Progress | None = None


_STATE = _State()


class ReaderGoneError(OutputError):
    """Nobody reads stdout any more, as in `| head`. Ends the command without a message, as SIGPIPE does elsewhere."""

    exit_code = 141


def stdout_error(exc: OSError) -> OutputError:
    """The OutputError for a failed write to stdout."""
    kind = ReaderGoneError if exc.errno == errno.EPIPE else OutputError
    return kind(f"stdout could not be written: {exc.strerror or exc}")


@contextmanager
def page() -> Iterator[Console]:
    """A console for tables; its output goes to stdout when the block ends.

    It is as wide as the terminal. Into a pipe or file nothing is folded unless COLUMNS is set.
    """
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    text = io.StringIO()
    yield Console(
        file=text,
        highlight=False,
        force_terminal=is_terminal or None,
        width=None if is_terminal or "COLUMNS" in os.environ else _WIDE,
    )
    # A table pads all its lines to one width.
    write("\n".join(line.rstrip() for line in text.getvalue().split("\n")))


def line(console: Console, text: str, style: str = "") -> None:
    """One line of a page; it may be longer than the page is wide."""
    from rich.text import Text

    console.print(Text(printable(text), style), soft_wrap=True)


def stderr() -> Console:
    """A console on stderr. While a bar is shown it is the bar's, which prints above the bar and folds no line."""
    if _STATE.bar is not None:
        return _STATE.bar.console
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def showing(bar: Progress) -> Iterator[Progress]:
    """Show `bar` while the block runs."""
    if bar.disable:
        # Not entered: earlier versions of rich end it with an empty line. Without a terminal, lines need no room.
        yield bar
        return
    before = _STATE.bar
    with bar:
        _STATE.bar = bar
        try:
            yield bar
        finally:
            _STATE.bar = before


def set_quiet(value: bool) -> bool:
    """The callback of --quiet."""
    _STATE.quiet = value
    _refuse_both()
    return value


def set_verbose(value: bool) -> bool:
    """The callback of --verbose; prints the versions in use."""
    _STATE.verbose = value
    _refuse_both()
    if value:
        note(f"alexdeploy {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    return value


def _refuse_both() -> None:
    if _STATE.quiet and _STATE.verbose:
        raise UsageError("--quiet and --verbose exclude each other", hint="Give one of them.")


def is_quiet() -> bool:
    return _STATE.quiet


def note(message: str, *, always: bool = False) -> None:
    """Print one line of information on stderr. With --quiet, only if `always`.

    A full disk does not stop the command, here and in the functions below.
    """
    if _STATE.quiet and not always:
        return
    text = printable(message)
    if _STATE.verbose:
        text = f"[{time.monotonic() - _STARTED:7.2f} s] {text}"
    with suppress(OSError):
        if _STATE.bar is not None:
            _STATE.bar.console.print(text, markup=False, soft_wrap=True)
        else:
            # Loading rich takes twenty times as long as writing the line.
            print(text, file=sys.stderr)


def next_step(*words: str | os.PathLike[str]) -> None:
    """Print the command that usually comes next, with real paths, ready to paste into a shell."""
    note(f"next: {shlex.join(('alexdeploy', *map(str, words)))}")


def next_with_images(model: Path, *options: str) -> None:
    """Suggest `predict` on photographs that exist here; without any, suggest `verify`, which needs none."""
    if PHOTOGRAPHS_FOLDER.is_dir():
        next_step("predict", f"{PHOTOGRAPHS_FOLDER}/", "--tencrop", "--model", model.as_posix(), *options)
    else:
        next_step("verify", model.as_posix())


def warn(message: str) -> None:
    """Print a warning on stderr."""
    with suppress(OSError):
        stderr().print(f"warning: {printable(message)}", style="yellow", markup=False, soft_wrap=True)


def fail(error: AlexDeployError) -> None:
    """Print an error and its hint on stderr."""
    with suppress(OSError):
        console = stderr()
        console.print(f"error: {printable(error.message)}", style="bold red", markup=False, soft_wrap=True)
        if error.hint:
            console.print(printable(error.hint), markup=False, soft_wrap=True)


def printable(text: str) -> str:
    """Escape characters that could control the terminal (names come from files), except for line ends."""
    from alexdeploy.core.printable import escape

    return "\n".join(map(escape, text.split("\n")))


def first_few(items: Sequence[str]) -> list[str]:
    """The first few items and the number of the others; all of them with --verbose."""
    if _STATE.verbose:
        return list(items)
    rest = len(items) - _NUM_NAMED
    return [*items[:_NUM_NAMED], *([f"and {rest:,} more"] if rest > 0 else [])]


def count(number: int, noun: str) -> str:
    """A number and what it counts: "1 image", "1,200 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def print_json(value: Any) -> None:
    """Print one JSON document on stdout. Numbers that are not finite, which JSON cannot represent, become null."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    write(json.dumps(_finite(value), indent=2, ensure_ascii=not is_unicode, allow_nan=False) + "\n")


def write(text: str) -> None:
    """Write results to stdout. Raises OutputError when it is closed, nobody reads it, or the disk is full."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as exc:
        raise stdout_error(exc) from exc


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """A progress bar on stderr with the rate and, where there is a total, the time left; only on a terminal
    and without --quiet.

    For a task with the field `kept` (work done before it began), the rate is the average since its start. For other
    tasks, which have phases, it is that of the last few seconds.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = _speed(task)
            return Text("" if speed is None else f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s")

    class TimeLeft(ProgressColumn):
        # The interval that rich uses itself: a shorter one would only flicker.
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            speed = _speed(task)
            if task.remaining is None:
                return Text("")
            return Text(str(timedelta(seconds=math.ceil(task.remaining / speed))) if speed else "-:--:--")

    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), Rate(), TimeLeft())
    is_shown = console.is_terminal and not is_quiet()
    with showing(Progress(*columns, console=console, disable=not is_shown, transient=True)) as bar:
        yield bar


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on stderr until the block ends; only on a terminal, not --quiet."""
    console = stderr()
    if not console.is_terminal or is_quiet():
        yield lambda message: None
        return
    with console.status("") as shown:
        yield lambda message: shown.update(f"{printable(message)} ...")


def _speed(task: Task) -> float | None:
    if "kept" not in task.fields:
        return task.finished_speed or task.speed
    done = task.completed - task.fields["kept"]
    return done / task.elapsed if done and task.elapsed else None
