"""The deployment graph in the form that each major version of TensorRT reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

from alexdeploy.core.errors import ModelError, first_line
from alexdeploy.core.spec import ModelSpec
from alexdeploy.graphs.deployment import PREFIX, VIEWS, deployment_graph
from alexdeploy.graphs.edit import attribute, opset_of, producers, rename_inputs, set_nodes
from alexdeploy.graphs.ensemble import ensemble_graph

DERIVATION = 1
"""Version of this module's output, part of an engine's key. Increment it when the derived graph changes."""

_OLDEST_OPSET, _TYPED_OPSET = 17, 19
"""The newest opset that TensorRT 8.6 reads; the first in which the scale has the type of the dequantized tensor."""

_TYPED_IR_VERSION = 9
"""The first ONNX IR version that allows opset 19."""


def opset_for(tensorrt_major: int) -> int:
    """The opset to pass to `engine_graph` for a major version of TensorRT."""
    return _OLDEST_OPSET if tensorrt_major < 10 else _TYPED_OPSET


def engine_graph(
    network: onnx.ModelProto,
    spec: ModelSpec,
    num_views: int,
    mean_image: NDArray[np.float32] | None,
    opset: int,
) -> onnx.ModelProto:
    """The deployment graph of a network with every type explicit; its outputs are the same.

    FP16 stays FP16 and FP32 stays FP32: a strongly typed engine computes each node in the type that it has here. In
    opset 17, quantized weights are FP32 followed by their own Q and DQ, as TensorRT 8 requires; later they are INT8,
    as in the file. Raises ModelError if the network cannot be brought to `opset`.
    """
    if spec.members:
        return ensemble_graph(network, spec, num_views, mean_image, partial(engine_graph, opset=opset))
    model = deployment_graph(_at_opset(network, opset), spec, num_views, mean_image)
    model.ir_version = max(model.ir_version, _TYPED_IR_VERSION) if opset >= _TYPED_OPSET else model.ir_version
    _quantize_after_cutting(model.graph)
    _cast_before_cutting(model.graph)
    if opset < _TYPED_OPSET:
        _widen_weights(model.graph)
    return model


@dataclass(frozen=True, slots=True)
class Float32Nodes:
    """The nodes of a graph that compute in FP32: their names, and those of the tensors that they produce."""

    nodes: frozenset[str]
    tensors: frozenset[str]


def float32_nodes(model: onnx.ModelProto) -> Float32Nodes:
    """The nodes that read an FP32 tensor. A node without a name has the one that TensorRT's parser gives its layer."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {each.name: each.type.tensor_type.elem_type for each in (*graph.value_info, *graph.input, *graph.output)}
    types.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    found = [node for node in graph.node if any(types.get(name) == TensorProto.FLOAT for name in node.input)]
    return Float32Nodes(
        nodes=frozenset(node.name or f"node_of_{node.output[0]}" for node in found),
        tensors=frozenset(name for node in found for name in node.output),
    )


def _at_opset(network: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    found = opset_of(network)
    if found == opset or (found > opset >= _TYPED_OPSET):
        return network
    if found > opset:
        raise ModelError(
            f"the graph is of ONNX opset {found}, this TensorRT supports at most {opset}",
            hint=f"Export it at opset {opset}, or use TensorRT 10 or later.",
        )
    try:
        return version_converter.convert_version(network, opset)
    # The converter has no exception classes of its own; in onnx 1.16 an unknown operator is an IndexError.
    except (RuntimeError, ValueError, IndexError) as exc:
        raise ModelError(f"the graph cannot be converted from opset {found} to {opset}: {first_line(exc)}") from exc


def _quantize_after_cutting(graph: GraphProto) -> None:
    """Move the input's Q from before the views to after them.

    TensorRT 10's parser does not list INT8 for the operators that cut them (Slice, Gather, Concat).
    """
    quantized = PREFIX + "quantized"
    quantize = producers(graph).get(quantized)
    if quantize is None:
        return
    nodes = [node for node in graph.node if node is not quantize]
    # Readers of the cut INT8 planes now read the planes quantized after the cut.
    rename_inputs(nodes, {quantized: quantize.input[0], VIEWS: quantized})
    after = helper.make_node("QuantizeLinear", [VIEWS, *quantize.input[1:]], [quantized], name=quantized)
    set_nodes(graph, _insert_after(nodes, VIEWS, after))


def _cast_before_cutting(graph: GraphProto) -> None:
    """Round to FP16 once per pixel, not once per view: cutting does not change values."""
    readers = [node for node in graph.node if VIEWS in node.input]
    if [node.op_type for node in readers] != ["Cast"]:
        return
    (cast,) = readers
    made_by = producers(graph)
    cutting = _cutting_nodes(made_by)
    (source,) = {node.input[0] for node in cutting if made_by[node.input[0]] not in cutting}
    rounded = PREFIX + "rounded"
    before = helper.make_node("Cast", [source], [rounded], name=rounded)
    before.attribute.extend(cast.attribute)
    rename_inputs(cutting, {source: rounded})
    nodes = [node for node in graph.node if node is not cast]
    rename_inputs(nodes, {cast.output[0]: VIEWS})
    set_nodes(graph, _insert_after(nodes, source, before))


def _cutting_nodes(made_by: dict[str, NodeProto]) -> list[NodeProto]:
    """The Gather, Slices and Concat between the planes and the views."""
    concat = made_by[VIEWS]
    slices = [made_by[name] for name in concat.input]
    mirrors = [made_by[node.input[0]] for node in slices if node.input[0] == PREFIX + "mirrored"]
    return [concat, *slices, *mirrors[:1]]


def _widen_weights(graph: GraphProto) -> None:
    """Replace INT8 weights by FP32 ones and a Q before their DQ, which gives the same INT8 values."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        weight = tensors.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.data_type == TensorProto.INT8:
            axis = attribute(node, "axis", 1)
            values, scale = numpy_helper.to_array(weight), numpy_helper.to_array(tensors[node.input[1]])
            shape = [-1 if index == axis else 1 for index in range(values.ndim)] if scale.ndim else []
            wide = values.astype(np.float32) * scale.reshape(shape)
            graph.initializer.remove(weight)
            graph.initializer.append(numpy_helper.from_array(wide, weight.name))
            name = weight.name + "/quantized"
            quantize = helper.make_node("QuantizeLinear", list(node.input), [name], name=name)
            quantize.attribute.extend(node.attribute)
            nodes.append(quantize)
            node.input[0] = name
        nodes.append(node)
    set_nodes(graph, nodes)


def _insert_after(nodes: list[NodeProto], tensor: str, new: NodeProto) -> list[NodeProto]:
    index = next(index for index, node in enumerate(nodes) if tensor in node.output)
    return [*nodes[: index + 1], new, *nodes[index + 1 :]]
