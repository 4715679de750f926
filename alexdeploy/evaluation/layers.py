"""The outputs of a network's layers, from its weights in PyTorch or from a graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.spec import ModelSpec
from alexdeploy.graphs.ensemble import member_prefix, parts
from alexdeploy.graphs.features import layer_tensors
from alexdeploy.graphs.runner import GraphRunner
from alexdeploy.images.preprocess import network_input
from alexdeploy.network.layers import plan_layers

Layers = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.floating]]]
"""float32 [N, 3, crop, crop] -> layer outputs by layer name; floating point, but not always float32."""


def graph_tensors(model: onnx.ModelProto, spec: ModelSpec) -> dict[str, str]:
    """The tensor of each layer, by layer name, in order, the logits last.

    If the architecture is unknown, every tensor that depends on the images counts as a layer.
    """
    graph = model.graph
    output = graph.output[0].name
    if spec.architecture is not None:
        names = layer_tensors(model, plan_layers(spec.architecture, spec.num_classes))
        known = {name for node in graph.node for name in node.output}
        return {layer: name for layer, name in names.items() if name in known}
    reached = dict.fromkeys([graph.input[0].name])
    for node in graph.node:
        if any(name in reached for name in node.input):
            reached.update(dict.fromkeys(name for name in node.output if name))
    inner = list(reached)[1:]
    return {**{name: name for name in inner if name not in (output, "logits")}, "logits": output}


def graph_layers(model: onnx.ModelProto, tensors: Mapping[str, str]) -> Layers:
    """The layers of a graph in ONNX Runtime; `tensors` as returned by `graph_tensors`."""
    runner = GraphRunner(model, tensors.values())

    def run(images: NDArray[np.float32]) -> dict[str, NDArray[np.floating]]:
        outputs = runner.run(images)
        return {layer: outputs[name] for layer, name in tensors.items()}

    return run


class Opened(NamedTuple):
    """A network whose layers can be computed; `wanted` are the names of those that are compared, the logits last."""

    spec: ModelSpec
    mean_image: NDArray[np.float32] | None
    layers: Layers
    wanted: tuple[str, ...]


def open_networks(
    model: onnx.ModelProto,
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    like: Sequence[Opened] | None = None,
) -> list[Opened]:
    """The network of a graph, or those of an ensemble's; with `like`, of another precision, only the layers of that."""
    found = []
    for index, part in enumerate(parts(model, spec, mean_image)):
        tensors = graph_tensors(part.network, part.spec)
        if like is not None:
            tensors = {layer: name for layer, name in tensors.items() if layer in like[index].wanted}
        layers = graph_layers(part.network, tensors)
        found.append(Opened(part.spec, part.mean_image, layers, tuple(tensors)))
    return found


def deployed_layers(
    networks: Sequence[Opened], photographs: Sequence[NDArray[np.uint8]], num_views: int
) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.floating]]:
    """The layers by name, and the logits [N * V, C]: the views of the first photograph, then those of the others.

    Layers of an ensemble are called "member1/conv1" and so on, and in place of logits it has the logarithm of its
    members' mean probabilities. `photographs` are uint8 [256, 256, 3].
    """
    found: dict[str, NDArray[np.floating]] = {}
    answers = []
    for number, network in enumerate(networks, 1):
        steps, mean_image = network.spec.preprocessing, network.mean_image
        inputs = np.concatenate([network_input(each, steps, num_views, mean_image) for each in photographs])
        outputs, last = network.layers(inputs), network.wanted[-1]
        if len(networks) == 1:
            return dict(outputs), outputs[last]
        found |= {member_prefix(number) + name: values for name, values in outputs.items()}
        logits = outputs[last].astype(np.float64)
        answers.append(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    return found, np.logaddexp.reduce(answers) - np.log(len(networks))


def are_comparable(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> bool:
    """Both floating point and of equal size: in an imported graph a name may refer to a shape or a sequence."""
    are_floats = all(np.issubdtype(getattr(values, "dtype", None), np.floating) for values in (expected, actual))
    return are_floats and expected.size == actual.size > 0
