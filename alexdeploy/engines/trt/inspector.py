"""What TensorRT's inspector tells of an engine. Does not import TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alexdeploy.core.errors import ModelError

_HALF_WORDS = ("Half", "FP16")
"""How versions of TensorRT call FP16, alone or in the description of a format."""


def convolutions(information: str) -> dict[str, bool]:
    """Name -> whether it computes in FP16, of each convolution in the inspector's JSON.

    The type of its weights decides; if it is not told, those of the tensors that it reads and writes, which are known
    only where the batch has a fixed size.
    """
    layers = [layer for layer in json.loads(information)["Layers"] if isinstance(layer, dict)]
    return {str(layer.get("Name")): _is_half(layer) for layer in layers if _is_convolution(layer)}


def check_half(information: str, path: Path) -> None:
    """Raise ModelError if every convolution of an FP16 engine computes in another type."""
    found = convolutions(information)
    if found and not any(found.values()):
        raise ModelError(
            f"TensorRT made none of the {len(found)} convolutions of {path.name} FP16",
            hint="On a GPU without fast FP16, build --precision fp32. Otherwise use TensorRT 10.12 or later, which "
            "keeps the types of the graph.",
        )


def _is_convolution(layer: dict[str, Any]) -> bool:
    # The second is CaskConvolution, CudnnConvolution and so on.
    return layer.get("ParameterType") == "Convolution" or str(layer.get("LayerType")).endswith("Convolution")


def _is_half(layer: dict[str, Any]) -> bool:
    weights = layer.get("Weights")
    if isinstance(weights, dict) and weights.get("Type"):
        types = [weights["Type"]]
    else:
        types = [each.get("Format/Datatype") for each in (*layer.get("Inputs", ()), *layer.get("Outputs", ()))]
    return any(word in str(each) for each in types for word in _HALF_WORDS)
