"""`alexdeploy import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexdeploy.cli import output
from alexdeploy.core.errors import UsageError


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.onnx", help="An image classifier: one NCHW input, one output of scores.")
    ],
    recipe: Annotated[str | None, typer.Option(help="Recipe whose preprocessing the model was trained with.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with one class per line, in the order of the output.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name under models/; the file's own if left out.")] = None,
    channels: Annotated[str | None, typer.Option(help="rgb or bgr.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor on pixels of 0 to 255, e.g. 0.00392156862745098.")] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Mean per channel, after scaling, in the network's order.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="Standard deviation per channel.")] = None,
    resize: Annotated[str | None, typer.Option(help="crop (shorter side, then centre) or warp.")] = None,
    output_name: Annotated[
        str | None, typer.Option("--output", help="Which output holds the scores, if there are several.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model of that name.")] = False,
) -> None:
    """Make a model folder of an ONNX classifier: any names, fixed or dynamic batch, with or without softmax."""

    import msgspec

    from alexdeploy.core.artifacts import MODELS_FOLDER, ModelFolder
    from alexdeploy.core.recipe import load_recipe
    from alexdeploy.core.spec import Preprocessing
    from alexdeploy.export.import_onnx import ImportOptions, import_onnx

    if file.suffix != ".onnx":
        raise UsageError(
            f"{file} is not an .onnx file", cure="Other formats are not read yet: convert the model to ONNX first."
        )
    if recipe is None and mean is None and scale is None:
        raise UsageError(
            "an ONNX file does not say how its images were prepared",
            cure="Say it: --recipe torchvision (or caffe-alexnet, ...), or --channels, --scale, --mean and --std.",
        )
    given: dict[str, object] = {}
    if recipe is not None:
        steps = load_recipe(recipe).preprocessing
        given = msgspec.to_builtins(steps)
        if isinstance(steps.mean, str):
            del given["mean"]
            if mean is None:
                raise UsageError(
                    f"recipe {recipe} measures its mean on the training set, which is not here",
                    cure="Give it: --mean A,B,C, e.g. --mean 104.007,116.669,122.679 for Caffe's ImageNet models.",
                )
    given |= {
        key: value for key, value in (("channels", channels), ("scale", scale), ("resize", resize)) if value is not None
    }
    given |= {key: _three(key, value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    try:
        preprocessing = msgspec.convert(given, Preprocessing)
    except msgspec.ValidationError as exc:
        raise UsageError(f"preprocessing: {exc}") from exc
    folder = ModelFolder(MODELS_FOLDER / (name or file.stem))
    if folder.spec_path.exists() and not overwrite:
        raise UsageError(f"{folder.path} already holds a model", cure="Choose another --name, or --overwrite it.")
    classes = None if labels is None else _read_labels(labels)
    options = ImportOptions(preprocessing=preprocessing, classes=classes, output=output_name, recipe=recipe)
    spec = import_onnx(file, folder, options)
    if classes is None:
        output.warn(f"no --labels: the classes are called {spec.classes[0]} to {spec.classes[-1]}")
    output.note(f"wrote {folder.path}: {spec.num_classes} classes, views of {spec.preprocessing.crop} pixels")
    output.note(f"next: alexdeploy predict images/ --tencrop --model {folder.path}")


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
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} cannot be read as labels: {exc}") from exc
    return tuple(line.strip() for line in lines if line.strip())
