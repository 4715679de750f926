"""`alexdeploy export`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, ModelArgument


def export(
    model: ModelArgument = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Also write model.fp16.onnx: FP16 arithmetic, LRN in FP32.")
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Photographs to check on; the training data if left out."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write model.onnx from the weights, with LRN as one native node, and check that the answers stay.

    Every layer is compared with an independent float64 computation before a file is replaced.
    """
    from alexdeploy.core.artifacts import find_model
    from alexdeploy.export.export import ExportOptions, export_model

    folder = find_model(model)
    output.note(f"model {folder.path}")
    exported = export_model(folder, ExportOptions(fp16=fp16, images=images), lambda step: output.note(f"  {step}"))
    if json:
        output.print_json([{**dataclasses.asdict(item), "path": str(item.path)} for item in exported])
    else:
        for item in exported:
            size = item.path.stat().st_size / 1e6
            verb = "wrote" if item.written else "kept the imported"
            output.note(f"{verb} {item.path.as_posix()} ({size:.1f} MB, sha256 {item.sha256[:12]})")
            if item.parity is not None:
                parity = item.parity
                output.note(
                    f"  {parity.same_answers} of {parity.num_images} answers the same, "
                    f"logits off by {parity.logit_error:.1e}, "
                    f"worst layer {parity.worst_layer} by {parity.worst_error:.1e} of its largest output "
                    f"(allowed {parity.tolerance:.0e})"
                )
    output.note("no TensorRT engine: this version builds none yet; the ONNX files run on every backend it has")
    output.note(f"next: alexdeploy predict images/ --tencrop --model {folder.path}")
