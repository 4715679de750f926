"""A network of three layers in INT8, compared with NumPy on the same steps: scales, channels, what stays in float."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.core.errors import ModelError
from alexdeploy.core.spec import Preprocessing
from alexdeploy.export.quantize.int8 import quantizable_layers, to_int8
from alexdeploy.graphs.deployment import PIXELS
from alexdeploy.graphs.edit import WeightBits
from alexdeploy.graphs.runner import run_graph

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-2, 2, (3, 3, 6, 6)).astype(np.float32)
MEAN_IMAGE = Preprocessing(mean_image="0" * 64)
PER_CHANNEL = Preprocessing(scale=0.5, mean=(50.0, 60.0, 70.0), std=(2.0, 4.0, 8.0))
WEIGHTS = {
    "wc": RNG.normal(0, 1, (4, 3, 3, 3)) * np.array([1, 5, 0.2, 0]).reshape(4, 1, 1, 1),
    "bc": RNG.normal(0, 1, 4),
    "wg": RNG.normal(0, 1, (64, 5)) * np.array([1, 3, 0.1, 1, 2]),
    "bg": RNG.normal(0, 1, 5),
    "wm": RNG.normal(0, 1, (5, 2)) * np.array([1, 10]),
}
THRESHOLDS = {"images": 1.5, "flat": 6.0, "gemm": 20.0}


def network(*, trans_b: bool = False, **changes: object) -> onnx.ModelProto:
    """Conv, Relu, Gemm and MatMul: `images` float32 [N, 3, 6, 6] -> `logits` [N, 2]; `changes` are attributes."""
    nodes = [
        helper.make_node("Conv", ["images", "wc", "bc"], ["conv"], "conv", **changes),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("Flatten", ["relu"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "wg", "bg"], ["gemm"], "gemm", transB=int(trans_b)),
        helper.make_node("MatMul", ["gemm", "wm"], ["logits"], "matmul"),
    ]
    return model_of(nodes, {**WEIGHTS, "wg": WEIGHTS["wg"].T if trans_b else WEIGHTS["wg"]})


def model_of(nodes: list[NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name) for name, value in weights.items()],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def steps_of(values: np.ndarray, scale: np.ndarray | float, largest: int = 127) -> np.ndarray:
    """`values` rounded to steps of a float32 scale."""
    scale = np.asarray(scale, np.float32).astype(np.float64)
    return np.clip(np.rint(values / scale), -largest - 1, largest) * scale


def by_channel(weight: np.ndarray, axis: int, largest: int) -> np.ndarray:
    weight = weight.astype(np.float32).astype(np.float64)
    most = np.abs(weight).max(axis=tuple(each for each in range(weight.ndim) if each != axis), keepdims=True)
    return steps_of(weight, np.where(most > 0, most / largest, 1), largest)


def by_hand(kept: tuple[str, ...] = (), largest: int = 127) -> np.ndarray:
    """The logits in float64 of a network whose layers, but for those `kept`, read inputs and weights in steps."""

    def layer(name: str, reads: str, values: np.ndarray, weight: str, axis: int) -> tuple[np.ndarray, np.ndarray]:
        if name in kept:
            return values, WEIGHTS[weight].astype(np.float32)
        return steps_of(values, THRESHOLDS[reads] / 127), by_channel(WEIGHTS[weight], axis, largest)

    x, weight = layer("conv", "images", IMAGES.astype(np.float64), "wc", 0)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    x = np.einsum("nchwij,ocij->nohw", windows, weight) + WEIGHTS["bc"].reshape(4, 1, 1)
    x, weight = layer("gemm", "flat", np.maximum(x, 0).reshape(3, -1), "wg", 1)
    x, weight = layer("matmul", "gemm", x @ weight + WEIGHTS["bg"], "wm", 1)
    return x @ weight


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("kept", [(), ("gemm",), ("conv", "matmul")])
@pytest.mark.parametrize("bits", [8, 7])
def test_each_layer_multiplies_in_steps_of_its_input_and_of_its_output_channels(
    trans_b: bool, kept: tuple[str, ...], bits: WeightBits
) -> None:
    found = to_int8(network(trans_b=trans_b), THRESHOLDS, MEAN_IMAGE, kept, bits)
    (logits,) = run_graph(found, IMAGES)
    expected = by_hand(kept, {8: 127, 7: 63}[bits])
    # A value within float32's error of the middle of two steps may be rounded to the other one: one step of one input.
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
    # INT8 itself costs far more than this tolerance.
    assert np.abs(by_hand(("conv", "gemm", "matmul")) - expected).max() > 0.05


def test_the_network_given_and_the_level_of_logging_stay_as_they_were() -> None:
    model = network()
    before, level = model.SerializeToString(), logging.root.level
    to_int8(model, THRESHOLDS, PER_CHANNEL)
    assert (model.SerializeToString(), logging.root.level) == (before, level)


def test_only_named_nodes_with_constant_weights_can_be_quantized() -> None:
    model = network()
    assert quantizable_layers(model) == ("conv", "gemm", "matmul")
    model.graph.node[0].name = ""
    product = helper.make_node("MatMul", ["gemm", "gemm"], ["square"], "of two activations")
    model.graph.node.append(product)
    assert quantizable_layers(model) == ("gemm", "matmul")


def pixels_read(model: onnx.ModelProto) -> bool:
    return any(PIXELS in node.output for node in model.graph.node)


def test_the_first_layer_reads_pixels_less_128_with_the_preprocessing_in_its_weights_and_bias() -> None:
    found = to_int8(network(), THRESHOLDS, PER_CHANNEL, keep=("gemm", "matmul"))
    pixels = RNG.integers(0, 256, (3, 3, 6, 6)).astype(np.float64)
    mean, std = (np.array(each).reshape(1, 3, 1, 1) for each in (PER_CHANNEL.mean, PER_CHANNEL.std))
    images = ((pixels * 0.5 - mean) / std).astype(np.float32)
    read, conv = run_graph(found, images, [PIXELS, "conv"])
    np.testing.assert_allclose(read, pixels - 128, atol=1e-4)
    weight = WEIGHTS["wc"].astype(np.float32).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(pixels - 128, (3, 3), axis=(2, 3))
    bias = WEIGHTS["bc"] + (weight * ((64 - mean) / std)).sum(axis=(1, 2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, by_channel(weight * 0.5 / std, 0, 127)) + bias.reshape(4, 1, 1)
    np.testing.assert_allclose(conv, expected, rtol=1e-5, atol=1e-3)
    names = {tensor.name for tensor in found.graph.initializer}
    assert not names & {"wc", "bc"}, "weights that nothing reads"


def test_a_first_layer_without_a_bias_gets_one_that_holds_the_mean() -> None:
    model = network()
    del model.graph.node[0].input[2]
    found = to_int8(model, THRESHOLDS, PER_CHANNEL, keep=("gemm", "matmul"))
    black = np.zeros((1, 3, 6, 6)) - np.array(PER_CHANNEL.mean).reshape(1, 3, 1, 1)
    black = (black / np.array(PER_CHANNEL.std).reshape(1, 3, 1, 1)).astype(np.float32)
    (conv,) = run_graph(found, black, ["conv"])
    expected = (WEIGHTS["wc"] * black[:, :, :3, :3]).sum(axis=(1, 2, 3))
    # All inputs are alike, so the errors of the 27 rounded weights, half a step of 1/127 each, may add up.
    reach = np.abs(WEIGHTS["wc"]).max(axis=(1, 2, 3)) / 254 * np.abs(black[0, :, 0, 0]).max() * 27
    assert np.all(np.abs(conv[0, :, 0, 0] - expected) <= reach + 1e-4)


def test_weights_that_another_layer_reads_as_well_stay_for_it() -> None:
    model = network()
    model.graph.node.append(helper.make_node("Conv", ["relu", "wo", "bc"], ["other"], "other"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "wo"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    found = to_int8(model, THRESHOLDS, PER_CHANNEL, keep=("gemm", "matmul", "other"))
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    np.testing.assert_array_equal(kept["bc"], WEIGHTS["bc"].astype(np.float32))


@pytest.mark.parametrize(
    "changes", [{"pads": [1, 1, 1, 1], "strides": [2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}]
)
def test_a_padded_first_layer_reads_its_measured_range_because_zeros_at_the_border_are_no_pixels(
    changes: dict[str, object],
) -> None:
    nodes = [helper.make_node("Conv", ["images", "wc", "bc"], ["conv"], "conv", **changes)]
    assert not pixels_read(to_int8(model_of(nodes, WEIGHTS), THRESHOLDS, PER_CHANNEL))


def test_other_first_layers_read_their_measured_range() -> None:
    assert pixels_read(to_int8(network(), THRESHOLDS, PER_CHANNEL))
    assert not pixels_read(to_int8(network(), THRESHOLDS, MEAN_IMAGE))
    assert not pixels_read(to_int8(network(), THRESHOLDS, PER_CHANNEL, keep=("conv",)))
    # Two nodes read the images, and only one of them is a layer.
    model = network()
    model.graph.node.append(helper.make_node("GlobalMaxPool", ["images"], ["largest"], "pool"))
    model.graph.output.append(helper.make_tensor_value_info("largest", TensorProto.FLOAT, None))
    assert not pixels_read(to_int8(model, THRESHOLDS, PER_CHANNEL))
    # One channel of the weight for each of three groups.
    grouped = [helper.make_node("Conv", ["images", "wc"], ["conv"], "conv", group=3)]
    weights = {"wc": RNG.normal(0, 1, (6, 1, 3, 3))}
    assert not pixels_read(to_int8(model_of(grouped, weights), THRESHOLDS, PER_CHANNEL))
    product = [helper.make_node("MatMul", ["images", "wm"], ["y"], "matmul")]
    assert not pixels_read(to_int8(model_of(product, {"wm": RNG.normal(0, 1, (6, 2))}), THRESHOLDS, PER_CHANNEL))


def test_ranges_that_are_missing_are_named_in_order() -> None:
    with pytest.raises(ModelError, match="the measured ranges lack flat, images\n") as caught:
        to_int8(network(), {"gemm": 1.0}, MEAN_IMAGE)
    assert caught.value.hint == "Calibrate again."
    # The pixels have a range of their own, and what stays in float needs none.
    to_int8(network(), {"gemm": 1.0}, PER_CHANNEL, keep=("gemm",))
