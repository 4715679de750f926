"""Weights on disk: read them from safetensors and check every name and shape against the plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file

from alexdeploy.core.errors import ModelError
from alexdeploy.network.layers import Layer

Weights = Mapping[str, NDArray[np.float32]]


def load_weights(path: Path, plan: tuple[Layer, ...]) -> Weights:
    """Read `<layer>.weight` and `<layer>.bias`, float32. Raises ModelError that names the first mismatch."""
    try:
        weights = load_file(path)
    except (OSError, safetensors.SafetensorError) as exc:
        raise ModelError(
            f"{path} cannot be read as safetensors: {exc}",
            cure="Only safetensors are loaded as weights: a pickled checkpoint can run code.",
        ) from exc
    check_weights(weights, plan, str(path))
    return weights


def check_weights(weights: Weights, plan: tuple[Layer, ...], source: str) -> None:
    """Raise ModelError, naming the first mismatch, unless `weights` are exactly those of the plan."""
    expected = expected_shapes(plan)
    for name, shape in expected.items():
        if name not in weights:
            raise ModelError(f"{source} has no {name}; the architecture expects it with shape {list(shape)}")
        found = weights[name]
        if found.shape != shape:
            raise ModelError(f"{source}: {name} has shape {list(found.shape)}, the architecture expects {list(shape)}")
        if found.dtype != np.float32:
            raise ModelError(f"{source}: {name} is {found.dtype}, expected float32")
        if not np.isfinite(found).all():
            raise ModelError(f"{source}: {name} holds values that are not finite")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise ModelError(f"{source} holds {extra[0]}, which the architecture does not have")


def expected_shapes(plan: tuple[Layer, ...]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, in the order of the plan."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in plan:
        if layer.weight_shape is not None:
            shapes[f"{layer.name}.weight"] = layer.weight_shape
            shapes[f"{layer.name}.bias"] = (layer.outputs,)
    return shapes
