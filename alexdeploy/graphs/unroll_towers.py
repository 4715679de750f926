"""The towers of a deployment graph as branches, as on the two GPUs of 2012: the same arithmetic without Reshapes.

An exported network folds the towers into the batch around each LRN. On CPUs that changes the layout before and
after each LRN; two branches from conv1 to conv3 avoid this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.graphs.edit import attribute, prune, set_nodes

_TOWERS = 2
_BY_CHANNEL = ("AveragePool", "MaxPool", "Cast")
_INSIDE_FOLDS = ("LRN", "Cast", "QuantizeLinear", "DequantizeLinear")
_ELEMENTWISE = (
    "Relu",
    "LeakyRelu",
    "Elu",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Erf",
    "Greater",
    "Where",
    "Add",
    "Mul",
    "Div",
    "Min",
    "QuantizeLinear",
    "DequantizeLinear",
)


def unroll_towers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite `model` in place if it has LRN layers per tower, else leave it unchanged; return it.

    From the first convolution on, each node becomes one node per tower on its own half of the maps; the towers are
    joined where a layer sees both. With the same kernel, the outputs are bitwise equal to those of the original.
    """
    graph = model.graph
    folds = tower_folds(graph.node, {tensor.name: tensor for tensor in graph.initializer})
    if folds:
        _Unrolling(graph, folds).run()
    return model


def tower_folds(nodes: Sequence[NodeProto], weights: Mapping[str, TensorProto]) -> set[str]:
    """Outputs of the nodes that fold two towers into the batch around an LRN, from Reshape to Reshape.

    They are recognized by their effect, [N, C, H, W] to [2N, C / 2, H, W] and back, not by their names.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for node in nodes:
        chain = [node]
        while node.op_type == "Reshape" and len(after := readers.get(chain[-1].output[0], [])) == 1:
            chain += after
            if after[0].op_type not in _INSIDE_FOLDS:
                break
        if chain[-1].op_type == "Reshape" and any(each.op_type == "LRN" for each in chain):
            inner, outer = _target(chain[0], weights), _target(chain[-1], weights)
            if len(inner) == 4 and inner[0] == -1 and outer == [-1, _TOWERS * inner[1], *inner[2:]]:
                found.update(each.output[0] for each in chain)
    return found


def _target(reshape: NodeProto, weights: Mapping[str, TensorProto]) -> list[int]:
    """The target shape of a Reshape if it is constant, else an empty list."""
    shape = weights.get(reshape.input[1])
    return [] if shape is None else [int(size) for size in numpy_helper.to_array(shape)]


class _Unrolling:
    def __init__(self, graph: onnx.GraphProto, folds: set[str]) -> None:
        self._graph = graph
        self._folds = folds
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._dequantized = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in self._weights
        }
        self._halved: set[str] = set()
        self._nodes: list[NodeProto] = []
        self._towers: dict[str, tuple[str, str]] = {}
        self._joined: dict[str, str] = {}

    def run(self) -> None:
        has_begun = False
        for node in self._graph.node:
            begins = not has_begun and node.op_type == "Conv"
            if not begins and not any(name in self._towers for name in node.input):
                self._nodes.append(node)
            elif node.op_type == "Reshape" and node.output[0] in self._folds:
                self._towers[node.output[0]] = self._towers[node.input[0]]
            elif begins or (self._is_by_tower(node) and not self._joins_next(node)):
                has_begun = True
                for tower in range(_TOWERS):
                    self._branch(node, tower)
                self._towers[node.output[0]] = half_names(node.output[0])
            else:
                node.input[:] = [self._join(name) for name in node.input]
                self._nodes.append(node)
        # The halves come after the weights that the graph has.
        halves = list(self._weights.values())[len(self._graph.initializer) :]
        self._graph.initializer.extend(halves)
        set_nodes(self._graph, self._nodes)
        prune(self._graph)

    def _is_by_tower(self, node: NodeProto) -> bool:
        if node.op_type == "Conv":
            return attribute(node, "group", 1) == _TOWERS
        if node.op_type == "LRN":
            return node.output[0] in self._folds
        others = [self._weights[name] for name in node.input if name in self._weights]
        is_scalar = all(np.prod(tensor.dims, dtype=int) == 1 for tensor in others)
        return node.op_type in _BY_CHANNEL or (node.op_type in _ELEMENTWISE and is_scalar)

    def _joins_next(self, node: NodeProto) -> bool:
        """Whether to join the INT8 tensors of the towers before this DequantizeLinear: the next layer sees both.

        If they are joined after it, or before they are quantized, OpenVINO 2026.4 gives wrong results: it quantizes
        each branch separately and computes with the wrong scale.
        """
        readers = [other for other in self._graph.node if node.output[0] in other.input]
        return node.op_type == "DequantizeLinear" and not all(self._is_by_tower(reader) for reader in readers)

    def _branch(self, node: NodeProto, tower: int) -> None:
        inputs = list(node.input)
        for index, name in enumerate(inputs):
            if name in self._towers:
                inputs[index] = self._towers[name][tower]
            elif node.op_type == "Conv" and index > 0:
                inputs[index] = self._half(name)[tower]
        self._nodes.append(half_of(node, tower, inputs))

    def _half(self, name: str) -> tuple[str, str]:
        """The names of each tower's half of a weight or bias; tensors that it is dequantized from are halved too."""
        if name not in self._dequantized:
            return halve(self._weights, name)
        if name not in self._halved:
            self._halved.add(name)
            node = self._dequantized[name]
            halves = [self._half(each) for each in node.input]
            self._nodes += [half_of(node, tower, [names[tower] for names in halves]) for tower in range(_TOWERS)]
        return half_names(name)

    def _join(self, name: str) -> str:
        if name not in self._towers:
            return name
        if name not in self._joined:
            self._joined[name] = f"{name}/joined"
            self._nodes.append(
                helper.make_node("Concat", self._towers[name], [self._joined[name]], name=f"{name}/joined", axis=1)
            )
        return self._joined[name]


def half_names(name: str) -> tuple[str, str]:
    """The names of the halves of a tensor."""
    return f"{name}/tower0", f"{name}/tower1"


def halve(weights: dict[str, TensorProto], name: str, axis: int = 0) -> tuple[str, str]:
    """The names of a weight's halves along an axis, which are added to `weights` if missing."""
    names = half_names(name)
    if names[0] not in weights:
        for half, part in zip(names, np.array_split(numpy_helper.to_array(weights[name]), 2, axis), strict=True):
            weights[half] = numpy_helper.from_array(np.ascontiguousarray(part), half)
    return names


def half_of(node: NodeProto, tower: int, inputs: list[str]) -> NodeProto:
    """One tower's copy of a node: a convolution with two groups gets one group."""
    half = deepcopy(node)
    half.name = half_names(node.name or node.output[0])[tower]
    half.input[:] = inputs
    half.output[:] = [half_names(node.output[0])[tower]]
    for each in half.attribute:
        if each.name == "group":
            each.i = 1
    return half
