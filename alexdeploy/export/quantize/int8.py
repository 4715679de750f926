"""Converting a graph to INT8: Q/DQ at the inputs of Conv and Gemm, in the form that every runtime supports.

Quantization is symmetric, with explicit zero points of 0 and float32 scales: activations per tensor, weights per output
channel, biases in float. LRN has no Q/DQ. TensorRT 8.6 to 11, ONNX Runtime and OpenVINO run the same file.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from copy import deepcopy

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from alexdeploy.core.errors import ModelError
from alexdeploy.core.spec import Preprocessing
from alexdeploy.graphs.deployment import PIXELS
from alexdeploy.graphs.edit import WEIGHTED_OPS, WeightBits, attribute, has_padding, set_nodes
from alexdeploy.graphs.onnxruntime_library import load_onnxruntime
from alexdeploy.graphs.ranges import QMAX

_PIXEL_OFFSET = 128
"""Maps pixels 0..255 to INT8 -128..127 exactly, at scale 1."""

_QMAX_7_BITS = 63


def quantizable_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that have weights to quantize, in execution order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED_OPS and node.input[1] in weights and node.name
    )


def to_int8(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    preprocessing: Preprocessing,
    keep: Collection[str] = (),
    weight_bits: WeightBits = 8,
) -> onnx.ModelProto:
    """Quantize a float32 network; layers named in `keep` stay float32. Needs onnxruntime.

    `thresholds` are the |x| that map to 127, by tensor. If `preprocessing` has no mean image and the first layer no
    padding, that layer reads the pixels themselves, so its input has no quantization error. Weights are INT8 from -127
    to 127; with 7 bits from -63 to 63, so that a sum of two products with 8-bit activations fits in 16 bits.
    """
    quantization = load_onnxruntime("quantization")
    copy = deepcopy(model)
    layers = [name for name in quantizable_layers(copy) if name not in keep]
    if not layers:
        raise ModelError("no layer is left to quantize", hint="Keep fewer of them, or leave --int8 out.")
    thresholds = dict(thresholds)
    if _feed_pixels(copy, layers, preprocessing):
        thresholds[PIXELS] = float(QMAX)
    read = {node.input[0] for node in copy.graph.node if node.name in layers}
    missing = sorted(read - set(thresholds))
    if missing:
        raise ModelError(f"the measured ranges lack {', '.join(missing)}", hint="Calibrate again.")
    ranges = {name: (np.float32(-thresholds[name]), np.float32(thresholds[name])) for name in read}
    overrides = _narrow_weights(copy.graph, layers) if weight_bits == 7 else {}
    quantizer = quantization.QDQQuantizer(
        copy,
        per_channel=True,
        # Its own 7-bit range is -64 to 64, and some versions apply it to activations as well.
        reduce_range=False,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QInt8,
        tensors_range=quantization.calibrate.TensorsData(quantization.CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=layers,
        nodes_to_exclude=[],
        op_types_to_quantize=list(WEIGHTED_OPS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # TensorRT needs a separate Q/DQ pair for each layer that reads a tensor.
            "DedicatedQDQPair": True,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED_OPS),
            "TensorQuantOverrides": overrides,
        },
    )
    # It logs every layer that it skips.
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quantizer.quantize_model()
    finally:
        logging.root.setLevel(level)
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    del result.opset_import[1:]
    onnx.checker.check_model(result, full_check=True)
    return result


def _narrow_weights(graph: onnx.GraphProto, layers: Collection[str]) -> dict[str, list[dict[str, object]]]:
    """For QDQQuantizer: the scale of each output channel of each layer's weight that maps its largest |w| to 63."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, list[dict[str, object]]] = {}
    for node in graph.node:
        if node.name in layers:
            values = numpy_helper.to_array(weights[node.input[1]])
            # The weight of MatMul, and of Gemm by default, is [inputs, outputs].
            axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else values.ndim - 1
            largest = np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).max(axis=1)
            scales = np.where(largest > 0, largest / _QMAX_7_BITS, 1).astype(np.float32)
            found[node.input[1]] = [{"axis": axis, "scale": scale, "zero_point": np.int8(0)} for scale in scales]
    return found


def _feed_pixels(model: onnx.ModelProto, layers: Collection[str], steps: Preprocessing) -> bool:
    """Fold the preprocessing into the first layer's weights, in place, so that it reads pixels; false if impossible.

    Without padding, and with x = (p scale - mean) / std,

        sum(w x) = sum(w scale / std (p - 128)) + sum(w (128 scale - mean) / std)

    so the layer reads p - 128, which INT8 represents exactly, and the last term goes into its bias.
    """
    graph = model.graph
    name = graph.input[0].name
    readers = [node for node in graph.node if name in node.input]
    if steps.mean_image is not None or len(readers) != 1 or readers[0].name not in layers:
        return False
    conv = readers[0]
    if conv.op_type != "Conv" or has_padding(conv):
        return False
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if weights[conv.input[1]].dims[1] != 3:
        return False
    # In float64, so that the only rounding is that of the new weights.
    weight = numpy_helper.to_array(weights[conv.input[1]]).astype(np.float64)
    bias = numpy_helper.to_array(weights[conv.input[2]]).astype(np.float64) if len(conv.input) > 2 else 0.0
    mean, std = (np.array(value, np.float64).reshape(1, 3, 1, 1) for value in (steps.mean, steps.std))
    shift = (_PIXEL_OFFSET * steps.scale - mean) / std
    _replace(graph, conv, 1, f"{PIXELS}.weight", weight * (steps.scale / std))
    _replace(graph, conv, 2, f"{PIXELS}.bias", bias + (weight * shift).sum(axis=(1, 2, 3)))
    conv.input[0] = PIXELS
    before = [
        helper.make_node("Mul", [name, _constant(graph, f"{PIXELS}.factor", std / steps.scale)], [f"{PIXELS}_scaled"]),
        helper.make_node(
            "Add",
            [f"{PIXELS}_scaled", _constant(graph, f"{PIXELS}.offset", mean / steps.scale - _PIXEL_OFFSET)],
            [PIXELS],
        ),
    ]
    for node in before:
        node.name = node.output[0]
    set_nodes(graph, [*before, *graph.node])
    return True


def _replace(graph: onnx.GraphProto, node: NodeProto, index: int, name: str, value: NDArray[np.float64]) -> None:
    """Replace a weight of a node; the old one is removed if nothing else reads it."""
    old = node.input[index] if index < len(node.input) else None
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = _constant(graph, name, value)
    if old and not any(old in other.input for other in graph.node):
        graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == old))


def _constant(graph: onnx.GraphProto, name: str, value: NDArray[np.float64]) -> str:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
    return name
