"""`alexdeploy import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alexdeploy.cli import output
from alexdeploy.cli.completion import recipe_names
from alexdeploy.cli.options import JsonOption, OverwriteOption, QuietOption, VerboseOption
from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.core.spec import ModelSpec

EXAMPLES = (
    "alexdeploy import bvlcalexnet-12.onnx --labels synset_words.txt",
    "alexdeploy import bvlc_alexnet.caffemodel --mean-image mean.binaryproto",
    "alexdeploy import downloads/flowers/",
)


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR",
            help="An image classifier as .onnx; weights as .caffemodel, .pth or .ckpt (PyTorch), .safetensors, .npy "
            "(caffe-tensorflow) or .mat (MatConvNet); or a model folder, such as `card` writes.",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=recipe_names,
            help="Recipe of the preprocessing, and of the network if the weights do not define it.",
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
        str | None, typer.Option(metavar="NAME", help="Name under models/. Default: the file's name; a folder's own.")
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

    A graph's input and output may have any names; its batch may be fixed or dynamic, and a softmax is optional.
    It does not describe its preprocessing: give --recipe, or --channels, --scale, --mean and --std. A caffemodel and a
    .mat define their layers; an error names the options for missing facts. torchvision's alexnet is recognized by its
    tensor names. The format of weights is detected from the file's first bytes, not from its name. A model folder is
    compared with its hashes and copied as it is, without engines and checkpoints.
    """
    from alexdeploy.importing.import_model import ImportOptions, import_model

    options = ImportOptions(
        recipe=recipe,
        labels=labels,
        name=name,
        channels=channels,
        scale=scale,
        mean=_three("mean", mean),
        mean_image=mean_image,
        std=_three("std", std),
        resize=resize,
        output_name=output_name,
        overwrite=overwrite,
    )
    folder = import_model(file, options, on_warning=output.warn)
    spec = folder.spec()
    if json:
        output.print_json({"model": folder.path.as_posix(), "classes": spec.classes, **spec.provenance})
    _report(spec, file, folder)


def _report(spec: ModelSpec, file: Path, folder: ModelFolder) -> None:
    if (known := spec.provenance.get("known_file")) is not None:
        output.note(f"{file.name} is {known}, by its hash")
    if (error := spec.provenance.get("caffe_error")) is not None:
        output.note(f"checked: off by {error:.0e} of the largest score from what Caffe computes of the same input")
    output.note(f"wrote {folder.path}: {spec.num_classes} classes, views of {spec.preprocessing.crop} pixels")
    if folder.has_graphs:
        output.next_with_images(folder.path)
    else:
        output.next_step("export", folder.path)


def _three(key: str, text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError as exc:
        raise UsageError(f"--{key} {text!r} is not three numbers", hint=f"Write it as --{key} A,B,C") from exc
    return first, second, third
