"""What each layer of a network answers to one photograph, as pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.evaluation.layers import graph_layers, graph_tensors
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.images.preprocess import network_input
from alexdeploy.network.layers import plan_layers
from alexdeploy.reports.tiles import Pixels, map_pixels, scale_of, tile

MAX_MAPS = 512
"""Maps that are shown of a layer; AlexNet has at most 384."""

_MAX_SIDE = 64
"""Larger maps are shown smaller, each pixel the mean of a square of values."""

_SHOWN_KINDS = ("activation", "lrn", "pool")
_SHOWN_OPS = (
    *("AveragePool", "Clip", "Elu", "Gelu", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LRN", "LeakyRelu"),
    *("MaxPool", "Mish", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh"),
)
_SAME_GREY = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPicture:
    """The answers of one layer: `pixels` uint8 [H, W], of `num_shown` of its maps, or of all of its units."""

    name: str
    shape: tuple[int, ...]
    pixels: Pixels
    num_shown: int
    num_averaged: int
    largest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The centre view of a photograph, uint8 [S, S, 3] as it was before the preprocessing, and what the network said.

    `logits` is float64 [C].
    """

    view: Pixels
    logits: NDArray[np.float64]
    layers: tuple[LayerPicture, ...]


def run_photograph(folder: ModelFolder, spec: ModelSpec, pixels: Pixels, precision: Precision) -> Answers:
    """Run the centre view of `pixels` uint8 [256, 256, 3] through the graph of a precision, in ONNX Runtime.

    Raises ModelError and StaleArtifactError as `load_graph`, UsageError without ONNX Runtime.
    """
    model = load_graph(folder, precision, spec).model
    tensors = graph_tensors(model, spec)
    wanted = {**{name: tensors[name] for name in _shown(model, spec, tensors)}, "logits": model.graph.output[0].name}
    images = network_input(pixels, spec.preprocessing, 1, folder.mean_image(spec))
    outputs = graph_layers(model, wanted)(images)
    towers = 1 if spec.architecture is None else spec.architecture.towers
    logits = outputs["logits"].reshape(-1).astype(np.float64)
    margin = (len(pixels) - spec.preprocessing.crop) // 2
    side = slice(margin, margin + spec.preprocessing.crop)
    layers = _pictures({name: values for name, values in outputs.items() if name != "logits"}, towers)
    return Answers(view=pixels[side, side], logits=logits, layers=tuple(layers))


def _shown(model: onnx.ModelProto, spec: ModelSpec, tensors: dict[str, str]) -> list[str]:
    """The layers worth a picture: what a convolution or product gives is shown after its activation."""
    if spec.architecture is not None:
        plan = plan_layers(spec.architecture, spec.num_classes)
        return [layer.name for layer in plan if layer.kind in _SHOWN_KINDS and layer.name in tensors]
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    return [layer for layer, name in tensors.items() if made_by.get(name) in _SHOWN_OPS and layer != "logits"]


def _pictures(outputs: dict[str, NDArray[np.floating]], towers: int) -> Iterator[LayerPicture]:
    for name, values in outputs.items():
        if values.ndim == 4:
            maps, num_averaged = _small(values[0][:MAX_MAPS])
            shared = towers if len(maps) % towers == 0 else 1
            drawn = tile(map_pixels(maps), towers=shared, scale=scale_of(maps.shape[-1]))
        elif values.ndim == 2:
            num_averaged = 1
            drawn = _units(values[0], towers if values.shape[1] % towers == 0 else 1)
        else:
            continue
        yield LayerPicture(
            name=name,
            shape=values.shape[1:],
            pixels=drawn,
            num_shown=min(values.shape[1], MAX_MAPS) if values.ndim == 4 else values.shape[1],
            num_averaged=num_averaged,
            largest=float(np.abs(values).max(initial=0.0)),
        )


def _small(maps: NDArray[np.floating]) -> tuple[NDArray[np.floating], int]:
    """Maps [C, H, W] of at most 64 on a side, and the side of the squares that were averaged; a rest is cut off."""
    factor = math.ceil(max(maps.shape[1:]) / _MAX_SIDE)
    if factor == 1:
        return maps, 1
    rows, columns = (side // factor for side in maps.shape[1:])
    whole = maps[:, : rows * factor, : columns * factor]
    return whole.reshape(len(maps), rows, factor, columns, factor).mean(axis=(2, 4)), factor


def _units(values: NDArray[np.floating], towers: int) -> Pixels:
    """The units of a fully connected layer, row by row, 64 in each; each tower's in a block of its own."""
    per_tower = len(values) // towers
    columns = min(_MAX_SIDE, per_tower)
    rows = math.ceil(per_tower / columns)
    blocks = np.full((towers, rows * columns), _SAME_GREY, np.uint8)
    blocks[:, :per_tower] = map_pixels(values).reshape(towers, per_tower)
    return tile(blocks.reshape(towers, rows, columns), towers=towers, scale=6)
