"""What TensorRT's inspector tells of an engine. Does not import TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alexdeploy.core.errors import ModelError

_HALF_WORDS = ("Half", "FP16")
"""How versions of TensorRT call FP16, alone or in the description of a format."""


def layer_types(information: str, kind: str) -> dict[str, str]:
    """Name -> type of each layer of a kind ("Convolution", "LRN") in the inspector's JSON, in TensorRT's words.

    It is the type of the weights; without weights, that of the first output, which is known only where the batch has a
    fixed size.
    """
    layers = [layer for layer in json.loads(information)["Layers"] if isinstance(layer, dict)]
    # LayerType is CaskConvolution, CudnnConvolution and so on.
    return {
        str(layer.get("Name")): _type(layer)
        for layer in layers
        if layer.get("ParameterType") == kind or str(layer.get("LayerType")).endswith(kind)
    }


def is_half(layer_type: str) -> bool:
    return any(word in layer_type for word in _HALF_WORDS)


def check_half(information: str, path: Path) -> None:
    """Raise ModelError if every convolution of an FP16 engine computes in another type."""
    found = layer_types(information, "Convolution").values()
    if found and not any(map(is_half, found)):
        raise ModelError(
            f"TensorRT made none of the {len(found)} convolutions of {path.name} FP16",
            hint="On a GPU without fast FP16, build --precision fp32. Otherwise use TensorRT 10.12 or later, which "
            "keeps the types of the graph.",
        )


def _type(layer: dict[str, Any]) -> str:
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Type"):
        return str(weights["Type"])
    output: dict[str, Any] = next(iter(layer.get("Outputs", [])), {})
    return str(output.get("Format/Datatype", ""))
