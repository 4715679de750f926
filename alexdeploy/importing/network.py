"""Reading an imported network from the bytes of its weights, completed by a recipe where the format lacks something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.recipe import Recipe, load_recipe
from alexdeploy.core.spec import IMAGE_SIZE, Architecture
from alexdeploy.importing import state_dict
from alexdeploy.importing.caffe import convert
from alexdeploy.importing.caffe.convert import Converted
from alexdeploy.importing.caffe.parse import CaffeNet, read_caffemodel
from alexdeploy.importing.matconvnet import read_matconvnet
from alexdeploy.importing.model_folder import MeanImage
from alexdeploy.importing.npy_layers import read_npy_layers
from alexdeploy.importing.weight_format import WeightFormat
from alexdeploy.network.layers import Layer, plan_layers
from alexdeploy.network.weights import Weights

_TORCHVISION = "torchvision"
_NUMPY_RECIPES = {"bvlc_alexnet": "caffe-alexnet", "bvlc_reference_caffenet": "caffenet"}
"""By caffe-tensorflow's file names: the shapes are the same, but the order of LRN and pooling differs."""

_CAFFE_STEPS: Mapping[str, object] = {"channels": "bgr", "resize": "warp"}
"""As in Caffe's tools: OpenCV reads BGR, convert_imageset warps to 256x256. The file records neither."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """Architecture and weights of a file, and its preprocessing and classes as far as it contains them.

    `steps` are fields of Preprocessing; `mean` and `mean_image` are in pixels, `mean_file` is a mean's file name.
    `caffe` is set if the result can be checked against the file's own layers.
    """

    architecture: Architecture
    num_classes: int
    weights: Weights
    steps: Mapping[str, object]
    mean: tuple[float, ...] = ()
    mean_image: MeanImage | None = None
    mean_file: str | None = None
    classes: tuple[str, ...] | None = None
    caffe: Converted | None = None


def read_network(
    path: Path, content: bytes, kind: WeightFormat, recipe: Recipe | None, on_warning: Callable[[str], None]
) -> tuple[Network, Recipe | None]:
    """The network in a file, and the recipe that it needed: `recipe`, or the one identified by names.

    Raises ModelError for a file that is damaged or does not fit, UsageError if it has no layer definitions.
    """
    if kind == "caffe":
        return _from_caffe(path, content, recipe, on_warning), recipe
    if kind == "matlab":
        return _from_matconvnet(path, content, recipe, on_warning), recipe
    return _from_tensors(path, content, kind, recipe, on_warning)


def _from_caffe(path: Path, content: bytes, recipe: Recipe | None, on_warning: Callable[[str], None]) -> Network:
    if content.startswith(b"\x89HDF"):
        raise ModelError(f"{path} is an HDF5 snapshot", hint="Save it with Caffe as snapshot_format: BINARYPROTO.")
    net = read_caffemodel(content, str(path))
    found = net.transform
    steps: dict[str, object] = dict(_CAFFE_STEPS) if recipe is None else {}
    if found.scale is not None:
        steps["scale"] = found.scale
    mean = found.mean_values * 3 if len(found.mean_values) == 1 else found.mean_values
    if not convert.tells_its_layers(net):
        if recipe is None:
            raise ModelError(
                f"{path} contains weights but no layer parameters (strides, groups, LRN)",
                hint="Give the recipe of its network: --recipe caffe-alexnet (or caffenet, ...)",
            )
        on_warning(f"{path} contains no layer definitions: using those of the recipe, which could not be checked")
        return _stripped(net, recipe, steps, mean, str(path))
    converted = convert.convert(net, str(path), None if recipe is None else recipe.architecture.input)
    if recipe is not None:
        _check_recipe(converted, recipe, path)
    return Network(
        architecture=converted.architecture,
        num_classes=converted.num_classes,
        weights=converted.weights,
        steps=steps,
        mean=mean,
        mean_file=found.mean_file,
        caffe=converted,
    )


def _stripped(
    net: CaffeNet, recipe: Recipe, steps: Mapping[str, object], mean: tuple[float, ...], source: str
) -> Network:
    num_classes = convert.count_classes(net, source)
    layers = [layer for layer in net.layers if layer.blobs]
    weights = convert.take_weights(layers, plan_layers(recipe.architecture, num_classes), source)
    return Network(architecture=recipe.architecture, num_classes=num_classes, weights=weights, steps=steps, mean=mean)


def _check_recipe(converted: Converted, recipe: Recipe, path: Path) -> None:
    """Raise ModelError if the recipe's network differs from the file's layers."""
    theirs, named = (
        [layer for layer in plan_layers(architecture, converted.num_classes) if layer.kind != "dropout"]
        for architecture in (converted.architecture, recipe.architecture)
    )
    for found, expected in zip(theirs, named, strict=False):
        if found != expected:
            raise ModelError(
                f"{path}: its layer {_described(found)} is {_described(expected)} in recipe {recipe.name}",
                hint="Remove --recipe: the file defines its layers.",
            )
    if len(theirs) != len(named):
        raise ModelError(f"{path} has {len(theirs)} layers, recipe {recipe.name} has {len(named)}")


def _described(layer: Layer) -> str:
    parts = [f"{layer.name}: {layer.kind} {'x'.join(map(str, layer.output_shape))}"]
    if layer.weight_shape is not None:
        parts.append(f"weight {list(layer.weight_shape)}")
    if layer.lrn is not None:
        parts.append(f"size {layer.lrn.size}, alpha {layer.lrn.alpha}, beta {layer.lrn.beta}, k {layer.lrn.k}")
        parts.append("within each tower" if layer.groups > 1 else "over all maps")
    return ", ".join(parts)


def _from_matconvnet(path: Path, content: bytes, recipe: Recipe | None, on_warning: Callable[[str], None]) -> Network:
    found = read_matconvnet(content, str(path))
    converted = convert.convert(found.net, str(path), None)
    if recipe is not None:
        _check_recipe(converted, recipe, path)
    steps: dict[str, object] = {"channels": "rgb"}
    if found.keeps_aspect is not None:
        steps["resize"] = "crop" if found.keeps_aspect else "warp"
    mean_image = found.mean_image
    if mean_image is not None and (side := mean_image.shape[1]) != IMAGE_SIZE:
        mean_image = _extended(mean_image)
        on_warning(
            f"{path}: averageImage is {side}x{side}: exact for the centre view; for corner views its edges are "
            f"repeated to {IMAGE_SIZE}x{IMAGE_SIZE}. To use the original mean image: --mean-image FILE"
        )
    return Network(
        architecture=converted.architecture,
        num_classes=converted.num_classes,
        weights=converted.weights,
        steps=steps,
        mean=found.mean,
        mean_image=mean_image,
        classes=found.classes,
        caffe=converted,
    )


def _extended(image: MeanImage) -> MeanImage:
    """Pad [3, S, S] to [3, 256, 256] by repeating its edges, so that it lies where the centre view is cut."""
    before = (IMAGE_SIZE - image.shape[1]) // 2
    around = (before, IMAGE_SIZE - image.shape[1] - before)
    return np.pad(image, ((0, 0), around, around), mode="edge")


def _from_tensors(
    path: Path, content: bytes, kind: WeightFormat, recipe: Recipe | None, on_warning: Callable[[str], None]
) -> tuple[Network, Recipe]:
    read = {"safetensors": state_dict.read_safetensors, "torch": state_dict.read_torch, "numpy": read_npy_layers}[kind]
    tensors = state_dict.plain_names(read(content, str(path)))
    if recipe is None:
        recipe = load_recipe(_implied_recipe(path, kind, tensors, on_warning))
    num_classes = state_dict.count_classes(tensors, str(path))
    weights = state_dict.take_weights(tensors, plan_layers(recipe.architecture, num_classes), str(path))
    return Network(architecture=recipe.architecture, num_classes=num_classes, weights=weights, steps={}), recipe


def _implied_recipe(
    path: Path, kind: WeightFormat, tensors: state_dict.StateDict, on_warning: Callable[[str], None]
) -> str:
    if state_dict.has_torchvision_names(tensors):
        return _TORCHVISION
    if kind == "numpy" and path.stem in _NUMPY_RECIPES:
        name = _NUMPY_RECIPES[path.stem]
        on_warning(f"{path} contains no layer definitions: by its name, using recipe {name}")
        return name
    raise UsageError(
        f"{path} contains weights but no network definition",
        hint="Give the recipe of its network: "
        + ("--recipe caffe-alexnet (or caffenet, ...)" if kind == "numpy" else "--recipe alexnet (or a .toml file)"),
    )
