"""`alexdeploy figures`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.completion import model_and_recipe_names
from alexdeploy.cli.options import JsonOption, ModelOption, OverwriteOption, QuietOption, VerboseOption, find_one_model

EXAMPLES = (
    "alexdeploy figures flowers",
    "alexdeploy figures flowers --image rose.jpg -o pictures/",
    "alexdeploy figures one-tower",
)


def figures(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=model_and_recipe_names,
            help="Model folder, or a name under models/, or a recipe, of which only the layers are drawn. Default: "
            "the newest model.",
        ),
    ] = None,
    model_option: ModelOption = None,
    output_: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where to. Default: figures/NAME."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="PHOTO", help="A photograph: draw what each layer answers to it."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(
            "--precision", metavar="PRECISION", help="Precision of the graph that answers --image: fp32, fp16, int8."
        ),
    ] = "fp32",
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw a network: its layers and towers, its first kernels, by epoch too, and the maps of a photograph.

    PNG and SVG files, and one page with all of them: DIR/index.html.
    """
    from alexdeploy.diagnosis.figures import FigureOptions
    from alexdeploy.diagnosis.figures import figures as draw

    named = model if model_option is None else find_one_model(model, model_option)
    options = FigureOptions(image=image, precision=precision, overwrite=overwrite)
    drawn = draw(named, output_, options, output.warn)
    output.note(f"wrote {(drawn.path / drawn.files[0]).as_posix()} and {output.count(len(drawn.files) - 1, 'picture')}")
    if json:
        output.print_json({"path": str(drawn.path), "files": list(drawn.files)})
