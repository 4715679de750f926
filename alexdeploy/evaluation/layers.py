"""The outputs of a network's layers, from its weights in PyTorch or from a graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec
from alexdeploy.evaluation.agreement import Reference
from alexdeploy.graphs.features import layer_tensors
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.runner import GraphRunner
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


def reference_layers(folder: ModelFolder, spec: ModelSpec, reference: Reference, wanted: Iterable[str]) -> Layers:
    """The layers of the reference; for a graph, only the `wanted` ones."""
    if reference == "torch":
        from alexdeploy.engines.torch import open_layers

        return open_layers(folder)
    model = load_graph(folder, "fp32", spec).model
    tensors = graph_tensors(model, spec)
    return graph_layers(model, {layer: name for layer, name in tensors.items() if layer in wanted})


def are_comparable(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> bool:
    """Both floating point and of equal size: in an imported graph a name may refer to a shape or a sequence."""
    are_floats = all(np.issubdtype(getattr(values, "dtype", None), np.floating) for values in (expected, actual))
    return are_floats and expected.size == actual.size > 0
