"""The model that training continues from: all its layers, including the last one if the classes are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexdeploy.core.errors import ModelError, RecipeError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import MAX_TEXT_BYTES, read_regular
from alexdeploy.core.recipe import Recipe
from alexdeploy.core.spec import ModelSpec
from alexdeploy.images.known_classes import class_key
from alexdeploy.network.weights import Weights, load_model_weights


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A trained model. `mean_image` and `mean_file` (the file's bytes) are None if its mean is per channel."""

    spec: ModelSpec
    weights: Weights
    weights_sha256: str
    mean_image: NDArray[np.float32] | None
    mean_file: bytes | None


def read_parent(folder: ModelFolder) -> Parent:
    """Raises ModelError for a folder without weights, or whose weights do not match its spec."""
    spec = folder.spec()
    if spec.members:
        raise ModelError(
            f"{folder.path} is an ensemble, which has no weights of its own",
            hint=f"Name one of its members: --pretrained {spec.members[0].name}",
        )
    if spec.architecture is None or not folder.weights_path.is_file():
        raise ModelError(
            f"{folder.path} has no {folder.weights_path.name}: a graph that was imported cannot be trained",
            hint="Import the weights themselves, e.g. alexdeploy import FILE.caffemodel, or train: alexdeploy train",
        )
    weights = load_model_weights(folder, spec, sha256_file)
    mean_image = folder.mean_image(spec)
    return Parent(
        spec=spec,
        weights=weights.tensors,
        weights_sha256=weights.sha256,
        mean_image=mean_image,
        mean_file=None if mean_image is None else read_regular(folder.mean_path, MAX_TEXT_BYTES),
    )


def kept_rows(parent: Parent, classes: tuple[str, ...]) -> list[int] | None:
    """The parent's output index of each of `classes`; None unless `classes` are exactly the parent's classes.

    Two names are the same class if both begin with the same WordNet id: "n01440764" and "n01440764 tench".
    """
    rows = {class_key(name): index for index, name in enumerate(parent.spec.classes)}
    keys = [class_key(name) for name in classes]
    is_clear = len(rows) == parent.spec.num_classes and len(set(keys)) == len(keys)
    return [rows[key] for key in keys] if is_clear and rows.keys() == set(keys) else None


def recipe_for_child(recipe: Recipe, parent: Parent, classes: tuple[str, ...]) -> Recipe:
    """The recipe adapted to these classes: a last layer that is kept needs no higher learning rate than the others."""
    if kept_rows(parent, classes) is None:
        return recipe
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, last_layer_factor=1.0))


def first_weights(parent: Parent, drawn: Mapping[str, Tensor], classes: tuple[str, ...]) -> dict[str, Tensor]:
    """`drawn`, the initial weights of a network for `classes`, replaced by the parent's weights.

    The last layer keeps its drawn weights unless the classes are the parent's. Raises RecipeError if shapes differ.
    """
    rows = kept_rows(parent, classes)
    assert parent.spec.architecture is not None
    last = parent.spec.architecture.trained_layers[-1]
    weights = dict(drawn)
    for name, drawn_tensor in drawn.items():
        is_last = name.startswith(f"{last}.")
        if is_last and rows is None:
            continue
        found = parent.weights.get(name)
        if found is None or tuple(drawn_tensor.shape) != found.shape:
            has = "has none" if found is None else f"has it as {list(found.shape)}"
            raise RecipeError(
                f"{name} would be {list(drawn_tensor.shape)}; {parent.spec.name} {has}",
                hint="With --pretrained, leave the architecture as it is: no --set architecture.* that changes shapes.",
            )
        weights[name] = torch.from_numpy(found[rows] if is_last else found)
    return weights


def describe_start(parent: Parent, classes: tuple[str, ...]) -> str:
    """Describe the weights taken from the parent, for the user."""
    assert parent.spec.architecture is not None
    last = parent.spec.architecture.trained_layers[-1]
    if kept_rows(parent, classes) is not None:
        return f"starting from {parent.spec.name}: same {len(classes)} classes, so {last} is kept too"
    return f"starting from {parent.spec.name} ({parent.spec.num_classes} classes): {last} is new for {len(classes)}"
