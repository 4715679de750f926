"""`alexdeploy inspect`."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alexdeploy.cli import output
from alexdeploy.cli.completion import model_and_recipe_names
from alexdeploy.cli.options import JsonOption, ModelOption, QuietOption, SetOption, VerboseOption, find_one_model

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from alexdeploy.diagnosis.inspect import Inspection

EXAMPLES = (
    "alexdeploy inspect alexnet",
    "alexdeploy inspect model.onnx",
    "alexdeploy inspect alexnet --set architecture.towers=1 --num-classes 10",
)


def inspect(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=model_and_recipe_names,
            help="Model folder, or a name under models/; or a recipe, an .onnx, a .safetensors, an .engine. "
            "Default: the recipe alexnet.",
        ),
    ] = None,
    model: ModelOption = None,
    set_: SetOption = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of classes, for a recipe. Default: 1000.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show layers, shapes, parameters, multiply-accumulates, neurons, LRN constants, preprocessing and provenance."""
    from alexdeploy.core.recipe import DEFAULT_RECIPE
    from alexdeploy.diagnosis.inspect import inspect as run_inspect

    if model is not None:
        target = str(find_one_model(target, model).path)
    found = run_inspect(target or DEFAULT_RECIPE, overrides=tuple(set_ or ()), num_classes=num_classes)
    if json:
        totals = {"parameters": found.parameters, "macs": found.macs, "neurons": found.neurons}
        output.print_json({**dataclasses.asdict(found), **totals})
    else:
        with output.page() as console:
            _print(found, console)


def _print(found: Inspection, console: Console) -> None:
    from rich.text import Text

    def section(title: str, facts: Mapping[str, object] | None) -> None:
        told = {
            output.printable(key): output.printable(_text(value))
            for key, value in (facts or {}).items()
            if value is not None
        }
        if told and title:
            console.print(Text(title, "bold"))
        indent = 4 + max(map(len, told), default=0)
        for key, value in told.items():
            # Fold between words only: a hash stays in one piece, so that it can be copied.
            first, *rest = textwrap.wrap(
                value, max(console.width - indent, 20), break_long_words=False, break_on_hyphens=False
            ) or [""]
            lines = [f"  {key:{indent - 2}}{first}", *(" " * indent + line for line in rest)]
            console.print("\n".join(lines), markup=False, soft_wrap=True)

    console.print(Text(output.printable(f"{found.kind} {found.target}"), "bold"), soft_wrap=True)
    section("", {**found.facts, "neurons": f"{found.neurons:,}" if found.neurons else None})
    if found.layers:
        console.print(_layer_table(found))
    section("LRN", found.lrn)
    section("preprocessing", found.preprocessing)
    section("provenance", found.provenance)
    for key, member in found.members.items():
        section(f"{key}: {member['name']}", _of_member(member))
    section("backends, as checked", found.backends)
    section(
        "files",
        {str(file["file"]): f"{file['bytes']:>13,} bytes  sha256 {str(file['sha256'])[:12]}" for file in found.files},
    )


def _of_member(member: Mapping[str, Any]) -> dict[str, object]:
    """What is most asked of a member; `--json` has all of it."""
    graphs = {f"{precision} graph": digest[:12] for precision, digest in member["graphs"].items()}
    facts = ("recipe", "channels", "scale", "mean", "std", "mean_image", "crop")
    return {**{name: member[name] for name in facts}, **graphs}


def _layer_table(found: Inspection) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("layer", overflow="fold", min_width=7)
    table.add_column("kind", no_wrap=True)
    table.add_column("output", overflow="fold", min_width=9)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for layer in found.layers:
        table.add_row(
            Text(output.printable(layer.name)),
            Text(output.printable(layer.kind)),
            Text(output.printable("x".join(map(str, layer.output_shape)))),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.macs:,}" if layer.macs else "",
            Text(output.printable(layer.detail)),
        )
    total = (f"{found.parameters:,}", f"{found.macs:,}" if found.macs else "")
    table.add_row(Text("total"), "", "", *total, "", style="bold")
    return table


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return str(value)
