"""Several networks in one file, and the deployment graph of an ensemble: the mean of its members' probabilities.

In an ensemble's `model.onnx` each member is as it was, with "member1/", "member2/" and so on before its names: inputs
`member1/images` float32 [N, 3, crop, crop], outputs `member1/logits` float32 [N, C]. Deployment graphs are derived
member by member, in each engine's own form, and then joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from alexdeploy.core.errors import ModelError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.graphs.answers import BY_VIEW, PREFIX, answers
from alexdeploy.graphs.edit import computed_from, opset_of, prune, rename

_Means = NDArray[np.float32] | None


def member_prefix(number: int) -> str:
    """What the names of a member begin with; the first is number 1."""
    return f"member{number}/"


class Part(NamedTuple):
    """A member of an ensemble as a model of its own: network, spec and mean image [3, 256, 256]."""

    network: onnx.ModelProto
    spec: ModelSpec
    mean_image: _Means


def join_networks(networks: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """The networks in one model, with names of their own; all are of one opset, and none is changed."""
    joined = onnx.GraphProto(name="ensemble")
    for number, network in enumerate(networks, 1):
        graph = onnx.GraphProto(
            node=network.graph.node,
            input=network.graph.input,
            output=network.graph.output,
            initializer=network.graph.initializer,
        )
        rename(graph, member_prefix(number).__add__)
        joined.MergeFrom(graph)
    outer = onnx.ModelProto(ir_version=max(each.ir_version for each in networks))
    for network in networks:
        outer.opset_import.extend(each for each in network.opset_import if each not in outer.opset_import)
    return _model(joined, outer)


def parts(network: onnx.ModelProto, spec: ModelSpec, mean_image: _Means) -> Iterator[Part]:
    """The members of an ensemble, one at a time; for any other model, the model itself.

    `mean_image` is what `ModelFolder.mean_image` returns. Raises ModelError if the graph has other members than `spec`.
    """
    if not spec.members:
        yield Part(network, spec, mean_image)
        return
    found = sum(value.name.startswith(member_prefix(number)) for number, value in enumerate(network.graph.input, 1))
    if not found == len(network.graph.input) == len(network.graph.output) == len(spec.members):
        raise ModelError(
            f"the graph has {len(network.graph.input)} inputs, expected one for each member of the ensemble"
        )
    means = iter(() if mean_image is None else mean_image)
    for number, member in enumerate(spec.networks, 1):
        mean = next(means) if member.preprocessing.mean_image is not None else None
        yield Part(_member(network, number), member, mean)


def _member(network: onnx.ModelProto, number: int) -> onnx.ModelProto:
    """The network as it was before `join_networks`."""
    begin = member_prefix(number)
    graph = helper.make_graph(
        [node for node in network.graph.node if any(name.startswith(begin) for name in node.output)],
        "network",
        network.graph.input[number - 1 : number],
        network.graph.output[number - 1 : number],
        [tensor for tensor in network.graph.initializer if tensor.name.startswith(begin)],
    )
    rename(graph, lambda name: name.removeprefix(begin))
    return _model(graph, network)


def ensemble_graph(
    network: onnx.ModelProto,
    spec: ModelSpec,
    num_views: int,
    mean_image: _Means,
    derive: Callable[[onnx.ModelProto, ModelSpec, int, _Means], onnx.ModelProto],
) -> onnx.ModelProto:
    """The deployment graph of an ensemble: what `derive` makes of each member, and the mean of their probabilities.

    `view_classes` is the top class of that mean in each view. What members compute alike before their networks, such
    as views of the same crop and mean, is computed once. Raises the errors of `derive` and `parts`.
    """
    joined = _Joined()
    outer = onnx.ModelProto()
    for number, part in enumerate(parts(network, spec, mean_image), 1):
        model = derive(part.network, part.spec, num_views, part.mean_image)
        if number == 1:
            outer.graph.input.extend(model.graph.input)
            outer.graph.output.extend(model.graph.output)
        outer.ir_version = max(outer.ir_version, model.ir_version)
        outer.opset_import.extend(each for each in model.opset_import if each not in outer.opset_import)
        joined.add(model.graph, number)
    nodes, constants = answers(opset_of(outer))
    graph = helper.make_graph(
        [*joined.graph.node, helper.make_node("Mean", joined.by_view, [BY_VIEW], BY_VIEW), *nodes],
        f"{spec.name}-{num_views}-views",
        outer.graph.input,
        outer.graph.output,
        [*joined.graph.initializer, *constants],
    )
    prune(graph)
    return _model(graph, outer)


class _Joined:
    """The members' nodes and constants up to `by_view`, the names of their probabilities of each view."""

    def __init__(self) -> None:
        self.graph = onnx.GraphProto()
        self.by_view: list[str] = []
        self._made: dict[object, str] = {}

    def add(self, graph: onnx.GraphProto, number: int) -> None:
        """Add a member's deployment graph, which is changed, without what an earlier one has computed already."""
        begin = member_prefix(number)
        names = {"images": "images"}

        def own(name: str) -> str:
            return f"{name}/{begin[:-1]}" if name.startswith(PREFIX) else begin + name

        def new(name: str) -> str:
            return names.get(name) or own(name)

        def is_first(name: str, content: object) -> bool:
            if name.startswith(PREFIX):
                names[name] = self._made.setdefault(content, own(name))
            return new(name) == own(name)

        after = computed_from(graph, BY_VIEW) - {BY_VIEW}
        constants = [tensor for tensor in graph.initializer if is_first(tensor.name, _values(tensor))]
        nodes = [
            node
            for node in graph.node
            if not after.intersection(node.output) and is_first(node.output[0], _meaning(node, new))
        ]
        rest = onnx.GraphProto(node=nodes, initializer=constants)
        rename(rest, new)
        self.graph.MergeFrom(rest)
        self.by_view.append(new(BY_VIEW))


def _values(tensor: onnx.TensorProto) -> object:
    """What a constant of a deployment graph is, whatever its name; None for the network's own, which are not shared."""
    if not tensor.name.startswith(PREFIX):
        return None
    return tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()


def _meaning(node: onnx.NodeProto, new: Callable[[str], str]) -> object:
    """What a node computes, whatever its name."""
    attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
    return node.op_type, node.domain, tuple(map(new, node.input)), tuple(attributes)


def _model(graph: onnx.GraphProto, like: onnx.ModelProto) -> onnx.ModelProto:
    return helper.make_model(
        graph, opset_imports=like.opset_import, ir_version=like.ir_version, producer_name="alexdeploy"
    )
