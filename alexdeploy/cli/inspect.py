"""`alexdeploy inspect`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from alexdeploy.inference.inspect import Inspection


def inspect(
    target: Annotated[
        str, typer.Argument(metavar="X", help="A recipe, a model folder or name, an .onnx or a .safetensors.")
    ] = "alexnet",
    set_: SetOption = None,
    classes: Annotated[int, typer.Option(help="Number of classes, for a recipe.", min=1)] = 1000,
    json: JsonOption = False,
) -> None:
    """Show layers, shapes, parameters, multiply-accumulates, LRN constants, preprocessing and provenance."""
    from alexdeploy.inference.inspect import inspect as run_inspect

    found = run_inspect(target, overrides=tuple(set_ or ()), num_classes=classes)
    if json:
        output.print_json({**dataclasses.asdict(found), "parameters": found.parameters, "macs": found.macs})
    else:
        _print(found)


def _print(found: Inspection) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = output.stdout()
    console.print(f"[bold]{escape(found.kind)} {escape(found.target)}[/bold]")
    _print_facts("", found.facts)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column, justify in (
        ("layer", "left"),
        ("kind", "left"),
        ("output", "left"),
        ("parameters", "right"),
        ("MACs", "right"),
        ("detail", "left"),
    ):
        table.add_column(column, justify="right" if justify == "right" else "left", overflow="fold")
    for layer in found.layers:
        table.add_row(
            escape(layer.name),
            escape(layer.kind),
            "x".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs:,}" if layer.macs else "",
            escape(layer.detail),
        )
    table.add_row("[bold]total[/bold]", "", "", f"{found.parameters:,}", f"{found.macs:,}" if found.macs else "", "")
    console.print(table)
    _print_facts("LRN", found.lrn)
    _print_facts("preprocessing", found.preprocessing)
    _print_facts("provenance", found.provenance)
    if found.files:
        console.print("[bold]files[/bold]")
        for file in found.files:
            console.print(
                f"  {escape(str(file['file'])):24} {file['bytes']:>13,} bytes  sha256 {str(file['sha256'])[:12]}"
            )


def _print_facts(title: str, facts: dict[str, Any] | None) -> None:
    from rich.markup import escape

    if not facts:
        return
    console = output.stdout()
    if title:
        console.print(f"[bold]{title}[/bold]")
    for key, value in facts.items():
        if value is not None:
            console.print(f"  {key:12} {escape(str(value))}", soft_wrap=True)
