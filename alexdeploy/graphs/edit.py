"""Traversing an ONNX graph, including the branches of If and Loop, and reading attributes of its nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")
"""The operators of layers with weights, which are the ones that are quantized."""

_Value = TypeVar("_Value", int, float, bytes, list[int])

_FIELDS = {int: "i", float: "f", bytes: "s", list: "ints"}


def opset_of(model: ModelProto) -> int:
    """The opset version of the default ONNX domain; 1 if the file has none, as in the oldest format."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def attribute(node: NodeProto, name: str, default: _Value) -> _Value:
    """The value of an attribute, of the type of `default`; `default` if the node does not have it."""
    kind = type(default)
    return next((kind(getattr(each, _FIELDS[kind])) for each in node.attribute if each.name == name), default)


def has_padding(conv: NodeProto) -> bool:
    """Whether a convolution is padded, according to its attributes."""
    return any(attribute(conv, "pads", [0])) or attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET"


def node_macs(node: NodeProto, weights: Sequence[int], output: Sequence[int | str]) -> int:
    """Multiply-accumulates per view of a node of WEIGHTED_OPS, from the shapes of its weights and output.

    The weights are used once for each pixel of a map, or for each row that MatMul multiplies.
    """
    places = output[2:] if node.op_type == "Conv" else output[1:-1]
    return math.prod(weights) * math.prod(size for size in places if isinstance(size, int))


def holds_only_float32(graph: GraphProto) -> bool:
    """Whether float32 is the graph's only float type, so that its output is float32 wherever the graph is cut."""
    others = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
    casts = (attribute(node, "to", TensorProto.FLOAT) for node in graph.node if node.op_type == "Cast")
    return not any(kind in others for kind in (*casts, *(tensor.data_type for tensor in graph.initializer)))


def set_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Replace the nodes of the graph by `nodes`, which may include existing ones."""
    del graph.node[:]
    graph.node.extend(nodes)


def rename_inputs(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    """Rename the inputs of nodes: `names` maps old names to new. Branches are not changed."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]


def rename(graph: GraphProto, new: Callable[[str], str]) -> None:
    """Rename everything in the graph and its branches: nodes, tensors, inputs and outputs. No name stays no name."""
    for node in all_nodes(graph.node):
        node.name = node.name and new(node.name)
        node.input[:] = [name and new(name) for name in node.input]
        node.output[:] = [name and new(name) for name in node.output]
    for each in (graph, *inner_graphs(graph.node)):
        del each.value_info[:]
        for value in (*each.input, *each.output, *each.initializer):
            value.name = new(value.name)


def prune(graph: GraphProto) -> None:
    """Remove nodes and weights that the outputs do not need."""
    needed: set[str] = set()
    for value in graph.output:
        needed |= needed_tensors(graph, value.name)
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    set_nodes(graph, nodes)
    del graph.value_info[:]
    # In place: weights that are taken out and put back would be copied.
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def needed_tensors(graph: GraphProto, output: str) -> set[str]:
    """Names of `output` and of the tensors that it is computed from."""
    made_by = producers(graph)
    needed: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            node = made_by.get(name)
            waiting.extend(reads(node) if node is not None else ())
    return needed


def computed_from(graph: GraphProto, source: str) -> set[str]:
    """Names of `source` and of the tensors that depend on it."""
    depends = {source}
    for node in graph.node:
        if depends.intersection(reads(node)):
            depends.update(node.output)
    return depends


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output if name}


def reads(node: NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, including the nodes in its branches or loop body."""
    for each in all_nodes([node]):
        yield from filter(None, each.input)
    for inner in inner_graphs([node]):
        yield from (value.name for value in inner.output)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for inner in inner_graphs([node], deep=False):
            yield from all_nodes(inner.node)


def inner_graphs(nodes: Iterable[NodeProto], deep: bool = True) -> Iterator[GraphProto]:
    for node in nodes:
        for each in node.attribute:
            for inner in (*([each.g] if each.HasField("g") else []), *each.graphs):
                yield inner
                if deep:
                    yield from inner_graphs(inner.node)


WeightBits = Literal[7, 8]


def float_layers(model: ModelProto) -> tuple[str, ...]:
    """Layers that multiply in float: a runtime uses INT8 only if both factors of a layer are dequantized."""
    made_by = producers(model.graph)

    def is_dequantized(name: str) -> bool:
        return name in made_by and made_by[name].op_type == "DequantizeLinear"

    return tuple(
        node.name or node.output[0]
        for node in all_nodes(model.graph.node)
        if node.op_type in (*WEIGHTED_OPS, "ConvTranspose") and not all(map(is_dequantized, node.input[:2]))
    )


def weight_bits(model: ModelProto) -> WeightBits | None:
    """7 if every INT8 weight of a layer is within -64 to 63, else 8; None without INT8 weights.

    Determined from the weights themselves, so it also works for imported graphs.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made_by = producers(model.graph)
    makers = (
        made_by.get(node.input[1])
        for node in all_nodes(model.graph.node)
        if node.op_type in (*WEIGHTED_OPS, "ConvTranspose")
    )
    stored = {node.input[0] for node in makers if node is not None and node.op_type == "DequantizeLinear"}
    found = [numpy_helper.to_array(constants[name]) for name in stored if name in constants]
    if not found or any(values.dtype != np.int8 for values in found):
        return None
    return 7 if all(values.min() >= -64 and values.max() <= 63 for values in found) else 8
