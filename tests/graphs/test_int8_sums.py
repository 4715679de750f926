"""INT8 products are added exactly: OpenVINO and ONNX Runtime against whole numbers in NumPy, on any processor.

On x86 processors without VNNI two products of an unsigned and a signed byte are added in 16 bits, which end at 32,767.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.spec import Preprocessing
from alexdeploy.engines.onnxruntime import open_session
from alexdeploy.engines.openvino_library import ov
from alexdeploy.export.quantize.int8 import to_int8
from alexdeploy.graphs.edit import WeightBits, weight_bits
from alexdeploy.graphs.runner import GraphRunner

CHANNELS, MAPS, SIZE = 64, 32, 7


def _layer(op: str, weights: np.ndarray, bits: WeightBits) -> onnx.ModelProto:
    """One layer in INT8, as an export makes it, whose input and weights at scale 1 are whole numbers."""
    shape = ["N", CHANNELS, SIZE, SIZE] if op == "Conv" else ["N", CHANNELS]
    attributes = {"kernel_shape": [3, 3]} if op == "Conv" else {"transB": 1}
    bias = np.zeros(MAPS, np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w", "b"], ["y"], name="layer", **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", MAPS, *(["H", "W"] if op == "Conv" else [])])],
        [numpy_helper.from_array(weights.astype(np.float32), "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    # A mean image: then the input has its own scale.
    quantized = to_int8(model, {"x": 127.0}, Preprocessing(mean_image="x"), weight_bits=bits)
    assert weight_bits(quantized) == bits
    return quantized


def _shapes(op: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the weights, and of an input of four images."""
    if op == "Conv":
        return (MAPS, CHANNELS, 3, 3), (4, CHANNELS, SIZE, SIZE)
    return (MAPS, CHANNELS), (4, CHANNELS)


def _exact(op: str, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    values, weights = values.astype(np.int64), weights.astype(np.int64)
    if op == "Gemm":
        return values @ weights.T
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weights)


def _in_openvino(model: onnx.ModelProto, values: np.ndarray) -> np.ndarray:
    core = ov.Core()
    read = core.read_model(model.SerializeToString())
    read.reshape(list(values.shape))
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [
        str(operator.get_rt_info()["runtimePrecision"].astype(str))
        for operator in compiled.get_runtime_model().get_ordered_ops()
        if str(operator.get_rt_info()["layerType"].astype(str)) in ("Convolution", "FullyConnected")
    ]
    # In float the sums would be exact whatever the weights are.
    if "INT8" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert layers == ["u8"] or layers == ["i8"]
    return compiled({0: values})[0]


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_the_largest_products_of_8_bits_are_exact_or_saturated_and_those_of_7_bits_exact(op: str) -> None:
    """All inputs 127. OpenVINO adds 128 to them, and takes 128 times the sum of the weights off the result."""
    weight_shape, shape = _shapes(op)
    products = int(np.prod(weight_shape[1:]))
    values = np.full(shape, 127, np.float32)
    found = _in_openvino(_layer(op, np.full(weight_shape, 127), 8), values)
    exact = products * 127 * 127
    # Two products of 255 and 127 are 64,770.
    saturated = products // 2 * 32_767 - products * 128 * 127
    assert np.unique(found).tolist() in ([exact], [saturated])
    found = _in_openvino(_layer(op, np.full(weight_shape, 63), 7), values)
    assert np.unique(found).tolist() == [products * 127 * 63]


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
@pytest.mark.parametrize("kind", ["largest", "any"])
def test_a_layer_with_7_bit_weights_gives_the_same_whole_numbers_in_every_runtime(op: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    weight_shape, shape = _shapes(op)
    if kind == "largest":
        weights, values = rng.choice([-63, 63], weight_shape), rng.choice([-128, 127], shape)
    else:
        weights, values = rng.integers(-63, 64, weight_shape), rng.integers(-128, 128, shape)
        weights.reshape(MAPS, -1)[:, 0] = 63
    model, images = _layer(op, weights, 7), values.astype(np.float32)
    expected = _exact(op, values, weights)
    np.testing.assert_array_equal(_in_openvino(model, images), expected)
    for optimize in (False, True):
        np.testing.assert_array_equal(GraphRunner(model, optimize=optimize).run(images)["y"], expected)


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_onnx_runtime_adds_products_of_8_bits_exactly_also_where_outputs_are_quantized(op: str) -> None:
    """As in graphs from elsewhere: ONNX Runtime fuses such a layer, and computes it in INT8."""
    weight_shape, shape = _shapes(op)
    rng = np.random.default_rng(0)
    weights = np.full(weight_shape, 127)
    values = 127 - rng.integers(0, 20, shape)
    model = _layer(op, weights, 8)
    expected = _exact(op, values, weights)
    scale = np.float32(expected.max() / 127)
    zero = numpy_helper.from_array(np.int8(0), "zero")
    model.graph.initializer.extend([numpy_helper.from_array(scale, "scale"), zero])
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["probabilities"]),
        ]
    )
    model.graph.output[0].name = "probabilities"
    images = values.astype(np.float32)
    wanted = np.rint(expected / scale) * scale
    for found in (
        GraphRunner(model, optimize=True).run(images)["probabilities"],
        open_session(model.SerializeToString(), "cpu", 1).run(None, {"x": images})[0],
    ):
        # A quotient halfway between two may be rounded to either.
        np.testing.assert_allclose(found, wanted, atol=1.001 * float(scale))
