"""Walking and renaming in an ONNX graph, the branches of If and Loop included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, NodeProto


def prune(graph: GraphProto) -> None:
    """Keep the nodes and weights that the outputs need."""
    needed: set[str] = set()
    for value in graph.output:
        needed |= needed_tensors(graph, value.name)
    nodes = [node for node in graph.node if needed.intersection(node.output)]
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def needed_tensors(graph: GraphProto, output: str) -> set[str]:
    """Names of the tensors that `output` is computed from, itself among them."""
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


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output if name}


def reads(node: NodeProto) -> Iterator[str]:
    """What a node reads, and the nodes inside its branches or its loop."""
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
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield inner
                if deep:
                    yield from inner_graphs(inner.node)
