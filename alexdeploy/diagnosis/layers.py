"""Layers as rows of a table: those of a plan, of an ONNX graph, and of a TensorRT engine."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import onnx

from alexdeploy.core.spec import Architecture
from alexdeploy.graphs.deployment import PREFIX
from alexdeploy.graphs.edit import WEIGHTED_OPS, node_macs
from alexdeploy.graphs.files import tensor_shapes
from alexdeploy.network.layers import plan_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One row: `output_shape` is without the batch; `parameters`, `macs` and `neurons` are of one view.

    Neurons are the outputs of a layer with weights, as the paper counts its 650,000; the input is none of them.
    """

    name: str
    kind: str
    output_shape: tuple[int | str, ...]
    detail: str = ""
    parameters: int = 0
    macs: int = 0
    neurons: int = 0


def planned_layers(architecture: Architecture, num_classes: int) -> tuple[LayerRow, ...]:
    rows = []
    for layer in plan_layers(architecture, num_classes):
        detail = ""
        if layer.kind == "conv":
            detail = f"{layer.kernel}x{layer.kernel}"
            for word, value, usual in (("stride", layer.stride, 1), ("pad", layer.padding, 0)):
                detail += "" if value == usual else f" {word} {value}"
            detail += "" if layer.groups == 1 else f" groups {layer.groups}"
        elif layer.kind == "pool":
            detail = "average " * (layer.pooling == "average") + f"{layer.kernel}x{layer.kernel} stride {layer.stride}"
        elif layer.kind == "lrn":
            detail = "within each tower" if layer.groups > 1 else ""
        elif layer.kind == "activation":
            detail = layer.activation
        elif layer.kind == "dropout":
            detail = f"p = {layer.rate}"
        rows.append(
            LayerRow(
                name=layer.name,
                kind=layer.kind,
                output_shape=layer.output_shape,
                detail=detail,
                parameters=layer.num_parameters,
                macs=layer.macs,
                neurons=layer.num_neurons,
            )
        )
    return tuple(rows)


def graph_layers(model: onnx.ModelProto) -> tuple[LayerRow, ...]:
    shapes = tensor_shapes(model)
    # 64-bit integers are shapes and axes, scalars are bounds, and a deployment graph has the mean: none is learned.
    unseen = {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type != onnx.TensorProto.INT64 and tensor.dims and not tensor.name.startswith(PREFIX)
    }
    weights = dict(unseen)
    rows = []
    for node in model.graph.node:
        output = tuple(shapes.get(node.output[0], ()))
        owned = [unseen.pop(name) for name in node.input if name in unseen]
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
        kernel = weights.get(node.input[1]) if node.op_type in WEIGHTED_OPS else None
        rows.append(
            LayerRow(
                name=node.name or node.output[0],
                kind=node.op_type,
                output_shape=output[1:],
                detail="weight " + "x".join(map(str, owned[0])) if owned else "",
                parameters=sum(math.prod(shape) for shape in owned),
                macs=0 if kernel is None else node_macs(node, kernel, output),
                neurons=0 if kernel is None else math.prod(size for size in output[1:] if isinstance(size, int)),
            )
        )
    return tuple(rows)


def engine_layers(text: str) -> tuple[LayerRow, ...]:
    """Layers as listed by TensorRT's inspector: objects, or names only. Shapes omit the batch."""
    rows = []
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):
            rows.append(LayerRow(name=layer, kind="", output_shape=()))
            continue
        output: dict[str, Any] = next(iter(layer.get("Outputs", [])), {})
        rows.append(
            LayerRow(
                name=str(layer.get("Name", "")),
                kind=str(layer.get("LayerType", "")),
                output_shape=tuple(output.get("Dimensions", ()))[1:],
                detail=str(output.get("Format/Datatype", "")),
            )
        )
    return tuple(rows)
