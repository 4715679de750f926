"""Making a model folder from an ONNX or weight file of any supported format, as `alexdeploy import` does."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alexdeploy.core.arguments import check_argument, check_fields
from alexdeploy.core.errors import DataError, UsageError, warn
from alexdeploy.core.model_folder import ModelFolder, model_named
from alexdeploy.core.reading import check_exists
from alexdeploy.images.folder import check_class_name
from alexdeploy.images.text_lists import text_lines
from alexdeploy.importing.model_folder import graph_preprocessing, read_mean_image
from alexdeploy.importing.onnx import OnnxOptions, import_onnx
from alexdeploy.importing.published_files import CONVERSIONS, refuse_other_format
from alexdeploy.importing.weight_format import SUFFIXES, file_format
from alexdeploy.importing.weights import WeightsOptions, import_weights
from alexdeploy.importing.whole_folder import import_folder

_Three = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """Settings that the file does not contain. None uses the file's, or those of `recipe`, a name or a .toml file.

    `labels` are the classes in output order, or a file with one per line. `name` is the folder under models/; None uses
    the file's name, or that of the model in a folder. `scale` is a factor on pixels of 0 to 255; `mean` and `std` are
    per channel, after scaling, in the network's order of `channels`. `mean_image` is a .binaryproto or .npy file:
    [3, 256, 256] in pixels of 0 to 255.
    `output_name` is the output with the class scores, if a graph has several.
    """

    recipe: str | None = None
    labels: tuple[str, ...] | str | os.PathLike[str] | None = None
    name: str | None = None
    channels: Literal["rgb", "bgr"] | None = None
    scale: float | None = None
    mean: _Three | None = None
    mean_image: str | os.PathLike[str] | None = None
    std: _Three | None = None
    resize: Literal["crop", "warp"] | None = None
    output_name: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        scale = () if self.scale is None else (self.scale,)
        for key, values in (("scale", scale), ("mean", self.mean or ()), ("std", self.std or ())):
            if not all(math.isfinite(value) and (value > 0 or key == "mean") for value in values):
                kind = "numbers" if key == "mean" else "numbers above 0"
                raise UsageError(f"--{key} is {', '.join(map(str, values))}; expected {kind}")
        if self.mean is not None and self.mean_image is not None:
            raise UsageError("--mean and --mean-image are both given", hint="Leave one of them out.")

    def steps(self) -> dict[str, object]:
        """The fields of Preprocessing that were given."""
        keys = ("channels", "scale", "mean", "std", "resize")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}


def import_model(
    file: str | os.PathLike[str],
    options: ImportOptions | None = None,
    *,
    on_warning: Callable[[str], None] = warn,
) -> ModelFolder:
    """Make a model folder from an ONNX classifier, an AlexNet's weights or another model folder.

    Returns the folder, under models/. `file` is an .onnx, or weights as .caffemodel, .pth or .ckpt (PyTorch),
    .safetensors, .npy (caffe-tensorflow) or .mat (MatConvNet), recognized by their first bytes; or a model folder,
    which is compared with its hashes and copied as it is. See `import_onnx`, `import_weights` and `import_folder` for
    the supported contents. Raises UsageError for another format, a folder in use, unknown preprocessing, or options
    that a folder does not need; ModelError for a file that is damaged or not a classifier; ParityError if the imported
    network does not give the file's answers. Nothing is written, and no earlier model changed, until all checks have
    passed.
    """
    path = Path(check_argument("file", file, str))
    options = check_argument("options", options or ImportOptions(), ImportOptions)
    if os.path.isdir(path) and path.suffix.lower() not in CONVERSIONS:
        return import_folder(path, _name_alone(options), overwrite=options.overwrite, on_warning=on_warning)
    kind = file_format(path)
    if kind is None:
        refuse_other_format(path, (".onnx", *SUFFIXES))
    for each in (path, options.mean_image):
        if each is not None:
            check_exists(each)
    if options.output_name is not None and kind != "onnx":
        raise UsageError(f"--output-name is for graphs; {path} has weights only", hint="Leave it out.")
    # The name of weights.pth.tar is weights.
    stem = Path(path.stem).stem if path.suffix.lower() == ".tar" else path.stem
    folder = model_named(stem if options.name is None else options.name)
    image = None if options.mean_image is None else read_mean_image(Path(options.mean_image))
    classes = None if options.labels is None else _read_labels(options.labels)
    if kind == "onnx":
        graph = OnnxOptions(
            preprocessing=graph_preprocessing(
                options.recipe, options.steps(), has_mean_image=image is not None, on_warning=on_warning
            ),
            mean_image=image,
            classes=classes,
            output_name=options.output_name,
            recipe=options.recipe,
            overwrite=options.overwrite,
        )
        spec = import_onnx(path, folder, graph, on_warning)
    else:
        weights = WeightsOptions(
            steps=options.steps(),
            mean_image=image,
            classes=classes,
            recipe=options.recipe,
            overwrite=options.overwrite,
        )
        spec = import_weights(path, folder, weights, on_warning)
    if classes is None and spec.classes[0] == "class-0":
        on_warning(f"no --labels: the classes are called {spec.classes[0]} to {spec.classes[-1]}")
    return folder


def _name_alone(options: ImportOptions) -> str | None:
    """The name. Raises UsageError for options of files, which a model folder does not need."""
    allowed = ("name", "overwrite")
    for each in dataclasses.fields(options):
        if each.name not in allowed and getattr(options, each.name) is not None:
            raise UsageError(
                f"--{each.name.replace('_', '-')} is for files: a model folder says itself what it needs",
                hint="Leave it out.",
            )
    return options.name


def _read_labels(given: tuple[str, ...] | str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes: given as a tuple, read from the file of that name or, if there is none, split at commas."""
    text = "" if isinstance(given, tuple) else os.fspath(given)
    is_list = isinstance(given, tuple) or ("," in text and not os.path.exists(text))
    try:
        if is_list:
            lines = [name.strip() for name in (given if isinstance(given, tuple) else text.split(","))]
        else:
            lines = [line for _, line in text_lines(Path(text))]
        for line in lines:
            check_class_name(line, "--labels" if is_list else text)
    except DataError as exc:
        raise UsageError(exc.message, hint=exc.hint) from exc
    if is_list and (not lines or "" in lines):
        raise UsageError(f"--labels {given!r} has an empty name", hint="Write it as --labels negative,positive")
    while lines and not lines[-1]:
        lines.pop()
    if not lines or "" in lines:
        # Skipping it would shift every class after it.
        number = lines.index("") + 1 if lines else 1
        raise UsageError(f"{text}: line {number} is empty", hint="Give one label per line.")
    return tuple(lines)
