"""`alexdeploy evaluate`: the error on labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from alexdeploy.cli import output as out
from alexdeploy.cli.options import (
    BatchSizeOption,
    DevicesOption,
    ExcludeOption,
    HtmlOption,
    JsonOption,
    LabelsOption,
    ModelOption,
    OverwriteOption,
    PlotsOption,
    QuietOption,
    ReplicasOption,
    ResumeOption,
    TencropOption,
    ThreadsOption,
    VerboseOption,
    ViewsListOption,
    backends_option,
    check_output_free,
    check_report,
    open_output,
    pick,
    precisions_option,
    view_counts,
)
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from alexdeploy.evaluation.results import Evaluation, ImageResult, Plan
    from alexdeploy.evaluation.rows import RowsFile
    from alexdeploy.evaluation.scoring import Comparison, ErrorRate, Score

_WIDE = 120
"""Terminal width, in columns, from which errors and their intervals fit on one line."""

EXAMPLES = (
    "alexdeploy evaluate photographs/",
    "alexdeploy evaluate photographs/ --precision fp32,int8 --html page.html",
    "alexdeploy evaluate images/ --labels val.txt --model alexnet -o rows.csv",
)


def evaluate(
    data_name: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Folder with one folder of images for each class, or with train/ and val/ of such (val/ counts), "
            "or, with --labels, any folder of images; also as a URL.",
        ),
    ],
    model: ModelOption = None,
    labels: LabelsOption = None,
    exclude: ExcludeOption = None,
    precision: Annotated[str, precisions_option()] = "fp32",
    views: ViewsListOption = None,
    tencrop: TencropOption = False,
    backend: Annotated[str | None, backends_option("for each precision the first that fits the devices")] = None,
    devices: DevicesOption = None,
    replicas: ReplicasOption = 1,
    batch_size: BatchSizeOption = 8,
    threads: ThreadsOption = None,
    html: HtmlOption = None,
    plots: PlotsOption = None,
    output_name: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write a row for each image, to a file or URL: .jsonl or .csv."
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the top-1 and top-5 error on labelled images, for every given precision, number of views and backend.

    All of them run in one pass, each image being decoded once. An image that cannot be read counts as wrong, and
    the command then ends with exit code 3. Ctrl-C shows the figures of the images so far.
    """
    from alexdeploy.core.model_folder import find_model
    from alexdeploy.core.spec import Precision
    from alexdeploy.engines.base import Backend
    from alexdeploy.evaluation import rows
    from alexdeploy.evaluation.evaluate import EvaluateOptions
    from alexdeploy.evaluation.evaluate import evaluate as run_evaluate
    from alexdeploy.evaluation.results import document
    from alexdeploy.inference.journal import journal_path

    options = EvaluateOptions(
        precisions=pick("--precision", precision, get_args(Precision)),
        num_views=view_counts(views, tencrop=tencrop),
        backends=None if backend is None else pick("--backend", backend, get_args(Backend)),
        labels=labels,
        exclude=tuple(exclude or ()),
        batch_size=batch_size,
        num_threads=threads,
        devices=devices,
        replicas=replicas,
        thumbnails=html is not None,
    )
    stored, output = open_output(output_name)
    if output is not None:
        if stored is not None and resume and output.exists():
            # It is complete, and the store failed then.
            stored.publish()
            out.note(f"wrote {stored.name}")
            return
        rows.check_rows_path(output, resume=resume)
        if not resume or (stored is not None and not journal_path(output).exists()):
            check_output_free(stored, output, overwrite=overwrite)
    elif resume:
        raise UsageError("--resume continues a file of rows", hint="Name it: --output FILE")
    check_report(html, plots, overwrite=overwrite)
    with _Watcher(output, resume=resume, quiet=quiet) as watcher:
        found = run_evaluate(find_model(model), data_name, options, on_event=watcher.show, kept=watcher.kept)
        watcher.finish(found)
    try:
        if json:
            out.print_json(document(found))
        else:
            with out.page() as console:
                _print(found, console)
    finally:
        # Also when nobody reads stdout any more: the page took the time to compute.
        if (html is not None or plots is not None) and not found.interrupted:
            from alexdeploy.evaluation.html import write_report

            write_report(found, html, plots)
    if found.interrupted:
        raise typer.Exit(130)
    if stored is not None:
        stored.publish()
    if output is not None:
        out.note(f"wrote {stored.name if stored else output}: {out.count(found.num_images, 'row')}")
    for written in (html, plots):
        if written is not None:
            out.note(f"wrote {written}")
    if found.num_broken:
        raise typer.Exit(3)


class _Watcher:
    """Shows events and progress on stderr, and writes the rows to the output, if any."""

    def __init__(self, output: Path | None, *, resume: bool, quiet: bool) -> None:
        self._output = output
        self._resume = resume
        self._quiet = quiet
        self._stack = ExitStack()
        self._rows: RowsFile | None = None
        self._advance: Callable[[], None] = lambda: None

    def __enter__(self) -> _Watcher:
        if self._output is not None:
            from alexdeploy.evaluation.rows import RowsFile

            self._rows = self._stack.enter_context(RowsFile(self._output))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if self._rows is not None and error[0] is not None:
            self._tell_of_rows(self._rows)

    def show(self, event: Plan | ImageResult) -> None:
        from alexdeploy.evaluation.results import Plan

        if isinstance(event, Plan):
            self._start(event)
            return
        if self._rows is not None:
            self._rows.write(event)
        self._advance()

    def _start(self, plan: Plan) -> None:
        if self._quiet:
            return
        for note in plan.notes:
            out.note(note)
        self._bar = self._stack.enter_context(out.progress("images"))
        self._task = self._bar.add_task("evaluate", total=plan.num_images, kept=0)
        self._advance = lambda: self._bar.advance(self._task)

    def kept(self, plan: Plan) -> Iterator[ImageResult]:
        if self._rows is None:
            return
        num_kept = 0
        for image in self._rows.kept(plan):
            yield image
            num_kept += 1
        if not self._quiet:
            self._bar.update(self._task, completed=num_kept, kept=num_kept)

    def finish(self, found: Evaluation) -> None:
        if self._rows is None:
            return
        if found.interrupted:
            self._tell_of_rows(self._rows)
        else:
            self._rows.complete()

    def _tell_of_rows(self, rows: RowsFile) -> None:
        if rows.journal_path.exists():
            advice = "" if self._resume else " To go on, add --resume."
            out.note(f"Stopped; the rows so far are in {rows.journal_path}.{advice}", always=True)


def _print(found: Evaluation, console: Console) -> None:
    from alexdeploy.evaluation.results import describe_exceptions

    line = partial(out.line, console)
    line(f"model {found.model}, spec {found.contract_sha256[:12]}", "bold")
    if found.interrupted:
        line(f"PARTIAL: {found.notes[-1]}", "bold yellow")
    line(f"{found.data}: {found.num_images:,} images{describe_exceptions(found)}")
    _print_scores(found, console)
    line(
        "Brackets: 95 % intervals (Wilson"
        + ("; Newcombe for the difference, to the row named)." if len(found.scores) > 1 else ").")
    )
    line("images/s: in the engine alone, with decoding beside it.")
    if found.scores[0].worst_classes:
        line("")
        line(f"worst classes of {found.scores[0].configuration}", "bold")
        _print_worst(found, console)
    if found.broken:
        line("")
        line("could not be read", "bold")
        for image in found.broken[:20]:
            line(f"{image.source}: {image.error}")
        if len(found.broken) > 20:
            line(f"and {len(found.broken) - 20:,} more; --output and --json name them all")


def _print_scores(found: Evaluation, console: Console) -> None:
    from rich.table import Table

    from alexdeploy.core.metrics import has_top5

    is_wide = console.width >= _WIDE
    with_top5 = has_top5(len(found.classes))
    gap = " " if is_wide else "\n"
    table = Table(box=None, header_style="bold", padding=(0, 2 if is_wide else 1, 0, 0))
    table.add_column("backend", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    errors = ("top-1 error %", "top-5 error %") if with_top5 else ("top-1 error %",)
    for name in ("views", *errors, "ECE", "images/s"):
        table.add_column(name, justify="right")
    if len(found.scores) > 1:
        table.add_column("points against", justify="right")
        table.add_column("flips", justify="right")
    for score in found.scores:
        configuration = score.configuration
        cells = [configuration.backend, configuration.precision, str(configuration.num_views)]
        cells += [_rate(rate, gap) for rate in ((score.top1, score.top5) if with_top5 else (score.top1,))]
        cells += [_number(score.calibration_error, ".3f"), _number(score.images_per_second, ",.1f")]
        if len(found.scores) > 1:
            cells += _difference(score.versus, gap)
        table.add_row(*cells)
    console.print(table)


def _print_worst(found: Evaluation, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    first = found.scores[0]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("class", overflow="fold")
    for name in ("wrong", "images", "error %"):
        table.add_column(name, justify="right")
    table.add_column("most often taken for", overflow="fold")
    for row in first.worst_classes:
        cells = (f"{row.num_errors:,}", f"{row.num_images:,}", f"{row.error_percent:.1f}")
        table.add_row(Text(out.printable(row.name)), *cells, Text(out.printable(_taken_for(found, first, row.index))))
    console.print(table)


def _taken_for(found: Evaluation, score: Score, true: int) -> str:
    from alexdeploy.core.metrics import frequent_confusions

    counts = {(c.true, c.predicted): c.count for c in score.confusion if c.true == true}
    return ", ".join(f"{found.classes[predicted]} {count}" for _, predicted, count in frequent_confusions(counts, 2))


def _rate(rate: ErrorRate, gap: str) -> str:
    return f"{rate.percent:.2f}{gap}[{rate.low_percent:.2f}, {rate.high_percent:.2f}]"


def _difference(comparison: Comparison | None, gap: str) -> list[str]:
    if comparison is None:
        return ["", ""]
    interval = f"[{comparison.low_points:+.2f}, {comparison.high_points:+.2f}]"
    base = f"{comparison.base.precision} {comparison.base.num_views}"
    return [f"{base}: {comparison.difference_points:+.2f}{gap}{interval}", f"{comparison.num_flips:,}"]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
