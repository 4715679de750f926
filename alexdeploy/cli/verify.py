"""`alexdeploy verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Optional, TypeVar, cast, get_args

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, ModelArgument
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from alexdeploy.engines.base import NumViews
    from alexdeploy.inference.verify import Agreement, NetworkReport, Verification

_Name = TypeVar("_Name", bound=str)
_FIGURES = ("flips", "top 5", "margin, most", "mean err", "max err")
"""Of each row. The margins are the median and the largest of the flips."""
_WORDS = ("precision", "backend", "layer", "")
"""Columns that are set to the left."""


def verify(
    model: ModelArgument = None,
    images: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time, also on Python 3.10
        typer.Argument(
            metavar="IMAGES",
            help="Files, folders, archives, globs or @list.txt; the training data, or rendered pictures, if left out.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Of fp32, fp16, int8 and bf16. Default: every graph there is."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Of openvino, onnxruntime and torch. Default: all that are installed."),
    ] = None,
    views: Annotated[Literal["1", "5", "10"], typer.Option(help="Views of each image.")] = "1",
    num_images: Annotated[
        int, typer.Option(min=1, help="Most images that are used; they lie evenly over all that are named.")
    ] = 64,
    max_flips: Annotated[
        float, typer.Option(min=0, max=100, metavar="PERCENT", help="Answers that may differ from the reference's.")
    ] = 1.0,
    layers: Annotated[bool, typer.Option("--layers", help="Print the error of every layer as well.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare every artifact with FP32: each graph layer by layer, and each backend from pixels to probabilities.

    The reference is PyTorch on the weights, or model.onnx where there are none or PyTorch is not installed.

    Ends with exit code 4 if more than --max-flips answers differ or an output is not finite.

    Ends with exit code 3 if all is well but some of the images could not be read.
    """
    from alexdeploy.core.artifacts import find_model
    from alexdeploy.core.spec import Precision
    from alexdeploy.engines.base import Backend
    from alexdeploy.inference.verify import VerifyOptions
    from alexdeploy.inference.verify import verify as run_verify

    options = VerifyOptions(
        precisions=_names("--precision", precision, get_args(Precision)),
        backends=_names("--backend", backend, get_args(Backend)),
        num_views=cast("NumViews", int(views)),
        num_images=num_images,
        max_flips=max_flips,
    )
    folder = find_model(model)
    output.note(f"model {folder.path}")
    with output.progress("images") as bar:
        task = bar.add_task("verify", total=None)

        def begin(step: str) -> None:
            # Not by note(): the bar must make room for what is printed above it.
            bar.console.print(output.printable(f"  {step}"), markup=False, soft_wrap=True)
            bar.reset(task, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = run_verify(folder, images, options, begin, advance)
    for broken in found.broken:
        output.warn(f"{broken.source}: {broken.error}")
    if json:
        output.print_json({**dataclasses.asdict(found), "failures": found.failures})
    else:
        with output.page() as console:
            _print(found, console, with_layers=layers)
    found.check()
    if found.broken:
        raise typer.Exit(3)


def _names(option: str, text: str | None, known: tuple[_Name, ...]) -> tuple[_Name, ...] | None:
    """The names of a list like "fp32,fp16", each once; None if it is left out."""
    if text is None:
        return None
    asked = dict.fromkeys(part.strip() for part in text.split(","))
    for name in asked:
        if name not in known:
            raise UsageError(f"{option} names {name!r}", cure=f"It takes a list of: {', '.join(known)}")
    return tuple(name for name in known if name in asked)


def _print(found: Verification, console: Console, *, with_layers: bool) -> None:
    from rich.text import Text

    from alexdeploy.inference.verify import FLOORS, JUMP, REFERENCE_NAMES, describe

    def line(text: str, style: str = "") -> None:
        console.print(Text(output.printable(text), style), soft_wrap=True)

    line(f"{_count(found.num_images, 'image')} of {found.images}, {_count(found.num_views, 'view')} each")
    if found.networks:
        line(f"\nNetworks in ONNX Runtime against {REFERENCE_NAMES[found.reference]}: logits of each view", "bold")
        networks = [
            (each.precision, *_figures(each.agreement), _error(each.agreement.relative_error), each.jump or "-")
            for each in found.networks
        ]
        console.print(_table(("precision", *_FIGURES, "relative", "jumps at"), networks))
    if found.engines:
        line(f"\nEngines against {found.reference} fp32: probabilities of each image", "bold")
        engines = [(each.precision, each.backend, *_figures(each.agreement)) for each in found.engines]
        console.print(_table(("precision", "backend", *_FIGURES), engines))
    if with_layers and found.networks:
        line("\nLayers: RMS of the error over RMS of the output, largest error over largest output", "bold")
        console.print(_layers(found.networks))
        floors = ", ".join(f"{precision} {floor:g}" for precision, floor in FLOORS.items())
        line(f"< the error jumps: first RMS above the floor ({floors}) and {JUMP:g} times all before it")
    line("")
    for report in found.reports:
        line(describe(report), "red" if report.failure else "")


def _figures(agreement: Agreement) -> tuple[str, ...]:
    flips = f"{agreement.num_flips}/{agreement.num_rows}"
    if agreement.num_non_finite:
        flips += f", {agreement.num_non_finite} not finite"
    margins = "-"
    if agreement.median_margin is not None and agreement.max_margin is not None:
        margins = f"{agreement.median_margin:.2g}, {agreement.max_margin:.2g}"
    overlap = "-" if agreement.top5_overlap is None else f"{100 * agreement.top5_overlap:.1f} %"
    return (flips, overlap, margins, _error(agreement.mean_error), _error(agreement.max_error))


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _layers(reports: Sequence[NetworkReport]) -> Table:
    columns = [{layer.name: layer for layer in report.layers} for report in reports]
    rows = []
    for name in dict.fromkeys(name for column in columns for name in column):
        cells = [name]
        for report, column in zip(reports, columns, strict=True):
            layer = column.get(name)
            mark = "<" if name == report.jump else ""
            cells += ["-", "-", ""] if layer is None else [_error(layer.rms_error), _error(layer.max_error), mark]
        rows.append(cells)
    return _table(("layer", *(title for each in reports for title in (each.precision, "largest", ""))), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in header:
        table.add_column(name, justify="left" if name in _WORDS else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(output.printable(cell)) for cell in row))
    return table


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
