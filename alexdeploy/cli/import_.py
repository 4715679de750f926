"""`alexdeploy import`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.completion import recipe_names
from alexdeploy.cli.options import JsonOption, OverwriteOption, QuietOption, VerboseOption, model_folder
from alexdeploy.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.core.spec import ModelSpec

EXAMPLES = (
    "alexdeploy import bvlcalexnet-12.onnx --labels synset_words.txt",
    "alexdeploy import classifier.onnx --recipe torchvision --labels cat,dog",
    "alexdeploy import bvlc_alexnet.caffemodel --mean-image mean.binaryproto",
)


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="An image classifier as .onnx; weights as .caffemodel, .pth or .ckpt (PyTorch), .safetensors, .npy "
            "(caffe-tensorflow) or .mat (MatConvNet).",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=recipe_names,
            help="Recipe of its preprocessing; of its network too where weights do not tell it.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|A,B,...",
            help="File with one class per line, in the order of the output, e.g. ILSVRC's synset_words.txt; "
            "or the classes themselves.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name under models/; the file's own if left out.")
    ] = None,
    channels: Annotated[
        Literal["rgb", "bgr"] | None, typer.Option(metavar="rgb|bgr", help="Order of the colours.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="Factor on pixels of 0 to 255, e.g. 0.00392156862745098.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Mean per channel, after scaling, in the network's order.")
    ] = None,
    mean_image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Mean image, 3x256x256 in pixels of 0 to 255: Caffe's .binaryproto, or a .npy."
        ),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="Standard deviation per channel.")] = None,
    resize: Annotated[
        Literal["crop", "warp"] | None,
        typer.Option(metavar="crop|warp", help="Shorter side to 256, then the centre; or warp both sides."),
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Output with the class scores, where a graph has more than one."),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a model folder of an ONNX classifier, or of an AlexNet's weights from Caffe, PyTorch, MatConvNet and others.

    A graph may call its input and output as it likes, have a fixed or dynamic batch, and end in a softmax or not. It
    says nothing of how its images were prepared: give --recipe, or --channels, --scale, --mean and --std. A caffemodel
    and a .mat tell their layers, and what they do not tell is asked for. torchvision's alexnet is known by its names.
    The format of weights is recognized by the file's first bytes, whatever it is called.
    """
    from alexdeploy.core.reading import check_exists
    from alexdeploy.importing.model_folder import read_mean_image
    from alexdeploy.importing.published_files import refuse_other_format
    from alexdeploy.importing.weight_format import SUFFIXES, file_format

    kind = file_format(file)
    if kind is None:
        refuse_other_format(file, (".onnx", *SUFFIXES))
    for path in (file, mean_image):
        if path is not None:
            check_exists(path)
    if mean is not None and mean_image is not None:
        raise UsageError("--mean and --mean-image are both given", hint="Leave one of them out.")
    if output_name is not None and kind != "onnx":
        raise UsageError(f"--output-name is for graphs; {file} has weights only", hint="Leave it out.")
    given: dict[str, object] = {
        key: value for key, value in (("channels", channels), ("scale", scale), ("resize", resize)) if value is not None
    }
    given |= {key: _three(key, value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    _check_numbers(given)
    # weights.pth.tar is called weights.
    stem = Path(file.stem).stem if file.suffix.lower() == ".tar" else file.stem
    folder = model_folder(stem if name is None else name)
    image = None if mean_image is None else read_mean_image(mean_image)
    classes = None if labels is None else _read_labels(labels)
    if kind == "onnx":
        from alexdeploy.importing.model_folder import graph_preprocessing
        from alexdeploy.importing.onnx import ImportOptions, import_onnx

        options = ImportOptions(
            preprocessing=graph_preprocessing(recipe, given, has_mean_image=image is not None, on_warning=output.warn),
            mean_image=image,
            classes=classes,
            output_name=output_name,
            recipe=recipe,
            overwrite=overwrite,
        )
        spec = import_onnx(file, folder, options, output.warn)
    else:
        from alexdeploy.importing.weights import WeightsOptions, import_weights

        weights = WeightsOptions(steps=given, mean_image=image, classes=classes, recipe=recipe, overwrite=overwrite)
        spec = import_weights(file, folder, weights, output.warn)
    if classes is None and spec.classes[0] == "class-0":
        output.warn(f"no --labels: the classes are called {spec.classes[0]} to {spec.classes[-1]}")
    if json:
        output.print_json({"model": folder.path.as_posix(), "classes": spec.classes, **spec.provenance})
    _report(spec, file, folder)


def _report(spec: ModelSpec, file: Path, folder: ModelFolder) -> None:
    if (known := spec.provenance.get("known_file")) is not None:
        output.note(f"{file.name} is {known}, by its hash")
    if (error := spec.provenance.get("caffe_error")) is not None:
        output.note(f"checked: off by {error:.0e} of the largest score from what Caffe computes of the same input")
    output.note(f"wrote {folder.path}: {spec.num_classes} classes, views of {spec.preprocessing.crop} pixels")
    if folder.onnx_path().is_file():
        output.next_with_images(folder.path)
    else:
        output.next_step("export", folder.path)


def _check_numbers(given: dict[str, object]) -> None:
    for key in ("scale", "mean", "std"):
        values = given.get(key, ())
        values = values if isinstance(values, tuple) else (values,)
        if not all(math.isfinite(value) and (value > 0 or key == "mean") for value in values):
            raise UsageError(
                f"--{key} is {', '.join(map(str, values))}; expected "
                + ("numbers" if key == "mean" else "numbers above 0")
            )


def _three(key: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise UsageError(f"--{key} {text!r} is not three numbers", hint=f"Write it as --{key} A,B,C")
    return values


def _read_labels(text: str) -> tuple[str, ...]:
    """The classes in the file of that name; where there is none, those between the commas."""
    from alexdeploy.images.folder import check_class_name
    from alexdeploy.images.text_lists import text_lines

    is_list = "," in text and not os.path.exists(text)
    try:
        lines = [name.strip() for name in text.split(",")] if is_list else [line for _, line in text_lines(Path(text))]
        for line in lines:
            check_class_name(line, "--labels" if is_list else text)
    except DataError as exc:
        raise UsageError(exc.message, hint=exc.hint) from exc
    if is_list and "" in lines:
        raise UsageError(f"--labels {text!r} has an empty name", hint="Write it as --labels negative,positive")
    while lines and not lines[-1]:
        lines.pop()
    if not lines or "" in lines:
        # Leaving it out would shift every class after it.
        number = lines.index("") + 1 if lines else 1
        raise UsageError(f"{text}: line {number} is empty", hint="Give one label per line.")
    return tuple(lines)
