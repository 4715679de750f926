"""`alexdeploy bench`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from alexdeploy.cli import output as out
from alexdeploy.cli.options import (
    DevicesOption,
    HtmlOption,
    JsonOption,
    ModelArgument,
    ModelOption,
    OverwriteOption,
    PlotsOption,
    QuietOption,
    ReplicasOption,
    TencropOption,
    ThreadsOption,
    VerboseOption,
    ViewsListOption,
    backends_option,
    check_report,
    find_one_model,
    pick,
    precisions_option,
    view_counts,
)
from alexdeploy.core.errors import DeviceError, UsageError, by_name

if TYPE_CHECKING:
    from rich.console import Console

    from alexdeploy.benchmark.events import Event, Step
    from alexdeploy.benchmark.results import Benchmark, Row

_INTERRUPTED = 130
_WIDE = 100
"""Terminal width, in columns, from which all figures fit on one line."""

_WIDER = 120
"""Terminal width from which columns are separated by two blanks."""

EXAMPLES = (
    "alexdeploy bench",
    "alexdeploy bench alexnet --images photographs/ --html bench.html",
    "alexdeploy bench alexnet --budget-ms 50 --min-agreement 0.99 --seconds 60",
)


def bench(
    model: ModelArgument = None,
    model_option: ModelOption = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Photographs to decode and to compare answers on: a folder, archive, glob or @list.txt; repeatable. "
            "Default: JPEGs rendered for it.",
        ),
    ] = None,
    backend: Annotated[str | None, backends_option("all that are installed")] = None,
    precision: Annotated[str | None, precisions_option("every graph there is")] = None,
    views: ViewsListOption = None,
    tencrop: TencropOption = False,
    batch_size: Annotated[str, typer.Option(metavar="LIST", help="Batch sizes, separated by commas.")] = "1,2,8",
    budget_ms: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="MS",
            help="Pick only configurations whose p95 latency per batch is within this many ms, engine alone, without "
            "decoding.",
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Pick only configurations with at least this agreement with FP32, e.g. 0.995.",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Total time, including opening: engines not open after half of it are left out. The rest is "
            "measured at least once. 0: everything once, however long it takes.",
        ),
    ] = 120.0,
    num_images: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of images, sampled evenly from all.")
    ] = 64,
    devices: DevicesOption = None,
    replicas: ReplicasOption = 1,
    threads: ThreadsOption = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the order within the rounds.")] = 0,
    html: HtmlOption = None,
    plots: PlotsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure every backend, precision, number of views and batch that can run here; name the fastest.

    Each runs in its own process, in short alternating slices. Measured are the engine alone, decoding alone, the whole
    way from files to rows and its upper bound, latency, memory, start-up, and agreement with FP32.

    Ends with exit code 5 if nothing meets --budget-ms and --min-agreement; if nothing could be measured at all, with
    that of the first error. Ctrl-C shows the results so far.
    """
    from alexdeploy.benchmark.bench import bench as run_bench
    from alexdeploy.benchmark.plan import BenchOptions
    from alexdeploy.benchmark.statistics import Limits
    from alexdeploy.core.spec import Precision
    from alexdeploy.engines.base import Backend

    options = BenchOptions(
        backends=None if backend is None else pick("--backend", backend, get_args(Backend)),
        precisions=None if precision is None else pick("--precision", precision, get_args(Precision)),
        num_views=view_counts(views, tencrop=tencrop),
        batch_sizes=_batch_sizes(batch_size),
        images=tuple(images) if images else None,
        num_images=num_images,
        seconds=seconds,
        seed=seed,
        num_threads=threads,
        devices=devices,
        replicas=replicas,
        limits=Limits(budget_ms=budget_ms, min_agreement=min_agreement),
        with_profile=html is not None or plots is not None,
    )
    check_report(html, plots, overwrite=overwrite)
    with _watching(quiet=quiet) as show:
        found = run_bench(find_one_model(model, model_option), options, on_event=show)
    try:
        if json:
            out.print_json(_document(found))
        else:
            with out.page() as console:
                _print(found, console)
    finally:
        # Also when nobody reads stdout any more: the page took the time to measure.
        if html is not None or plots is not None:
            from alexdeploy.benchmark.html import write_report

            write_report(found, html, plots)
    for written in (html, plots):
        if written is not None:
            out.note(f"wrote {written}")
    if found.interrupted:
        out.note("Stopped; these are the figures so far.")
        raise typer.Exit(_INTERRUPTED)
    if _all_failed(found):
        first = found.rows[0]
        kind = by_name(first.error_kind or "")
        what = "nothing could be measured" if first.latency is None else "all configurations failed"
        raise kind(f"{what}: {first.configuration}: {first.error}", hint=first.hint)
    if found.failure is not None:
        raise DeviceError(
            f"no configuration keeps {found.limits}: {found.failure}",
            hint="Allow more, or name other --precision, --views or --batch-size.",
        )


def _all_failed(found: Benchmark) -> bool:
    return all(row.error is not None for row in found.rows)


def _batch_sizes(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(
            f"--batch-size {text}: expected numbers of images from 1 on, with commas between",
            hint="For example: --batch-size 1,8,32",
        )
    return tuple(sorted({int(word) for word in words}))


@contextmanager
def _watching(*, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows events: notes, and a bar on a terminal or else one line per phase."""
    from alexdeploy.core.events import Notice

    if quiet:
        yield lambda event: None
        return
    if not sys.stderr.isatty():
        told: set[str] = set()

        def show_line(event: Event) -> None:
            if isinstance(event, Notice):
                out.note(event.message)
                return
            text = _line_of(event)
            if text is not None and text not in told:
                told.add(text)
                out.note(text)

        yield show_line
        return
    with out.progress("steps") as bar:
        task = bar.add_task("bench", total=None)

        def show(event: Event) -> None:
            if isinstance(event, Notice):
                out.note(event.message)
            else:
                bar.update(task, description=str(event), completed=event.num_done, total=event.num_total)

        yield show


def _line_of(step: Step) -> str | None:
    rounds = {
        1: "measuring, round after round",
        2: "each is measured once; from here on Ctrl-C shows figures of all",
    }
    return {
        "opening": f"opening {step.num_total} processes, one after the other",
        "comparing": f"opening {step.name} as well, for answers to compare with",
        "measuring": rounds.get(step.number),
        "profiling": str(step),
    }[step.phase]


def _document(found: Benchmark) -> dict[str, object]:
    """The whole benchmark. Adds each configuration's name, and the shares computed from counts."""
    document = dataclasses.asdict(found)
    for row, cells in zip(found.rows, document["rows"], strict=True):
        cells["name"] = str(row.configuration)
        if row.agreed is not None:
            cells["agreed"]["share"] = row.agreed.share
    return document


def _print(found: Benchmark, console: Console) -> None:
    from alexdeploy.benchmark.format import confidence_note, hints_of, rate, spread

    line = partial(out.line, console)
    machine = found.machine
    line(f"model {found.model}, spec {found.contract_sha256[:12]}", "bold")
    line(f"{machine.processor}, {out.count(machine.num_threads, 'thread')}; {found.images}")
    for num_views in dict.fromkeys(row.configuration.num_views for row in found.rows):
        line(f"\n{out.count(num_views, 'view')} an image", "bold")
        _print_rows(console, [row for row in found.rows if row.configuration.num_views == num_views])
    for hint in hints_of(found.rows):
        # The first one's hint is printed with the error that ends the command.
        if not (_all_failed(found) and hint == found.rows[0].hint):
            line(hint)
    line("")
    line("engine: images/s on decoded images; files: images/s as predict does it, reading and decoding included")
    if _has_spread(found.rows):
        line("least-most: images/s from files in the slowest and the fastest round; engine and files are medians")
    if found.decode_per_second is not None:
        line(f"bound: share of what decoding alone ({found.decode_per_second:,.0f} images/s) and the engine allow")
    line("p50, p95: milliseconds of a batch in the engine alone, all its streams busy and nothing decoding beside it;")
    line("  of fewer than 20 batches, p95 is the slowest")
    line("same: answers that are FP32's")
    if console.width >= _WIDE:
        line("ceiling: share of a matrix product's GFLOP/s in the same backend and precision; MB: most memory at once")
        line("first: seconds from a cold process to its first row")
    else:
        line(f"memory, first row and share of the ceiling: from {_WIDE} columns on, and in --json, --html")
    line("p99, views/s and load time: in --json and --html")
    if found.picked:
        line("")
    for each in found.picked:
        rounds = f" ({spread(each.file_rates)})" if spread(each.file_rates) else ""
        against = confidence_note(each)
        line(
            f"fastest with {out.count(each.configuration.num_views, 'view')}: {each.configuration}: "
            f"{rate(each.files_per_second)} images/s from files{rounds}, p95 {each.p95_ms:,.1f} ms",
            "bold" if against is None else "",
        )
        if against is not None:
            line(f"  {against}")
        line(f"  {each.command}")
    if found.machine.load_end is not None:
        rounds = out.count(found.num_rounds, "round")
        line(f"\n{rounds} in {found.seconds:.0f} s; load {machine.load_start:.1f} before, {machine.load_end:.1f} after")


def _has_spread(rows: Sequence[Row]) -> bool:
    """Whether anything ran in more than one round."""
    return any(len(row.file_rates) > 1 for row in rows)


def _print_rows(console: Console, rows: list[Row]) -> None:
    from rich.table import Table
    from rich.text import Text

    from alexdeploy.benchmark.format import errors_of, number, percent, rate, spread

    table = Table(box=None, header_style="bold", padding=(0, 2 if console.width >= _WIDER else 1, 0, 0))
    for name in ("backend", "precision"):
        table.add_column(name, no_wrap=True)
    is_wide, has_spread = console.width >= _WIDE, _has_spread(rows)
    names = ["batch", "engine", "files", *["least-most"] * has_spread, "bound", "p50", "p95", "same"]
    for name in [*names, "ceiling", "MB", "first"] if is_wide else names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        named = row.configuration
        cells = [named.backend, named.precision, str(named.batch_size)]
        latency = row.latency
        if latency is None:
            is_fault = row.error is not None and row.error_kind != "UsageError"
            what, style = ("error", "red") if is_fault else ("not measured", "")
            table.add_row(*cells, what, style=style)
            continue
        cells += [rate(row.images_per_second), rate(row.files_per_second), *[spread(row.file_rates)] * has_spread]
        cells += [percent(row.fraction_of_bound), f"{latency.p50_ms:,.1f}", f"{latency.p95_ms:,.1f}"]
        cells.append("" if row.agreed is None else f"{row.agreed.num_same}/{row.agreed.num_images}")
        if is_wide:
            cells.append(percent(row.fraction_of_ceiling))
            cells.append(number(None if row.peak_bytes is None else row.peak_bytes / 1e6, ",.0f"))
            cells.append(number(None if row.start is None else row.start.first_row_seconds, ".2f"))
        table.add_row(*cells, style="" if row.error is None else "red")
    console.print(table)
    for error in errors_of(rows):
        console.print(Text(out.printable(error), "red"), soft_wrap=True)
