"""Code shared by all imports: the given preprocessing, and the model folder that they write.

A folder in use is refused. The files are written last, completely or not at all, and replace an earlier model's.
"""

from __future__ import annotations

import datetime
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError, UsageError, first_line, warn
from alexdeploy.core.files import atomic_write, npy_bytes, sha256_bytes
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe, load_recipe
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Preprocessing
from alexdeploy.core.version import __version__
from alexdeploy.importing.caffe.parse import read_binaryproto
from alexdeploy.importing.published_files import read_foreign

MeanImage = NDArray[np.float32]

_CAFFE_MEAN = (104.007, 116.669, 122.679)
"""Mean of ILSVRC's images, BGR, in pixels of 0 to 255, as in Caffe's examples."""

_SMALL_SCALE = 0.1
"""Separates means of pixels from means of scaled pixels: no photographs have a mean below 25 everywhere."""


def class_names(given: tuple[str, ...] | None, num_classes: int, path: Path) -> tuple[str, ...]:
    """The labels, or class-0, class-1 ... if none are given. Raises ModelError if their number does not fit."""
    if given is None:
        return tuple(f"class-{index}" for index in range(num_classes))
    if len(given) != num_classes:
        raise ModelError(
            f"{path} has {num_classes} classes; found {len(given)} labels",
            hint="Give one label for each class, in the order of the output: a file with one per line, or a,b,c.",
        )
    return given


def origin(path: Path, sha256: str) -> dict[str, str | int | float | None]:
    """The provenance that every import writes."""
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "alexdeploy_version": __version__,
        "imported_from": path.name,
        "imported_sha256": sha256,
    }


def recipe_steps(recipe: Recipe | None) -> dict[str, object]:
    """The recipe's preprocessing, without a mean that has to be measured on the training set."""
    steps: dict[str, object] = {} if recipe is None else msgspec.to_builtins(recipe.preprocessing)
    if isinstance(steps.get("mean"), str):
        del steps["mean"]
    return steps


def scale_of(steps: Mapping[str, object]) -> float:
    """The scale in fields of Preprocessing that may not have been validated yet."""
    scale = steps.get("scale", 1.0)
    assert isinstance(scale, float | int)
    return scale


def mean_hint(steps: Mapping[str, object]) -> str:
    """How to give the mean of a network with the other `steps`: --mean is of scaled pixels, in its channel order."""
    scale, channels = scale_of(steps), steps.get("channels", "rgb")
    values = _CAFFE_MEAN if channels == "bgr" else _CAFFE_MEAN[::-1]
    mean = ",".join(f"{value * scale:.6g}" for value in values)
    scaled = "" if scale == 1 else f", times the scale {scale:g}"
    return (
        "Give the mean image: --mean-image imagenet_mean.binaryproto (or a .npy)\n"
        f"or a mean per channel: --mean {mean} (that of Caffe's ImageNet models, {str(channels).upper()}{scaled})"
    )


def graph_preprocessing(
    recipe: str | None,
    given: Mapping[str, object],
    *,
    has_mean_image: bool,
    on_warning: Callable[[str], None] = warn,
) -> Preprocessing:
    """The preprocessing, which a graph does not contain: the recipe's, overridden by the given steps.

    Raises UsageError if a required step is missing; warns about each default used.
    """
    steps = recipe_steps(None if recipe is None else load_recipe(recipe)) | dict(given)
    if recipe is not None:
        if "mean" not in steps and not has_mean_image:
            raise UsageError(
                f"recipe {recipe} measures its mean on the training set, which is not available", hint=mean_hint(steps)
            )
    elif has_mean_image and "channels" not in given:
        raise UsageError(
            "neither --mean-image nor an ONNX file defines the order of the colour channels",
            hint="Give a recipe with the same preprocessing: --recipe caffe-alexnet (BGR, warped to 256x256)\n"
            "or give the channel order and resize: --channels bgr (Caffe's mean images) and --resize.",
        )
    elif not {"mean", "scale"} & given.keys() and not has_mean_image:
        raise UsageError(
            "an ONNX file does not define the preprocessing of its images",
            hint="Give it: --recipe torchvision (or caffe-alexnet, ...), or --channels, --scale, --mean and --std.",
        )
    result = msgspec.convert(steps, Preprocessing)
    if taken := [f"--{key} {getattr(result, key)}" for key in ("channels", "resize") if key not in steps]:
        on_warning(f"not given; assuming: {', '.join(taken)}")
    return result


def read_mean_image(path: Path) -> MeanImage:
    """Read a mean image in pixels of 0 to 255 from Caffe's .binaryproto or a .npy: float32 [3, 256, 256].

    Its channels are in the network's order. Raises ModelError for another shape or type.
    """
    content = read_foreign(path)
    if path.suffix.lower() == ".npy":
        try:
            mean = np.load(io.BytesIO(content), allow_pickle=False)
        # np.load raises the exceptions of its header readers: ValueError, OverflowError, TokenError, MemoryError ...
        except Exception as exc:
            raise ModelError(f"{path} cannot be read as a NumPy array: {first_line(exc)}") from exc
        if not isinstance(mean, np.ndarray):
            raise ModelError(f"{path} is an archive of arrays (.npz); expected one array (.npy)")
    else:
        mean = read_binaryproto(content, str(path))
    found = mean.shape
    while mean.ndim > 3 and len(mean) == 1:
        mean = mean[0]
    if mean.shape != (3, IMAGE_SIZE, IMAGE_SIZE) or mean.dtype.kind not in "fiu":
        hint = None
        if mean.ndim == 3 and len(mean) == 3 and mean.dtype.kind in "fiu":
            values = ",".join(f"{value:.3f}" for value in mean.mean(axis=(1, 2)))
            hint = f"Alternatively, give its means per channel: --mean {values} (times --scale, if there is one)"
        raise ModelError(
            f"{path} holds {mean.dtype} {list(found)}; a mean image is [3, {IMAGE_SIZE}, {IMAGE_SIZE}]", hint=hint
        )
    result: MeanImage = np.ascontiguousarray(mean, np.float32)
    if not np.isfinite(result).all():
        raise ModelError(f"{path} contains NaN or infinity")
    if result.min() < 0 or result.max() > 255:
        raise ModelError(
            f"{path} holds values from {result.min():g} to {result.max():g}; a mean image is in pixels of 0 to 255"
        )
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanFile:
    """The content of `mean.npy`: the mean of scaled pixels, and the bytes of the file."""

    image: MeanImage
    content: bytes

    @property
    def sha256(self) -> str:
        return sha256_bytes(self.content)


def mean_file(image: MeanImage, scale: float) -> MeanFile:
    """Scale a mean in pixels of 0 to 255; with `scale` 1 its bits do not change.

    Raises UsageError for a mean that is already scaled, such as the mean.npy of a model folder.
    """
    if scale < _SMALL_SCALE and 0 < image.max() <= 255 * scale:
        raise UsageError(
            f"the mean image is already scaled: its largest value is {image.max():.4g}, expected pixels of 0 to 255",
            hint=f"Divide it by the scale, {scale:g}, and save it again.",
        )
    scaled: MeanImage = image if scale == 1 else image * np.float32(scale)
    return MeanFile(image=scaled, content=npy_bytes(scaled))


def write_model(folder: ModelFolder, files: Mapping[Path, bytes], spec: ModelSpec) -> None:
    """Write the files, then the spec, and remove an earlier model's files. On failure, no new folder is left behind."""
    is_new = not folder.path.exists()
    try:
        for path, content in files.items():
            with atomic_write(path) as file:
                file.write(content)
        folder.write_spec(spec)
    except BaseException:
        if is_new:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    folder.clear(keep={folder.spec_path, *files})
