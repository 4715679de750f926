"""`alexdeploy export`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

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
    ViewsOption,
    find_own_model,
    pick,
    precisions_option,
    view_count,
)
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.export.export import Exported
    from alexdeploy.export.fp16 import HalfLayer
    from alexdeploy.export.parity import Parity
    from alexdeploy.export.quantize.quantize import Quantization

EXAMPLES = (
    "alexdeploy export --fp16",
    "alexdeploy export alexnet --int8 --calibrate photographs/",
    "alexdeploy export alexnet --fp16 --deployment --tencrop",
)


def export(
    model: ModelArgument = None,
    model_option: ModelOption = None,
    precision: Annotated[str, precisions_option("fp32, which is always written", "fp32,fp16,int8")] = "fp32",
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Same as --precision fp16: also write model.fp16.onnx, LRN in FP32.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Same as --precision int8: also write model.int8.onnx, with Q/DQ round Conv and Gemm."
        ),
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="For --int8: measure ranges on these first, as `calibrate` does."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="POINTS",
            help="Maximum accuracy loss for INT8, in percentage points of changed answers, or of top-1 error with "
            "--labelled; layers are kept in FP32 to meet it. Default: 1.",
        ),
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="For --max-drop: measure the top-1 error on these, one folder a class."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="LAYERS", help="For --int8: layers that always stay FP32, such as conv1,fc8."),
    ] = None,
    int8_weights: Annotated[
        int | None,
        typer.Option(
            min=7,
            max=8,
            metavar="BITS",
            help="For --int8: 8, or 7 where OpenVINO runs on an x86 processor without VNNI, whose sums of 8-bit "
            "products saturate (elsewhere called reduce_range). Default: 8.",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Photographs to check on. Default: the training data."),
    ] = None,
    deployment: Annotated[
        bool,
        typer.Option(
            "--deployment",
            help="Also write deployment.onnx of each precision, pixels in and probabilities out, for any ONNX runtime. "
            "One that is there is renewed without it.",
        ),
    ] = False,
    views: ViewsOption = None,
    tencrop: TencropOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Export model.onnx again, even if it is up to date.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write model.onnx from the weights, with LRN as one native node, and check that the answers stay the same.

    Every layer is compared with an independent float64 computation before a file is replaced. A model.onnx that is up
    to date is kept; the backends are checked on it again.
    """
    from alexdeploy.export.build import build_engines
    from alexdeploy.export.export import ExportOptions, export_model
    from alexdeploy.export.quantize.quantize import Budget

    asked = pick("--precision", precision, ("fp32", "fp16", "int8"))
    fp16, int8 = fp16 or "fp16" in asked, int8 or "int8" in asked
    for name, value in (
        ("--calibrate", calibrate),
        ("--max-drop", max_drop),
        ("--labelled", labelled),
        ("--keep", keep),
        ("--int8-weights", int8_weights),
    ):
        if value is not None and not int8:
            raise UsageError(f"{name} is for --int8", hint="Add --int8, or leave it out.")
    if not deployment and (views or tencrop):
        raise UsageError(
            f"{'--tencrop' if tencrop else '--views'} is for --deployment: a network has one view",
            hint="Add --deployment, or leave it out.",
        )
    folder = find_own_model(model, model_option)
    output.note(f"model {folder.path}")
    options = ExportOptions(
        fp16=fp16,
        int8=int8,
        int8_weights=7 if int8_weights == 7 else 8,
        deployment=deployment,
        num_views=view_count(views, tencrop=tencrop),
        overwrite=overwrite,
        images=images,
        calibrate=calibrate,
        budget=Budget(max_drop=max_drop, labelled=labelled, keep=_names(keep)),
    )
    with watch() as show:
        exported = export_model(folder, options, show)
    if json:
        output.print_json([{**dataclasses.asdict(item), "path": str(item.path)} for item in exported])
    else:
        for item in exported:
            _report(item)
    graphs = [item.precision for item in exported if item.num_views is None and item.precision != "fp32"]
    with watch() as show:
        built = build_engines(folder, graphs, show)
    # FP16 is faster only on engines that compute in it; a CPU computes in FP32 anyway.
    best = "int8" if int8 else "fp16" if ("fp16", 10) in built.fit else "fp32"
    output.next_with_images(folder.path, *(("--precision", best) if best != "fp32" else ()))
    if built.exit_code:
        raise typer.Exit(built.exit_code)


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _report(item: Exported) -> None:
    size = item.path.stat().st_size / 1e6
    verb = "wrote" if item.written else "up to date:"
    output.note(f"{verb} {item.path.as_posix()} ({size:.1f} MB, sha256 {item.sha256[:12]})")
    if item.parity is not None:
        _report_parity(item.parity)
    for check in item.backends:
        if check.problem is None:
            views = "1 view and with 10" if item.num_views is None else output.count(item.num_views, "view")
            answers = f"same answers with {views}, logits off by {check.error:.1e}"
            output.note(f"  {check.backend} {check.version}: {answers}")
    if item.half_layers:
        _print_half_layers(item.half_layers)
    if item.quantization is not None:
        _print_quantization(item.quantization)


def _report_parity(parity: Parity) -> None:
    output.note(
        f"  {parity.same_answers} of {parity.num_images} answers the same, "
        f"logits off by {parity.logit_error:.1e}, "
        f"worst layer {parity.worst_layer} by {parity.worst_error:.1e} of its largest output "
        f"(allowed {parity.tolerance:.0e})"
    )


def _print_half_layers(layers: tuple[HalfLayer, ...]) -> None:
    from rich.table import Table

    table = Table(title="FP16: how near each layer is to the limit, and what stays FP32")
    table.add_column("layer")
    table.add_column("largest |x|", justify="right")
    table.add_column("of the limit", justify="right")
    table.add_column("runs in")
    table.add_column("why")
    for layer in layers:
        # It only reshapes its input.
        if layer.op == "Reshape":
            continue
        limit = f"{layer.share:.1%}" + (" of 255" if layer.op == "LRN" else "")
        table.add_row(output.printable(layer.layer), f"{layer.largest:.4g}", limit, layer.precision, layer.reason)
    with output.page() as console:
        console.print(table)


def _print_quantization(found: Quantization) -> None:
    from rich.table import Table

    from alexdeploy.export.drop import describe

    drop = found.choice.drop
    kept = ", ".join([*found.choice.keep, *found.keep_asked])
    kept = f"in FP32: {kept}" if kept else "every layer in INT8"
    output.note(
        f"  {kept}; {describe(drop)} on images of {found.measured_on}, "
        f"{found.num_calibrated} of them also used to measure the ranges "
        f"(allowed {found.budget:.4g}; logits off by {drop.logit_error:.1%}; "
        f"{output.count(found.choice.num_trials, 'graph')} measured)"
    )
    if not found.ranking:
        return
    table = Table(title="INT8: what each layer costs alone, the worst first")
    table.add_column("layer")
    for column in ("logits off by", "answers changed", "points", "of the multiply-accumulates"):
        table.add_column(column, justify="right")
    table.add_column("runs in")
    total = sum(cost.macs for cost in found.ranking)
    for cost in found.ranking:
        table.add_row(
            output.printable(cost.layer),
            f"{cost.drop.logit_error:.2%}",
            f"{cost.drop.num_flips} of {cost.drop.num_images}",
            f"{cost.drop.points:.2f}",
            f"{cost.macs / max(total, 1):.1%}",
            "fp32" if cost.layer in found.choice.keep else "int8",
        )
    with output.page() as console:
        console.print(table)
