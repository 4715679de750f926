"""Converting a graph to FP16: weights and arithmetic in float16, LRN and the graph's inputs and outputs in float32."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from alexdeploy.graphs.edit import attribute, inner_graphs, producers, rename_inputs
from alexdeploy.graphs.onnxruntime_library import load_onnxruntime

LARGEST = float(np.finfo(np.float16).max)
"""65,504, the largest finite FP16 value."""

_LARGEST_SQUARED = LARGEST**0.5
"""255.9: an LRN squares its input."""

_HEADROOM = 2.0
"""Other images may produce larger values than the measured ones."""

_FP32_OPS = ("LRN", "Softmax")
"""x * x exceeds FP16's range at |x| > 255, which conv1 reaches on Caffe-scale inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfLayer:
    """How near a node is to FP16's limit. `largest` is the largest |x| of its inputs, weights and outputs.

    `share` is the fraction of the limit: 65,504, or its square root 255.9 for an LRN. `reason`: why it stays FP32.
    """

    layer: str
    op: str
    largest: float
    share: float
    precision: str
    reason: str = ""


def plan_fp16(model: onnx.ModelProto, largest: Mapping[str, float]) -> tuple[HalfLayer, ...]:
    """Which nodes of a float32 network can be FP16, given `largest`, the largest |x| measured of each tensor."""
    weights = {
        tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    known = {**largest, **weights}
    for node in model.graph.node:
        # A reshaped or otherwise unmeasured tensor has the values that its node reads.
        if node.output[0] not in known:
            known[node.output[0]] = max((known.get(name, 0.0) for name in node.input), default=0.0)
    return tuple(_check_node(node, known) for node in model.graph.node)


def _check_node(node: NodeProto, known: Mapping[str, float]) -> HalfLayer:
    reached = max((known.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
    is_lrn = node.op_type == "LRN"
    share = (known.get(node.input[0], 0.0) / _LARGEST_SQUARED) if is_lrn else reached / LARGEST
    reason = ""
    if is_lrn:
        reason = "its squares overflow FP16" if share > 1 else "it squares its input; FP32 on every backend"
    elif node.op_type in _FP32_OPS:
        reason = "FP32 on every backend"
    elif share * _HEADROOM > 1:
        what = "overflows FP16" if share > 1 else f"leaves less than {_HEADROOM:g}-fold headroom"
        reason = f"|x| reaches {reached:,.0f} of {LARGEST:,.0f}: {what}"
    return HalfLayer(
        layer=node.name or node.output[0],
        op=node.op_type,
        largest=known.get(node.input[0], 0.0) if is_lrn else reached,
        share=share,
        precision="fp32" if reason else "fp16",
        reason=reason,
    )


def to_fp16(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Convert a float32 network; each LRN and the nodes named in `keep` stay FP32, with casts around them.

    Every tensor keeps its name. Needs onnxruntime.
    """
    float16, onnx_model = (load_onnxruntime(f"transformers.{name}") for name in ("float16", "onnx_model"))
    with warnings.catch_warnings():
        # Weights below FP16's smallest number are rounded up to it; the parity check measures the error.
        warnings.simplefilter("ignore")
        converted = float16.convert_float_to_float16(
            deepcopy(model),
            keep_io_types=True,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_FP32_OPS],
            node_block_list=list(keep),
        )
    # The converter appends its casts at the end, but ONNX requires nodes in topological order.
    sorted_model = onnx_model.OnnxModel(converted)
    sorted_model.topological_sort()
    _join_islands(converted.graph)
    onnx.checker.check_model(sorted_model.model, full_check=True)
    return sorted_model.model  # type: ignore[no-any-return]


def to_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float16 network with the same weights stored, and computed with, in float32."""
    copy = deepcopy(model)
    del copy.graph.value_info[:]
    for graph in (copy.graph, *inner_graphs(copy.graph.node)):
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        tensors = list(graph.initializer)
        for node in graph.node:
            tensors += [each.t for each in node.attribute if each.HasField("t")]
            for each in node.attribute:
                if _casts_to(node, TensorProto.FLOAT16) and each.name == "to":
                    each.i = TensorProto.FLOAT
        for tensor in tensors:
            if tensor.data_type == TensorProto.FLOAT16:
                values = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def _join_islands(graph: onnx.GraphProto) -> None:
    """Remove the casts to FP16 and back between two FP32 nodes: they overflow where FP32 is needed to prevent it."""
    del graph.value_info[:]
    makers, outputs = producers(graph), {value.name for value in graph.output}
    for back in [node for node in graph.node if _casts_to(node, TensorProto.FLOAT)]:
        there = makers.get(back.input[0])
        if there is None or not _casts_to(there, TensorProto.FLOAT16):
            continue
        others = [node for node in graph.node if there.output[0] in node.input and node is not back]
        if back.output[0] in outputs:
            # A graph output keeps its name; the layer takes that name over.
            maker = makers[there.input[0]]
            maker.output[:] = [back.output[0] if each == there.input[0] else each for each in maker.output]
            rename_inputs(graph.node, {there.input[0]: back.output[0]})
            there.input[0] = back.output[0]
            if not others:
                graph.node.remove(there)
        elif others or there.input[0] not in makers:
            # Another node reads the FP16 tensor too: keep it, and let the FP32 node read the one before it.
            rename_inputs(graph.node, {back.output[0]: there.input[0]})
        else:
            # The FP32 tensor takes the layer's name.
            name = there.output[0]
            maker = makers[there.input[0]]
            maker.output[:] = [name if each == there.input[0] else each for each in maker.output]
            rename_inputs(graph.node, {back.output[0]: name, there.input[0]: name})
            graph.node.remove(there)
        graph.node.remove(back)


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and attribute(node, "to", TensorProto.UNDEFINED) == kind
