from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import FIRST_LAYERS, STRIDE_2, TINY, make_model, smooth_images
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision, graph_precision
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.openvino import openvino_graph, unit_lrn_bias
from alexdeploy.images.preprocess import network_input

STRIDE_1 = "architecture.convs=[{channels=64, kernel=5, stride=1, pool=true}, {channels=64, kernel=3, pool=true}]"


def _run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def _graphs(folder: ModelFolder, precision: Precision, num_views: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The deployment graph, and OpenVINO's form of it."""
    spec, mean_image = folder.spec(), folder.mean_image(folder.spec())
    network = onnx.load(folder.onnx_path(graph_precision(precision)))
    other = onnx.load(folder.onnx_path(graph_precision(precision)))
    return (
        deployment_graph(network, spec, num_views, mean_image),
        openvino_graph(other, spec, precision, num_views, mean_image),
    )


def _first_convolution(model: onnx.ModelProto) -> tuple[list[int], dict[str, list[int]]]:
    """The shape of its weights, and its attributes."""
    conv: NodeProto = next(node for node in model.graph.node if node.op_type == "Conv")
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    name = source.get(conv.input[1], conv.input[1])
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return list(weights.dims), {attribute.name: list(attribute.ints) for attribute in conv.attribute}


@pytest.mark.parametrize("num_views", [1, 10])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_it_gives_the_answers_of_the_deployment_graph(
    int8_model: ModelFolder, precision: Precision, num_views: int
) -> None:
    if precision == "fp16":
        export_model(int8_model, ExportOptions(fp16=True))
    images = smooth_images(4)
    expected, found = (_run(model, images) for model in _graphs(int8_model, precision, num_views))
    # INT8: the same whole numbers, added in another order after they were scaled. FP16: as in test_unroll_towers.py.
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3 if precision in ("int8", "fp16") else 1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [*FIRST_LAYERS, ("torchvision", (STRIDE_1,))],
)
def test_every_kind_of_preprocessing_and_first_layer_keeps_its_answers(
    exported: Callable[..., ModelFolder], recipe: str, overrides: tuple[str, ...]
) -> None:
    folder, images = exported(recipe, *overrides), smooth_images(3)
    expected, found = (_run(model, images) for model in _graphs(folder, "bf16", 10))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_eleven_columns_of_three_channels_become_three_of_twelve(tiny_model: ModelFolder) -> None:
    _, folded = _graphs(tiny_model, "bf16", 10)
    shape, attributes = _first_convolution(folded)
    assert shape[1:] == [12, 11, 3]
    assert attributes["strides"] == [4, 1]
    # Optional, and not written by the exporter of PyTorch 2.10.
    assert attributes.get("kernel_shape", [11, 3]) == [11, 3]


def test_seven_columns_at_a_stride_of_two_become_four_of_six_channels(exported: Callable[..., ModelFolder]) -> None:
    shape, attributes = _first_convolution(_graphs(exported("torchvision", STRIDE_2), "bf16", 1)[1])
    assert shape[1:] == [6, 7, 4]
    assert attributes["strides"] == [2, 1]


def test_a_first_layer_that_pads_stays_as_it_is(exported: Callable[..., ModelFolder]) -> None:
    shape, attributes = _first_convolution(_graphs(exported("torchvision"), "bf16", 10)[1])
    assert (shape[1:], attributes["strides"]) == ([3, 11, 11], [4, 4])


def test_fp32_takes_three_channels_as_they_are(tiny_model: ModelFolder) -> None:
    shape, attributes = _first_convolution(_graphs(tiny_model, "fp32", 10)[1])
    assert (shape[1:], attributes["strides"]) == ([3, 11, 11], [4, 4])


def _network(nodes: Sequence[NodeProto], opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """`nodes` from `x`, float32 [N, 3, 224, 224], to `y`, then the means of three maps as logits."""
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("GlobalAveragePool", ["y"], ["means"]),
            helper.make_node("Flatten", ["means"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _conv(*inputs: str, output: str = "y") -> NodeProto:
    return helper.make_node("Conv", inputs, [output], strides=[2, 2], kernel_shape=[3, 3])


def _quantized(*inputs: str, output: str, **attributes: int) -> list[NodeProto]:
    """Quantize `inputs[0]` to `output`, and dequantize it again, with the scale and zero point after it."""
    return [
        helper.make_node("QuantizeLinear", inputs, [f"{output}_int8"], **attributes),
        helper.make_node("DequantizeLinear", [f"{output}_int8", *inputs[1:]], [output], **attributes),
    ]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A spec of three classes, one crop of 224 x 224, a mean for each channel and RGB."""
    return make_model(tmp_path_factory.mktemp("plain") / "model", "torchvision", TINY, num_classes=3)


def _answers(folder: ModelFolder, network: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray, onnx.ModelProto]:
    """Probabilities by the plain network on the center view, by OpenVINO's form of it, and that form."""
    spec, images = folder.spec(), smooth_images(2)
    views = np.concatenate([network_input(image, spec.preprocessing, 1) for image in images])
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"x": views})[0]
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    model = openvino_graph(network, spec, "int8", 1, None)
    return weights / weights.sum(axis=1, keepdims=True), _run(model, images)[0], model


W = np.random.default_rng(0).normal(0, 0.3, (3, 3, 3, 3)).astype(np.float32)
W_INT8 = np.random.default_rng(0).integers(-127, 128, (3, 3, 3, 3), dtype=np.int8)
ZERO = np.array(0, np.int8)


def test_weights_that_a_second_layer_reads_stay_as_they_are_for_that_one(plain: ModelFolder) -> None:
    nodes = [_conv("x", "w", output="a"), helper.make_node("Relu", ["a"], ["b"]), _conv("b", "w")]
    expected, found, model = _answers(plain, _network(nodes, w=W))
    assert _first_convolution(model)[0] == [3, 6, 3, 2]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_int8_weights_that_a_second_layer_reads_stay_as_they_are_for_that_one(plain: ModelFolder) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w8", "scale"], ["w"]),
        _conv("x", "w", output="a"),
        helper.make_node("Relu", ["a"], ["b"]),
        _conv("b", "w"),
    ]
    expected, found, model = _answers(plain, _network(nodes, w8=W_INT8, scale=np.array(0.003, np.float32)))
    assert _first_convolution(model)[0] == [3, 6, 3, 2]
    np.testing.assert_allclose(found, expected, atol=1e-5)


SCALES = np.array([0.001, 0.002, 0.004], np.float32)


BLOCKS = pytest.mark.skipif(
    onnxruntime.__version__.startswith("1.18."), reason="ONNX Runtime 1.18 has no scales of blocks"
)


@pytest.mark.parametrize(
    ("inputs", "attributes", "opset", "is_folded"),
    [
        (("w8", "scales"), {"axis": 0}, 17, True),
        (("w8", "scales", "zeros"), {"axis": 0}, 17, True),
        (("w8", "scales", ""), {"axis": 0}, 17, True),
        # By input channels, which is also what holds where nothing is said; and by blocks of columns.
        (("w8", "scales"), {"axis": 1}, 17, False),
        (("w8", "scales"), {}, 17, False),
        (("w8", "scales", "shifts"), {"axis": 0}, 17, False),
        (("w8", "scales", "computed"), {"axis": 0}, 17, False),
        (("w8", "computed_scales"), {"axis": 0}, 17, False),
        pytest.param(("w8", "blocks"), {"axis": 3, "block_size": 3}, 21, False, marks=BLOCKS),
        pytest.param(("w8", "blocks"), {"axis": 0, "block_size": 3}, 21, False, marks=BLOCKS),
    ],
)
def test_int8_weights_are_folded_only_where_each_map_has_one_scale_and_no_shift(
    plain: ModelFolder, inputs: tuple[str, ...], attributes: dict[str, int], opset: int, is_folded: bool
) -> None:
    nodes = [
        helper.make_node("Identity", ["zeros"], ["computed"]),
        helper.make_node("Identity", ["scales"], ["computed_scales"]),
        helper.make_node("DequantizeLinear", inputs, ["w"], **attributes),
        _conv("x", "w"),
    ]
    blocks = np.full((3, 3, 3, 1) if attributes.get("axis") == 3 else (1, 3, 3, 3), 0.002, np.float32)
    zeros = np.zeros(3, np.int8)
    network = _network(nodes, opset, w8=W_INT8, scales=SCALES, zeros=zeros, shifts=zeros + np.int8(3), blocks=blocks)
    expected, found, model = _answers(plain, network)
    assert _first_convolution(model)[0] == ([3, 6, 3, 2] if is_folded else [3, 3, 3, 3])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def _moved(model: onnx.ModelProto) -> bool:
    """Whether pixels are quantized before the views are cut."""
    return any("deploy/quantized" in node.output for node in model.graph.node)


@pytest.mark.parametrize(
    ("pixels", "attributes", "is_moved"),
    [
        (("x", "scale", "zero"), {}, True),
        (("x", "scale", "shift"), {}, True),
        # A scale for each column, which is another column in the photograph; and one whose type nothing tells.
        (("x", "by_column", "zeros"), {"axis": 3}, False),
        (("x", "scale"), {}, False),
    ],
)
def test_pixels_are_quantized_before_the_cut_only_where_one_scale_holds_for_all(
    plain: ModelFolder, pixels: tuple[str, ...], attributes: dict[str, int], is_moved: bool
) -> None:
    nodes = [*_quantized(*pixels, output="q", **attributes), _conv("q", "w")]
    constants = {
        "scale": np.array(0.02, np.float32),
        "zero": ZERO,
        "shift": np.array(5, np.int8),
        "by_column": np.linspace(0.01, 0.05, 224, dtype=np.float32),
        "zeros": np.zeros(224, np.int8),
    }
    expected, found, model = _answers(plain, _network(nodes, w=W, **constants))
    assert _moved(model) == is_moved
    # A pixel halfway between two values may be rounded to either.
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("k", [0.5, 1.5])
def test_an_lrn_whose_k_is_no_whole_number_gives_the_same_with_k_1(opset: int, k: float) -> None:
    node = helper.make_node("LRN", ["images"], ["out"], size=3, alpha=0.3, beta=0.75, bias=k)
    graph = helper.make_graph(
        [node],
        "lrn",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, 5, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 5, 4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    images = np.random.default_rng(0).normal(0, 3, (2, 5, 4, 4)).astype(np.float32)
    # By hand, in float64: over the channel, the one before and the one after.
    squares = np.pad(np.square(images.astype(np.float64)), ((0, 0), (1, 1), (0, 0), (0, 0)))
    sums = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
    expected = images / (k + 0.3 / 3 * sums) ** 0.75
    changed = unit_lrn_bias(model)
    lrn = next(node for node in changed.graph.node if node.op_type == "LRN")
    assert {each.name: each.f for each in lrn.attribute}["bias"] == 1.0
    np.testing.assert_allclose(_run(changed, images)[0], expected, rtol=1e-5)
