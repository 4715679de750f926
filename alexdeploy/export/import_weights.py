"""From somebody else's weights (Caffe, torchvision, safetensors) to a model folder as `train` writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from safetensors.numpy import save

from alexdeploy.core.artifacts import ModelFolder, sha256_bytes
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.recipe import Recipe, load_recipe
from alexdeploy.core.spec import CONTRACT_KEY, Architecture, ModelSpec, Preprocessing
from alexdeploy.export import import_folder
from alexdeploy.export.import_check import check_against_caffe
from alexdeploy.export.import_folder import MeanFile, MeanImage
from alexdeploy.export.import_known import read_foreign, recognise
from alexdeploy.network import caffe_convert, state_dict
from alexdeploy.network.caffe import CaffeNet, read_caffemodel
from alexdeploy.network.caffe_convert import Converted
from alexdeploy.network.layers import Layer, plan_layers
from alexdeploy.network.weights import Weights

SUFFIXES = (".caffemodel", ".pth", ".pt", ".safetensors")

_TORCHVISION = "torchvision"
_CAFFE_STEPS: dict[str, object] = {"channels": "bgr", "resize": "warp"}
"""What Caffe's tools do: OpenCV reads BGR, convert_imageset warps to 256x256. The file tells neither."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsOptions:
    """What is known beside the file. `steps` are fields of Preprocessing, and go before those of file and recipe.

    `mean_image` is float32 [3, 256, 256] in pixels of 0 to 255, in the network's order of channels.
    """

    steps: Mapping[str, object] = field(default_factory=dict)
    mean_image: MeanImage | None = None
    classes: tuple[str, ...] | None = None
    recipe: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Network:
    """Architecture and weights found in a file. `steps` and `mean` are what it says of its images; `mean` is in pixels.

    `caffe` is there where the file's own layers can judge the result.
    """

    architecture: Architecture
    num_classes: int
    weights: Weights
    steps: Mapping[str, object]
    mean: tuple[float, ...] = ()
    mean_file: str | None = None
    caffe: Converted | None = None


def import_weights(
    path: Path,
    folder: ModelFolder,
    options: WeightsOptions,
    on_warning: Callable[[str], None] = lambda message: None,
) -> ModelSpec:
    """Write `weights.safetensors`, `mean.npy` where there is one, and `spec.json` into `folder`; returns the spec.

    Raises ModelError naming the first layer that does not fit, UsageError where the preprocessing is not known or the
    folder is in use, and ParityError if a Caffe network does not give its own answers. Nothing is written, and no
    earlier model touched, before all of that is known.
    """
    if not options.overwrite:
        folder.check_unused()
    content = read_foreign(path)
    known = recognise(path, content, on_warning)
    recipe = None if options.recipe is None else load_recipe(options.recipe)
    if path.suffix.lower() == ".caffemodel":
        network = _from_caffe(path, content, recipe, on_warning)
    else:
        network, recipe = _from_tensors(path, content, recipe)
    preprocessing, mean_file = _preprocessing(network, recipe, options, path)
    spec = ModelSpec(
        name=folder.path.name,
        classes=import_folder.class_names(options.classes, network.num_classes, path),
        preprocessing=preprocessing,
        architecture=network.architecture,
        recipe=None if recipe is None else recipe.name,
        provenance=import_folder.origin(path, sha256_bytes(content)),
    )
    error = None
    if network.caffe is not None:
        mean_image = None if mean_file is None else mean_file.image
        error = check_against_caffe(network.caffe, spec, mean_image, path)
    weights_file = save(dict(network.weights), metadata={CONTRACT_KEY: spec.contract_sha256})
    spec = spec.replace_provenance(
        known_file=None if known is None else known.title,
        caffe_error=error,
        weights_sha256=sha256_bytes(weights_file),
    )
    files = {} if mean_file is None else {folder.mean_path: mean_file.content}
    import_folder.write_model(folder, {**files, folder.weights_path: weights_file}, spec)
    return spec


def _from_caffe(path: Path, content: bytes, recipe: Recipe | None, on_warning: Callable[[str], None]) -> _Network:
    if content.startswith(b"\x89HDF"):
        raise ModelError(f"{path} is an HDF5 snapshot", cure="Save it with Caffe as snapshot_format: BINARYPROTO.")
    net = read_caffemodel(content, str(path))
    found = net.transform
    steps: dict[str, object] = dict(_CAFFE_STEPS)
    if found.scale is not None:
        steps["scale"] = found.scale
    mean = found.mean_values * 3 if len(found.mean_values) == 1 else found.mean_values
    if not caffe_convert.tells_its_layers(net):
        if recipe is None:
            raise ModelError(
                f"{path} has weights and no parameters of its layers: strides, groups, LRN are not in it",
                cure="Name the recipe of its network: --recipe caffe-alexnet (or caffenet, ...)",
            )
        on_warning(f"{path} does not tell its layers: they are taken from the recipe, and could not be checked")
        return _stripped(net, recipe, steps, mean, str(path))
    converted = caffe_convert.convert(net, str(path), None if recipe is None else recipe.architecture.input)
    if recipe is not None:
        _check_recipe(converted, recipe, path)
    return _Network(
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
) -> _Network:
    num_classes = caffe_convert.count_classes(net, source)
    layers = [layer for layer in net.layers if layer.blobs]
    weights = caffe_convert.take_weights(layers, plan_layers(recipe.architecture, num_classes), source)
    return _Network(architecture=recipe.architecture, num_classes=num_classes, weights=weights, steps=steps, mean=mean)


def _check_recipe(converted: Converted, recipe: Recipe, path: Path) -> None:
    """Raise ModelError if the recipe is of another network than the file's own layers are."""
    theirs, named = (
        [layer for layer in plan_layers(architecture, converted.num_classes) if layer.kind != "dropout"]
        for architecture in (converted.architecture, recipe.architecture)
    )
    for found, expected in zip(theirs, named, strict=False):
        if found != expected:
            raise ModelError(
                f"{path}: its layer {_described(found)} is {_described(expected)} in recipe {recipe.name}",
                cure="Leave --recipe out: the file tells its layers itself.",
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


def _from_tensors(path: Path, content: bytes, recipe: Recipe | None) -> tuple[_Network, Recipe]:
    if path.suffix.lower() == ".safetensors":
        tensors = state_dict.read_safetensors(content, str(path))
    else:
        tensors = state_dict.read_torch(content, str(path))
    tensors = state_dict.plain_names(tensors)
    if recipe is None:
        if not state_dict.has_torchvision_names(tensors):
            raise UsageError(
                f"{path} holds weights and nothing of their network",
                cure="Name the recipe of its network: --recipe alexnet (or a .toml file)",
            )
        recipe = load_recipe(_TORCHVISION)
    num_classes = state_dict.count_classes(tensors, str(path))
    weights = state_dict.take_weights(tensors, plan_layers(recipe.architecture, num_classes), str(path))
    return (
        _Network(architecture=recipe.architecture, num_classes=num_classes, weights=weights, steps={}),
        recipe,
    )


def _preprocessing(
    network: _Network, recipe: Recipe | None, options: WeightsOptions, path: Path
) -> tuple[Preprocessing, MeanFile | None]:
    """What was said on the command line, then what the file says, then the recipe."""
    steps = import_folder.recipe_steps(recipe)
    stated = dict(network.steps)
    if recipe is not None:
        stated = {key: value for key, value in stated.items() if key not in _CAFFE_STEPS}
    steps |= stated
    scale = import_folder.scale_of({**steps, **options.steps})
    if network.mean:
        # Caffe subtracts the mean from pixels and scales what is left; here the mean is of scaled pixels.
        steps["mean"] = [value * scale for value in network.mean]
    elif network.mean_file is not None:
        steps.pop("mean", None)
    steps |= options.steps
    mean_file = None
    if options.mean_image is not None:
        mean_file = import_folder.mean_file(options.mean_image, scale)
        steps |= {"mean": (0.0, 0.0, 0.0), "mean_image": mean_file.sha256}
    if "mean" not in steps:
        raise UsageError(_no_mean(network, path), cure=import_folder.mean_cure(steps))
    try:
        return msgspec.convert({**steps, "crop": network.architecture.input}, Preprocessing), mean_file
    except msgspec.ValidationError as exc:
        raise ModelError(f"{path}: its preprocessing cannot be described here: {exc}") from exc


def _no_mean(network: _Network, path: Path) -> str:
    if network.mean_file is not None:
        return f"{path} was trained with the mean image {network.mean_file}, which is a file of its own"
    return f"{path} does not say which mean was subtracted from its images"
