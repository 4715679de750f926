"""`alexdeploy import`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.options import model_folder
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.core.spec import Preprocessing


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.onnx", help="An image classifier: one NCHW input, one output of scores.")
    ],
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Recipe whose preprocessing the model was trained with.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file with one class per line, in the order of the output."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name under models/; the file's own if left out.")] = None,
    channels: Annotated[Literal["rgb", "bgr"] | None, typer.Option(help="Order of the colours.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on pixels of 0 to 255, e.g. 0.00392156862745098.")] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Mean per channel, after scaling, in the network's order.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="Standard deviation per channel.")] = None,
    resize: Annotated[
        Literal["crop", "warp"] | None, typer.Option(help="Shorter side to 256, then the centre; or warp both sides.")
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option("--output", metavar="NAME", help="Output with the scores; the first that can be, if left out."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model of that name.")] = False,
) -> None:
    """Make a model folder of an ONNX classifier.

    The graph may call its input and output as it likes, have a fixed or dynamic batch, and end in a softmax or not.
    It says nothing of how its images were prepared: give --recipe, or --channels, --scale, --mean and --std.
    """
    from alexdeploy.export.import_onnx import ImportOptions, import_onnx

    if file.suffix.lower() != ".onnx":
        raise UsageError(
            f"{file} is not an .onnx file", cure="Other formats are not read yet: convert the model to ONNX first."
        )
    given: dict[str, object] = {
        key: value for key, value in (("channels", channels), ("scale", scale), ("resize", resize)) if value is not None
    }
    given |= {key: _three(key, value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    preprocessing = _preprocessing(recipe, given)
    folder = model_folder(file.stem if name is None else name)
    classes = None if labels is None else _read_labels(labels)
    options = ImportOptions(
        preprocessing=preprocessing, classes=classes, output=output_name, recipe=recipe, overwrite=overwrite
    )
    spec = import_onnx(file, folder, options)
    if classes is None:
        output.warn(f"no --labels: the classes are called {spec.classes[0]} to {spec.classes[-1]}")
    output.note(f"wrote {folder.path}: {spec.num_classes} classes, views of {spec.preprocessing.crop} pixels")
    output.note(f"next: alexdeploy predict images/ --tencrop --model {folder.path}")


def _preprocessing(recipe: str | None, given: dict[str, object]) -> Preprocessing:
    """The recipe's, with what was given in its place."""
    import msgspec

    from alexdeploy.core.recipe import load_recipe
    from alexdeploy.core.spec import Preprocessing

    steps: dict[str, object] = {}
    if recipe is not None:
        steps = msgspec.to_builtins(load_recipe(recipe).preprocessing)
        if isinstance(steps["mean"], str) and "mean" not in given:
            raise UsageError(
                f"recipe {recipe} measures its mean on the training set, which is not here",
                cure="Give it: --mean A,B,C, e.g. --mean 104.007,116.669,122.679 for Caffe's ImageNet models.",
            )
    elif not {"mean", "scale"} & given.keys():
        raise UsageError(
            "an ONNX file does not say how its images were prepared",
            cure="Say it: --recipe torchvision (or caffe-alexnet, ...), or --channels, --scale, --mean and --std.",
        )
    for key in ("scale", "mean", "std"):
        values = given.get(key, ())
        values = values if isinstance(values, tuple) else (values,)
        if not all(math.isfinite(value) and (value > 0 or key == "mean") for value in values):
            raise UsageError(
                f"--{key} is {', '.join(map(str, values))}; expected "
                + ("numbers" if key == "mean" else "numbers above 0")
            )
    return msgspec.convert(steps | given, Preprocessing)


def _three(key: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise UsageError(f"--{key} {text!r} is not three numbers", cure=f"Write it as --{key} A,B,C")
    return values


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} cannot be read as labels: {exc}") from exc
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines:
        # Leaving it out would shift every class after it.
        raise UsageError(f"{path}: line {lines.index('') + 1} is empty", cure="Give one label per line.")
    return tuple(lines)
