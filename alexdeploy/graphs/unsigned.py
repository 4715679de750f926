"""INT8 activations as unsigned bytes, for processors that add two byte products in 16 bits with saturation.

Those are x86 processors without VNNI. On them OpenVINO has two ways to compute a layer whose input is signed: it adds
128 to the input, and sums saturate at 32,767; or it halves the weights, which lose a bit. A tensor without negative
values can be unsigned as it is: values up to 127, sums up to 2 x 127 x 127 = 32,258. Other tensors become unsigned by
adding 128; with weights of 7 bits, sums are at most 2 x 255 x 63 = 32,130.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.graphs.edit import WEIGHTED_OPS, has_padding, producers, set_nodes
from alexdeploy.graphs.ranges import QMAX

_MOVES = ("Slice", "Concat", "Gather", "Reshape", "Transpose", "Flatten", "Identity")
"""Operators that only move values."""

_KEEP_THE_SIGN = (*_MOVES, "MaxPool", "AveragePool", "GlobalAveragePool", "LRN", "Dropout")
_NOT_NEGATIVE = ("Relu", "Sigmoid", "Softplus")


def unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite `model` in place and return it. The integers that each layer computes with stay the same.

    A tensor that may be negative stays signed unless every layer that reads it has 7-bit weights and no padding.
    """
    graph = model.graph
    found = _Quantizations(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        unsigned = found.unsigned.get(node.output[0])
        if unsigned is not None:
            if unsigned == 0 and node.op_type == "QuantizeLinear":
                # The largest value of INT8 is 127, not 255.
                limit = QMAX * numpy_helper.to_array(found.weights[node.input[1]])
                name = f"{node.output[0]}/limited"
                graph.initializer.append(numpy_helper.from_array(limit.astype(np.float32), f"{name}/limit"))
                nodes.append(helper.make_node("Min", [node.input[0], f"{name}/limit"], [name], name))
                node.input[0] = name
            node.input[2] = f"unsigned/{unsigned}"
        nodes.append(node)
    for zero in sorted(set(found.unsigned.values())):
        graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), f"unsigned/{zero}"))
    set_nodes(graph, nodes)
    return model


class _Quantizations:
    """`unsigned` maps outputs of the nodes that quantize and dequantize activations to the zero point, 0 or 128."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self._made_by = producers(graph)
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._outputs = {value.name for value in graph.output}
        self.unsigned: dict[str, int] = {}
        for node in graph.node:
            if node.op_type == "QuantizeLinear" and self._is_int8(node):
                readers = list(self._ends(node.output[0]))
                if readers and all(self._is_pair(node, reader) for reader in readers):
                    zero = self._zero_point(node, [name for each in readers for name in each.output])
                    if zero is not None:
                        self.unsigned |= {each.output[0]: zero for each in (node, *readers)}

    def _is_int8(self, node: NodeProto) -> bool:
        """Whether it has one scale and a zero point that is INT8 and 0."""
        scale, zero = (self.weights.get(name) for name in (*node.input[1:3], "")[:2])
        return (
            scale is not None
            and zero is not None
            and math.prod(scale.dims) == 1
            and zero.data_type == TensorProto.INT8
            and not numpy_helper.to_array(zero).any()
        )

    def _is_pair(self, quantize: NodeProto, reader: NodeProto) -> bool:
        """Whether `reader` dequantizes the output of `quantize` with the same scale."""
        return (
            reader.op_type == "DequantizeLinear"
            and reader.input[1:] == quantize.input[1:]
            and self._starts(reader.input[0]) == {quantize.output[0]}
        )

    def _starts(self, name: str) -> set[str]:
        node = self._made_by.get(name)
        if node is None or node.op_type not in _MOVES:
            return {name}
        moved = node.input if node.op_type == "Concat" else node.input[:1]
        return set().union(*(self._starts(each) for each in moved))

    def _ends(self, name: str) -> Iterator[NodeProto]:
        """The nodes that read a tensor, followed through operators that only move values."""
        for node in self._readers.get(name, []):
            if node.op_type in _MOVES:
                yield from self._ends(node.output[0])
            else:
                yield node

    def _zero_point(self, quantize: NodeProto, dequantized: list[str]) -> int | None:
        if self._is_not_negative(quantize.input[0]):
            return 0
        layers = [node for name in dequantized for node in self._ends(name)]
        return 128 if layers and all(map(self._takes_offset, layers)) else None

    def _is_not_negative(self, name: str) -> bool:
        node = self._made_by.get(name)
        if node is None or node.op_type in _NOT_NEGATIVE:
            return node is not None
        moved = node.input if node.op_type == "Concat" else node.input[:1]
        return node.op_type in _KEEP_THE_SIGN and all(map(self._is_not_negative, moved))

    def _takes_offset(self, layer: NodeProto) -> bool:
        if layer.op_type not in WEIGHTED_OPS or has_padding(layer):
            return False
        maker = self._made_by.get(layer.input[1])
        tensor = None if maker is None else self.weights.get(maker.input[0])
        if tensor is None or tensor.data_type != TensorProto.INT8:
            return False
        values = numpy_helper.to_array(tensor)
        return bool(values.min() >= -64 and values.max() <= 63)
