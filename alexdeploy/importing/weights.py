"""From weights of other tools to a model folder like the one `train` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from safetensors.numpy import save

from alexdeploy.core.errors import ModelError, UsageError, warn
from alexdeploy.core.files import sha256_bytes
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe, load_recipe
from alexdeploy.core.spec import CONTRACT_KEY, ModelSpec, Preprocessing
from alexdeploy.importing import model_folder
from alexdeploy.importing.check import check_against_caffe
from alexdeploy.importing.model_folder import MeanFile, MeanImage
from alexdeploy.importing.network import Network, read_network
from alexdeploy.importing.published_files import read_foreign, recognise, refuse_other_format
from alexdeploy.importing.weight_format import HEAD_BYTES, SUFFIXES, weight_format


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsOptions:
    """Settings given beside the file. `steps` are fields of Preprocessing; they override those of file and recipe.

    `mean_image` is float32 [3, 256, 256] in pixels of 0 to 255, in the network's channel order.
    """

    steps: Mapping[str, object] = field(default_factory=dict)
    mean_image: MeanImage | None = None
    classes: tuple[str, ...] | None = None
    recipe: str | None = None
    overwrite: bool = False


def import_weights(
    path: Path,
    folder: ModelFolder,
    options: WeightsOptions,
    on_warning: Callable[[str], None] = warn,
) -> ModelSpec:
    """Write `weights.safetensors`, `spec.json` and, for a mean image, `mean.npy` into `folder`; returns the spec.

    Raises ModelError naming the first layer that does not fit, UsageError if the preprocessing is unknown or the folder
    is in use, and ParityError if the network converted from Caffe does not give the answers of the original. Nothing is
    written, and no earlier model changed, until all checks have passed.
    """
    if not options.overwrite:
        folder.check_unused()
    content = read_foreign(path)
    known = recognise(path, content, on_warning)
    recipe = None if options.recipe is None else load_recipe(options.recipe)
    kind = weight_format(path, content[:HEAD_BYTES])
    if kind is None:
        refuse_other_format(path, tuple(SUFFIXES))
    network, recipe = read_network(path, content, kind, recipe, on_warning)
    preprocessing, mean_file = _preprocessing(network, recipe, options, path)
    spec = ModelSpec(
        name=folder.path.name,
        classes=model_folder.class_names(options.classes or network.classes, network.num_classes, path),
        preprocessing=preprocessing,
        architecture=network.architecture,
        recipe=None if recipe is None else recipe.name,
        provenance=model_folder.origin(path, sha256_bytes(content)),
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
    model_folder.write_model(folder, {**files, folder.weights_path: weights_file}, spec)
    return spec


def _preprocessing(
    network: Network, recipe: Recipe | None, options: WeightsOptions, path: Path
) -> tuple[Preprocessing, MeanFile | None]:
    """The preprocessing: given steps override the file's, which override the recipe's."""
    steps = model_folder.recipe_steps(recipe)
    steps |= network.steps
    scale = model_folder.scale_of({**steps, **options.steps})
    if network.mean:
        # Caffe subtracts the mean from pixels and scales the difference; here the mean is of scaled pixels.
        steps["mean"] = [value * scale for value in network.mean]
    elif network.mean_file is not None:
        steps.pop("mean", None)
    steps |= options.steps
    mean_file = None
    mean_image = options.mean_image
    if mean_image is None and "mean" not in options.steps:
        mean_image = network.mean_image
    if mean_image is not None:
        mean_file = model_folder.mean_file(mean_image, scale)
        steps |= {"mean": (0.0, 0.0, 0.0), "mean_image": mean_file.sha256}
    if "mean" not in steps:
        raise UsageError(_no_mean(network, path), hint=model_folder.mean_hint(steps))
    try:
        return msgspec.convert({**steps, "crop": network.architecture.input}, Preprocessing), mean_file
    except msgspec.ValidationError as exc:
        raise ModelError(f"{path}: its preprocessing cannot be described here: {exc}") from exc


def _no_mean(network: Network, path: Path) -> str:
    if network.mean_file is not None:
        return f"{path} was trained with the mean image {network.mean_file}, which is a file of its own"
    return f"{path} does not say which mean was subtracted from its images"
