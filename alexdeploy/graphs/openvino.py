"""The deployment graph in the form that OpenVINO runs fastest: the same sums with fewer copies in memory."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision
from alexdeploy.graphs.deployment import CUT, PREFIX, VIEWS, deployment_graph
from alexdeploy.graphs.edit import attribute, has_padding, inner_graphs, opset_of, producers, prune, set_nodes
from alexdeploy.graphs.ensemble import ensemble_graph
from alexdeploy.graphs.features import Cut
from alexdeploy.graphs.unroll_towers import unroll_towers
from alexdeploy.graphs.unsigned import unsigned_activations

_FOLDED: tuple[Precision, ...] = ("bf16", "int8")
"""Precisions whose kernels pad three channels to a multiple of two or four; FP32 kernels do not."""

_CAST_LIKE_OPSET = 15


def openvino_graph(
    network: onnx.ModelProto,
    spec: ModelSpec,
    precision: Precision,
    num_views: int,
    mean_image: NDArray[np.float32] | None,
    *,
    unsigned: bool = False,
    cut: Cut | None = None,
) -> onnx.ModelProto:
    """`deployment_graph` with views cut channels last, towers as branches and an integer LRN k. Same errors.

    `unsigned` is for processors that add INT8 products in 16 bits: see `unsigned_activations`.
    """
    if spec.members:
        return ensemble_graph(
            *(network, spec, num_views, mean_image),
            lambda network, spec, num_views, mean_image: openvino_graph(
                network, spec, precision, num_views, mean_image, unsigned=unsigned
            ),
        )
    model = deployment_graph(network, spec, num_views, mean_image, channels_last=True, cut=cut)
    if unsigned:
        unsigned_activations(model)
    if precision in _FOLDED:
        fold_columns(model)
    return unit_lrn_bias(unroll_towers(model))


def unit_lrn_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every LRN whose k is not a whole number k = 1, in place: OpenVINO's CPU kernel computes int(k) instead.

    (k + s)^-beta is k^-beta (1 + s / k)^-beta: alpha becomes alpha / k, and a Mul by k^-beta follows. Measured on
    2026.4.1, one node: off by 0.3 of the largest output for k = 1.5, by 10 times that for k = 0.5.
    """
    for graph in (model.graph, *inner_graphs(model.graph.node)):
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes.append(node)
            k = attribute(node, "bias", 1.0) if node.op_type == "LRN" else 1.0
            # The kernel's int overflows at 2^31.
            if k > 0 and not (k.is_integer() and k < 2**31):
                nodes.extend(_factored_bias(graph, node, k, opset_of(model)))
        set_nodes(graph, nodes)
    return model


def _factored_bias(graph: onnx.GraphProto, lrn: NodeProto, k: float, opset: int) -> list[NodeProto]:
    """Change the LRN to k = 1, and return the nodes that multiply its output by the missing factor."""
    output = lrn.output[0]
    alpha, beta = attribute(lrn, "alpha", 1e-4), attribute(lrn, "beta", 0.75)
    lrn.output[0] = f"{output}/unit_bias"
    kept = [each for each in lrn.attribute if each.name not in ("alpha", "bias")]
    del lrn.attribute[:]
    lrn.attribute.extend([*kept, helper.make_attribute("alpha", alpha / k), helper.make_attribute("bias", 1.0)])
    factor = numpy_helper.from_array(np.array(k**-beta, np.float32), f"{output}/bias_factor")
    graph.initializer.append(factor)
    multiply = helper.make_node("Mul", [lrn.output[0], factor.name], [output], f"{output}/bias_factor")
    if opset < _CAST_LIKE_OPSET:
        return [multiply]
    # In an imported FP16 graph the LRN may be FP16.
    multiply.input[1] = f"{output}/typed_bias_factor"
    cast = helper.make_node("CastLike", [factor.name, lrn.output[0]], [multiply.input[1]], multiply.input[1])
    return [cast, multiply]


def fold_columns(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold the columns of one stride of the first convolution into channels. Rewrites and returns `model`.

    With a stride of 4, four neighbouring pixels of three channels become one of twelve; with channels last that is the
    same memory. An 11 x 11 kernel becomes 11 x 3, with zeros as its twelfth column. Unfolded, INT8 pads three channels
    to four and computes 484 products for 363; folded, 396. A convolution with padding is not folded.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if VIEWS in node.input]
    conv = readers[0] if len(readers) == 1 and readers[0].op_type == "Conv" else None
    found = None if conv is None else _kernel(graph, conv, weights)
    if conv is None or found is None:
        return model
    kernel, dequantize = found
    stride = attribute(conv, "strides", [1, 1])[1]
    concat = next(node for node in graph.node if node.output[0] == CUT)
    slices = [node for node in graph.node if node.output[0] in concat.input]
    boxes = [numpy_helper.to_array(weights[node.input[index]]) for node in slices for index in (1, 2)]
    height, crop = (int(size) for size in boxes[1] - boxes[0])
    num_columns = -(-kernel.dims[3] // stride)
    width = stride * ((crop - kernel.dims[3]) // stride + num_columns)
    for node in slices:
        ends = weights[node.input[2]]
        start = numpy_helper.to_array(weights[node.input[1]])
        ends.CopyFrom(numpy_helper.from_array(np.add(start, (height, width)), ends.name))
    last = max(int(start[1]) for start in boxes[::2]) + width
    if last > IMAGE_SIZE:
        _widen(graph, slices, last - IMAGE_SIZE)
    shape = numpy_helper.from_array(np.array([-1, height, width // stride, 3 * stride]), PREFIX + "folded_shape")
    graph.initializer.append(shape)
    reader = next(node for node in graph.node if CUT in node.input)
    reader.input[0] = PREFIX + "folded"
    place = list(graph.node).index(reader)
    graph.node.insert(place, helper.make_node("Reshape", [CUT, shape.name], [PREFIX + "folded"], PREFIX + "folded"))
    _fold_kernel(graph, conv, kernel, dequantize, num_columns)
    prune(graph)
    return model


def _kernel(
    graph: onnx.GraphProto, conv: NodeProto, weights: dict[str, TensorProto]
) -> tuple[TensorProto, NodeProto | None] | None:
    """The weights [O, 3, K, K] of a convolution that can be folded, and their DequantizeLinear if any; else None."""
    name = conv.input[1]
    made_by = producers(graph).get(name)
    dequantize = made_by if made_by is not None and made_by.op_type == "DequantizeLinear" else None
    if dequantize is not None:
        if not _is_by_map(dequantize, weights):
            return None
        name = dequantize.input[0]
    strides = attribute(conv, "strides", [1, 1])
    is_plain = (
        name in weights and strides[1] > 1 and not has_padding(conv) and attribute(conv, "dilations", [1, 1]) == [1, 1]
    )
    return (weights[name], dequantize) if is_plain and weights[name].dims[1] == 3 else None


def _is_by_map(dequantize: NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Whether there is one scale, or one for each output map, and the zero point is 0."""
    scale, zero = dequantize.input[1], dequantize.input[2] if len(dequantize.input) > 2 else ""
    return (
        scale in weights
        and (math.prod(weights[scale].dims) == 1 or attribute(dequantize, "axis", 1) in (0, -4))
        and not attribute(dequantize, "block_size", 0)
        and (not zero or (zero in weights and not numpy_helper.to_array(weights[zero]).any()))
    )


def _fold_kernel(
    graph: onnx.GraphProto, conv: NodeProto, kernel: TensorProto, dequantize: NodeProto | None, num_columns: int
) -> None:
    """Give the convolution its own copy of the weights, folded: other nodes may read the original."""
    stride = attribute(conv, "strides", [1, 1])[1]
    values = numpy_helper.to_array(kernel)
    maps, channels, height, width = values.shape
    values = np.pad(values, [(0, 0), (0, 0), (0, 0), (0, num_columns * stride - width)])
    values = values.reshape(maps, channels, height, num_columns, stride).transpose(0, 4, 1, 2, 3)
    values = values.reshape(maps, stride * channels, height, num_columns)
    folded = numpy_helper.from_array(np.ascontiguousarray(values), PREFIX + "folded_weights")
    graph.initializer.append(folded)
    conv.input[1] = folded.name
    if dequantize is not None:
        conv.input[1] = PREFIX + "folded_kernel"
        own = deepcopy(dequantize)
        own.name = own.output[0] = conv.input[1]
        own.input[0] = folded.name
        graph.node.insert(list(graph.node).index(dequantize), own)
    for each in conv.attribute:
        if each.name == "strides":
            each.ints[1] = 1
        elif each.name == "kernel_shape":
            each.ints[1] = num_columns


def _widen(graph: onnx.GraphProto, slices: list[NodeProto], num_columns: int) -> None:
    """Pad columns of zeros on the right, which are multiplied only by zeros of the kernel."""
    pads = numpy_helper.from_array(np.array([0, 0, 0, 0, 0, 0, num_columns, 0]), PREFIX + "right")
    graph.initializer.append(pads)
    for name in dict.fromkeys(node.input[0] for node in slices):
        wide = f"{name}/wide"
        place = min(index for index, node in enumerate(graph.node) if name in node.input and node in slices)
        graph.node.insert(place, helper.make_node("Pad", [name, pads.name], [wide], wide))
        for node in slices:
            if node.input[0] == name:
                node.input[0] = wide
