"""The kernels of a model's first layer, from its weights or from its graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec
from alexdeploy.graphs.edit import attribute
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.network.weights import load_model_weights


class FirstKernels(NamedTuple):
    """`kernels` float32 [C, 3, K, K] in RGB, the first C / `towers` of the first tower; `source` is their file."""

    kernels: NDArray[np.float32]
    towers: int
    source: str


def first_kernels(folder: ModelFolder, spec: ModelSpec) -> FirstKernels:
    """The kernels of conv1; of a model without weights, those of the first convolution of its FP32 graph.

    Raises ModelError and StaleArtifactError for weights or graphs that are damaged, stale or absent, and ModelError for
    a graph that does not begin with a convolution of the image.
    """
    if folder.weights_path.is_file() and spec.architecture is not None:
        kernels = load_model_weights(folder, spec).tensors["conv1.weight"]
        return FirstKernels(in_rgb(kernels, spec), spec.architecture.towers, folder.weights_path.name)
    graph = load_graph(folder, "fp32", spec).model.graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    first = next((node for node in convolutions if node.input[1] in weights), None)
    kernels = np.empty(0, np.float32) if first is None else numpy_helper.to_array(weights[first.input[1]])
    if kernels.ndim != 4 or kernels.shape[1] != 3:
        raise ModelError(
            f"{folder.onnx_path()} does not begin with a convolution of the three colours, so it has no kernels to show"
        )
    towers = _towers(convolutions) if spec.architecture is None else spec.architecture.towers
    return FirstKernels(in_rgb(kernels.astype(np.float32), spec), towers, folder.onnx_path().name)


def in_rgb(kernels: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """Kernels [C, 3, K, K] with their channels in the order red, green, blue."""
    return kernels[:, ::-1] if spec.preprocessing.channels == "bgr" else kernels


def _towers(convolutions: Iterable[NodeProto]) -> int:
    """2 if a later convolution reads its own half of the maps, as AlexNet's conv2 does."""
    return 2 if any(attribute(node, "group", 1) == 2 for node in convolutions) else 1
