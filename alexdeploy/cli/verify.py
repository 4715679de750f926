"""`alexdeploy verify`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import (
    BatchSizeOption,
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
    ViewsOption,
    backends_option,
    check_report,
    find_model_and_images,
    pick,
    precisions_option,
    view_count,
)

if TYPE_CHECKING:
    from rich.console import Console

    from alexdeploy.evaluation.agreement import Agreement, DecoderReport, EngineReport, NetworkReport, Verification

_SHORT_WORDS = ("graph", "backend", "precision", "verdict")
_WORDS = (*_SHORT_WORDS, "layer", "jumps at")
"""Left-aligned columns. In an imported graph a layer may have a long name, which is folded."""

EXAMPLES = (
    "alexdeploy verify",
    "alexdeploy verify alexnet photographs/ --tencrop --html page.html",
    "alexdeploy verify alexnet --precision int8 --layers --max-flips 0.5",
)


def verify(
    model: ModelArgument = None,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders, archives, globs or @list.txt; the training data, or rendered pictures, if left out.",
        ),
    ] = None,
    model_option: ModelOption = None,
    precision: Annotated[str | None, precisions_option("every graph there is")] = None,
    backend: Annotated[str | None, backends_option("all that are installed and fit the devices")] = None,
    devices: DevicesOption = None,
    replicas: ReplicasOption = 1,
    batch_size: BatchSizeOption = 8,
    threads: ThreadsOption = None,
    views: ViewsOption = None,
    tencrop: TencropOption = False,
    num_images: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Maximum number of images, sampled evenly from all."),
    ] = 64,
    max_flips: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Answers that may differ from the reference's. Default: 1, but always those of one image.",
        ),
    ] = None,
    decoders: Annotated[
        bool, typer.Option("--decoders", help="Also count answers that change if nvImageCodec decodes the JPEGs.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Print the error of every layer as well.")] = False,
    html: HtmlOption = None,
    plots: PlotsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare every artifact with FP32: each graph layer by layer, and each backend from pixels to probabilities.

    The reference is PyTorch on the weights, or model.onnx if there are none or PyTorch is not installed.

    Ends with exit code 4 if more than --max-flips answers differ or an output is not finite.

    Ends with exit code 3 if all is well but some of the images could not be read.
    """
    from alexdeploy.core.events import Notice
    from alexdeploy.core.spec import Precision
    from alexdeploy.engines.base import Backend
    from alexdeploy.evaluation.verify import Event, ImagesDone, VerifyOptions
    from alexdeploy.evaluation.verify import verify as run_verify

    options = VerifyOptions(
        precisions=None if precision is None else pick("--precision", precision, get_args(Precision)),
        backends=None if backend is None else pick("--backend", backend, get_args(Backend)),
        num_views=view_count(views, tencrop=tencrop),
        devices=devices,
        replicas=replicas,
        batch_size=batch_size,
        num_threads=threads,
        num_images=num_images,
        max_flips=max_flips,
        decoders=decoders,
        thumbnails=html is not None,
    )
    check_report(html, plots, overwrite=overwrite)
    folder, images = find_model_and_images([model, *(images or ())], model_option)
    output.note(f"model {folder.path}")
    with output.progress("images") as bar:
        task = bar.add_task("verify", total=None)

        def show(event: Event) -> None:
            if isinstance(event, ImagesDone):
                bar.update(task, completed=event.num_done, total=event.num_images)
            elif isinstance(event, Notice):
                output.note(event.message)
            else:
                output.note(f"  {event.message}")
                bar.reset(task, total=None)

        found = run_verify(folder, images or None, options, on_event=show)
    for broken in found.broken:
        output.warn(f"{broken.source}: {broken.error}")
    try:
        if json:
            output.print_json(found.document())
        else:
            with output.page() as console:
                _print(found, console, with_layers=layers)
    finally:
        # Also when nobody reads stdout any more: the page took the time to compute.
        if html is not None or plots is not None:
            from alexdeploy.evaluation.verify_html import write_report

            write_report(found, html, plots)
    for written in (html, plots):
        if written is not None:
            output.note(f"wrote {written}")
    found.check()
    if found.broken:
        raise typer.Exit(3)


def _print(found: Verification, console: Console, *, with_layers: bool) -> None:
    from alexdeploy.evaluation.agreement import FLOORS, JUMP, REFERENCE_NAMES

    line = partial(output.line, console)
    images = f"{output.count(found.num_images, 'image')} of {found.images}"
    line(f"{images}, {output.count(found.num_views, 'view')} each")
    if found.networks:
        title = f"Graphs, each alone in ONNX Runtime against {REFERENCE_NAMES[found.reference]}: logits of a view"
        line(f"\n{title}; relative: to the largest logit", "bold")
        _print_rows(console, [_graph_cells(report) for report in found.networks])
    if found.engines:
        title = f"Engines, from pixels to probabilities, against {found.reference} fp32: probabilities of an image"
        line(f"\n{title}", "bold")
        _print_rows(console, [_engine_cells(report) for report in found.engines])
    if found.decoders is not None:
        _print_decoders(found.decoders, console)
    if with_layers and found.networks:
        line("\nLayers of the graphs: RMS of the error over RMS of the output, and largest over largest", "bold")
        _print_rows(console, _layer_cells(found.networks))
    line("")
    if any(report.agreement.num_flips for report in found.reports):
        line("flips: answers that are not the reference's")
        line("margins: how much more probable it held its own answer, median and most of the flips; near 0 a coin toss")
    if any(report.jump for report in found.networks):
        floors = ", ".join(f"{precision} {floor:g}" for precision, floor in FLOORS.items())
        line(f"jumps at: the first layer whose RMS error is above rounding ({floors})")
        line(f"          and {JUMP:g} times that of every layer before it: look there first; --layers marks it with >")
    total, num_failed = output.count(found.num_comparisons, "comparison"), len(found.failures)
    verdict = f"{num_failed} of {total} failed" if num_failed else f"{total}, none failed"
    line(f"{verdict}; {found.max_flips:.3g} % of the answers may differ", "red" if num_failed else "")


def _print_decoders(report: DecoderReport, console: Console) -> None:
    line = partial(output.line, console)
    line(f"\nDecoders: {report.decoder} against the one that predicts, answers of the FP32 reference", "bold")
    line(
        f"{report.num_identical} of {output.count(report.num_images, 'JPEG')} identical; values of a pixel differ by "
        f"{report.mean_difference:.2g} on average, by {report.max_difference} at most; "
        f"{output.count(report.num_left, 'other file')} left to the latter"
    )
    _print_rows(console, [{**_figures(report.agreement), "verdict": "FAILS" if report.failure else "ok"}])


def _graph_cells(report: NetworkReport) -> dict[str, str]:
    return {
        "graph": report.artifact,
        **_figures(report.agreement),
        "relative": _error(report.agreement.relative_error),
        "jumps at": report.jump or "",
        "verdict": "FAILS" if report.failure else "ok",
    }


def _engine_cells(report: EngineReport) -> dict[str, str]:
    return {
        "backend": report.backend,
        "precision": report.precision,
        **_figures(report.agreement),
        "verdict": "FAILS" if report.failure else "ok",
    }


def _figures(agreement: Agreement) -> dict[str, str]:
    flips, margins, overlap = f"{agreement.num_flips} of {agreement.num_rows}", "", ""
    if agreement.num_non_finite:
        flips = f"{agreement.num_non_finite} of {agreement.num_rows} not finite"
    elif agreement.num_flips:
        flips += f" ({100 * agreement.num_flips / agreement.num_rows:.2f} %)"
    if agreement.median_margin is not None and agreement.max_margin is not None:
        margins = f"{agreement.median_margin:.2g}, {agreement.max_margin:.2g}"
    if agreement.top5_overlap is not None:
        overlap = f"{100 * agreement.top5_overlap:.1f} %"
    return {
        "flips": flips,
        "margins": margins,
        "top 5 kept": overlap,
        "mean error": _error(agreement.mean_error),
        "max error": _error(agreement.max_error),
    }


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _layer_cells(reports: Sequence[NetworkReport]) -> list[dict[str, str]]:
    columns = [{layer.name: layer for layer in report.layers} for report in reports]
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = {"layer": name}
        for report, column in zip(reports, columns, strict=True):
            layer = column.get(name)
            mark = "> " if name == report.jump else ""
            cells[f"{report.precision} RMS"] = "" if layer is None else mark + _error(layer.rms_error)
            cells[f"{report.precision} max"] = "" if layer is None else _error(layer.max_error)
        rows.append(cells)
    return rows


def _print_rows(console: Console, rows: Sequence[dict[str, str]]) -> None:
    """Print a table with a column for each key, omitting columns that are empty in all rows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    for name in names:
        justify: Literal["left", "right"] = "left" if name in _WORDS else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in _SHORT_WORDS)
    for row in rows:
        style = "red" if row.get("verdict") == "FAILS" else ""
        table.add_row(*(Text(output.printable(row[name]) or "-") for name in names), style=style)
    console.print(table)
