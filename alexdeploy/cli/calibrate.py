"""`alexdeploy calibrate`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.export_progress import watch
from alexdeploy.cli.options import (
    JsonOption,
    ModelArgument,
    ModelOption,
    QuietOption,
    TencropOption,
    VerboseOption,
    find_model_and_images,
    view_count,
)
from alexdeploy.core.errors import UsageError

EXAMPLES = (
    "alexdeploy calibrate alexnet photographs/",
    "alexdeploy calibrate alexnet @list.txt --num-images 1000",
    "alexdeploy calibrate alexnet photographs/ --tencrop --method entropy",
)


def calibrate(
    model: ModelArgument = None,
    images: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGES",
            help="Photographs representative of production: a folder, an archive, a glob or @list.txt. Always needed.",
        ),
    ] = None,
    model_option: ModelOption = None,
    num_images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of images, sampled by name and seed. Default: 512.")
    ] = None,
    views: Annotated[
        Literal["1", "10"] | None,
        typer.Option(metavar="1|10", help="Views of each image that are measured: the centre, or all ten. Default: 1."),
    ] = None,
    tencrop: TencropOption = False,
    method: Annotated[
        Literal["minmax", "percentile", "entropy", "mse"] | None,
        typer.Option(
            metavar="METHOD",
            help="Calibration method: minmax, percentile, entropy, mse. Default: mse.",
        ),
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(min=50, max=100, metavar="PERCENT", help="For --method percentile. Default: 99.99.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of the image sample. Default: 0.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the ranges of the network's tensors on real images, for INT8 and FP16.

    Writes calibration/MODEL.ranges.json, and before it model.onnx if that is missing. No labels are needed. Defaults
    come from calibration/default.toml. Ctrl-C shows the results so far, and writes nothing.
    """
    from alexdeploy.core.recipe import load_calibration
    from alexdeploy.export.quantize.calibrate import CalibrationInterrupted
    from alexdeploy.export.quantize.calibrate import calibrate as measure
    from alexdeploy.graphs.freshness import newer_weights

    if percentile is not None and method not in (None, "percentile"):
        raise UsageError(f"--percentile is for --method percentile, not {method}", hint="Leave one of them out.")
    given: dict[str, Any] = {
        "num_images": num_images,
        "num_views": view_count(views, tencrop=tencrop) if views or tencrop else None,
        "method": "percentile" if percentile is not None else method,
        "percentile": percentile,
        "seed": seed,
    }
    recipe = load_calibration().replace(**{name: value for name, value in given.items() if value is not None})
    folder, given_images = find_model_and_images([model, images], model_option)
    if len(given_images) != 1:
        raise UsageError(
            f"expected one source of IMAGES to calibrate on, found {len(given_images)}",
            hint="Give a folder, an archive, a quoted glob or @list.txt: alexdeploy calibrate MODEL IMAGES",
        )
    if folder.weights_path.is_file() and not folder.onnx_path().is_file():
        from alexdeploy.export.export import export_model

        output.note(f"{folder.path.as_posix()} has no {folder.onnx_path().name} yet, which is what is measured")
        with watch() as show:
            export_model(folder, on_event=show)
    output.note(f"model {folder.path.as_posix()}, {recipe.num_views} view{'s' * (recipe.num_views > 1)} an image")
    if (note := newer_weights(folder)) is not None:
        output.warn(note)
    num_chosen = None
    try:
        with watch() as show:
            ranges = measure(folder, given_images[0], recipe, show)
    except CalibrationInterrupted as stop:
        ranges, num_chosen = stop.ranges, stop.num_chosen
    for warning in ranges.warnings:
        output.warn(warning)
    for name, reason in ranges.skipped.items():
        output.warn(f"{name} was left out: {reason}")
    if json:
        output.print_json(dataclasses.asdict(ranges) | ({} if num_chosen is None else {"interrupted": True}))
    else:
        _print_ranges(ranges, num_chosen)
    if num_chosen is not None:
        output.note(f"Stopped after {ranges.num_images:,} of {num_chosen:,} images; nothing was written.")
        raise typer.Exit(130)
    output.note(f"wrote {folder.ranges_path.as_posix()}: {ranges.num_images} images, key {ranges.key[:12]}")
    output.next_step("export", folder.path.as_posix(), "--int8")
    if ranges.skipped:
        raise typer.Exit(3)


def _print_ranges(ranges: Any, num_chosen: int | None) -> None:
    from rich.table import Table

    of = "" if num_chosen is None else f" of {num_chosen:,}, PARTIAL"
    table = Table(title=f"{ranges.model}: ranges by {ranges.method} on {ranges.num_images} images{of}")
    table.add_column("tensor")
    for column in ("min", "max", "99.9 % of |x| below", "INT8 reaches", "scale"):
        table.add_column(column, justify="right")
    for name, tensor in ranges.tensors.items():
        numbers = (tensor.minimum, tensor.maximum, tensor.percentiles["99.9"], tensor.threshold, tensor.scale)
        table.add_row(output.printable(name), *(f"{number:.4g}" for number in numbers))
    with output.page() as console:
        console.print(table)
