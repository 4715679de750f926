"""Parts of the deployment graph on networks of a few nodes, compared with NumPy: quantized inputs, cuts, refusals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from alexdeploy.core.errors import ModelError
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.graphs.deployment import PIXELS, check_network, deployment_graph, describe_value
from alexdeploy.graphs.features import Cut
from alexdeploy.images.crops import cut_views

STEPS = Preprocessing(mean=(100.0, 110.0, 120.0), std=(2.0, 4.0, 5.0), crop=200)
SPEC = ModelSpec(name="t", classes=("a", "b", "c"), preprocessing=STEPS)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)


def network(
    nodes: Sequence[NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    inputs: Sequence[ValueInfoProto] | None = None,
    outputs: Sequence[ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    """A network `x` -> `y`: float32 [N, 3, 200, 200] -> [N, 3]."""
    graph = helper.make_graph(
        list(nodes),
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 200, 200])] if inputs is None else inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])] if outputs is None else outputs,
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": IMAGES})


def mean_of_channels(source: str) -> NodeProto:
    return helper.make_node("ReduceMean", [source], ["y"], axes=[2, 3], keepdims=0)


def normalized_views(num_views: int) -> np.ndarray:
    """float64 [N, V, 3, 200, 200]."""
    steps = (IMAGES.astype(np.float64) - STEPS.mean) / STEPS.std
    return np.stack([cut_views(image, 200, num_views).transpose(0, 3, 1, 2) for image in steps])


def mean_softmax(views: np.ndarray) -> np.ndarray:
    """From [N, V, 3, H, W]: the network's logits are the means of the channels."""
    powers = np.exp(views.mean(axis=(3, 4)))
    return (powers / powers.sum(axis=2, keepdims=True)).mean(axis=1)


def quantized(scale: np.ndarray, **attributes: int) -> onnx.ModelProto:
    """A network that rounds its input to steps of `scale`, from -127 to 127 of them."""
    constants = {"scale": scale.astype(np.float32), "zero": np.zeros(scale.shape, np.int8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "q", **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "d", **attributes),
        mean_of_channels("d"),
    ]
    return network(nodes, constants)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_pixel_is_quantized_once_and_then_cut_as_if_it_had_been_cut_first(channels_last: bool) -> None:
    scale = np.array(0.75)
    deployed = deployment_graph(quantized(scale), SPEC, 10, channels_last=channels_last)
    rounded = np.clip(np.rint(normalized_views(10) / 0.75), -128, 127) * 0.75
    np.testing.assert_allclose(run(deployed)[0], mean_softmax(rounded), atol=1e-5)
    ops = [node.op_type for node in deployed.graph.node]
    # The other order would quantize each of ten views, 6.1 times as many pixels.
    assert ops.index("QuantizeLinear") < ops.index("Slice")
    assert ops.count("QuantizeLinear") == ops.count("DequantizeLinear") == 1
    # OpenVINO wants the DequantizeLinear next to the convolution in the layout that it reads.
    assert (ops.index("DequantizeLinear") < ops.index("Transpose")) == channels_last


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("axis", [1, -3])
def test_scales_along_an_axis_stay_at_their_axis(channels_last: bool, axis: int) -> None:
    scale = np.array([0.5, 0.75, 1.0])
    deployed = deployment_graph(quantized(scale, axis=axis), SPEC, 5, channels_last=channels_last)
    steps = scale.reshape(3, 1, 1)
    rounded = np.clip(np.rint(normalized_views(5) / steps), -128, 127) * steps
    np.testing.assert_allclose(run(deployed)[0], mean_softmax(rounded), atol=1e-5)
    ops = [node.op_type for node in deployed.graph.node]
    assert ops.index("Slice") < ops.index("QuantizeLinear")


def test_an_input_that_two_nodes_read_is_not_quantized_for_both() -> None:
    model = quantized(np.array(64.0))
    model.graph.node[-1].output[0] = "coarse"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["x"], ["fine"], axes=[2, 3], keepdims=0),
            helper.make_node("Sub", ["fine", "coarse"], ["y"]),
        ]
    )
    views = normalized_views(1)
    errors = views - np.clip(np.rint(views / 64), -128, 127) * 64
    np.testing.assert_allclose(run(deployment_graph(model, SPEC, 1))[0], mean_softmax(errors), atol=1e-4)


def test_a_network_that_undoes_the_preprocessing_gets_the_pixels_less_128() -> None:
    factor = np.array(STEPS.std, np.float32).reshape(1, 3, 1, 1)
    offset = (np.array(STEPS.mean, np.float32) - 128).reshape(1, 3, 1, 1)
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["scaled"], "scaled"),
        helper.make_node("Add", ["scaled", "offset"], [PIXELS], PIXELS),
        helper.make_node("QuantizeLinear", [PIXELS, "one", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"], "d"),
        helper.make_node("Mul", ["d", "hundredth"], ["small"]),
        mean_of_channels("small"),
    ]
    constants = {
        "factor": factor,
        "offset": offset,
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.int8),
        "hundredth": np.array(0.01, np.float32),
    }
    for channels_last in (False, True):
        deployed = deployment_graph(network(nodes, constants), SPEC, 5, channels_last=channels_last)
        pixels = np.stack([cut_views(image, 200, 5).transpose(0, 3, 1, 2) for image in IMAGES]).astype(np.float64)
        np.testing.assert_allclose(run(deployed)[0], mean_softmax((pixels - 128) * 0.01), atol=1e-6)
        assert not {"factor", "offset"} & {tensor.name for tensor in deployed.graph.initializer}
        assert "Div" not in [node.op_type for node in deployed.graph.node]


@pytest.mark.parametrize("num_views", [1, 10])
def test_cut_at_a_layer_the_graph_gives_the_mean_of_its_values_over_the_views(num_views: int) -> None:
    half = helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16)
    pooled = helper.make_node("MaxPool", ["half"], ["pooled"], kernel_shape=[50, 100], strides=[50, 100])
    wide = helper.make_node("Cast", ["pooled"], ["wide"], to=TensorProto.FLOAT)
    deployed = deployment_graph(
        network([half, pooled, wide, mean_of_channels("wide")]),
        SPEC,
        num_views,
        cut=Cut(tensor="pooled", shape=(3, 4, 2)),
    )
    (output,) = deployed.graph.output
    assert (output.name, describe_value(output)) == ("features", "float32 [N, 24]")
    (found,) = run(deployed)
    largest = normalized_views(num_views).reshape(2, num_views, 3, 4, 50, 2, 100).max(axis=(4, 6))
    # float16 has 11 bits, and the largest value is below 64.
    np.testing.assert_allclose(found, largest.mean(axis=1).reshape(2, 24), atol=64 * 2.0**-11)
    assert "Softmax" not in [node.op_type for node in deployed.graph.node]


def test_the_input_itself_can_be_the_layer() -> None:
    deployed = deployment_graph(network([mean_of_channels("x")]), SPEC, 1, cut=Cut(tensor="x", shape=(3, 200, 200)))
    (found,) = run(deployed)
    np.testing.assert_allclose(found, normalized_views(1).reshape(2, -1), atol=1e-4)


def value(name: str, kind: int, *shape: str | int | None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([], None, "0 inputs and 1 outputs"),
        (None, [value("y", 1, "N", 3), value("z", 1, "N", 3)], "1 inputs and 2 outputs"),
        ([value("x", 11, "N", 3, 200, 200)], None, r"x is float64 \[N, 3, 200, 200\], expected float32 \[N, 3, 200, 2"),
        (
            [value("x", 1, 1, 3, 200, 200)],
            None,
            r"x is float32 \[1, 3, 200, 200\], expected float32 \[N, 3, 200, 200\]",
        ),
        ([value("x", 1, "N", 3, 200)], None, r"x is float32 \[N, 3, 200\], expected"),
        (
            [value("x", 1, "N", 3, 200, 227)],
            None,
            r"x is float32 \[N, 3, 200, 227\], spec expects float32 \[N, 3, 200,",
        ),
        (None, [value("y", 1, "N", 4)], r"y is float32 \[N, 4\], spec expects float32 \[N, 3\]"),
        (None, [value("y", 1, "N", 3, 1)], r"y is float32 \[N, 3, 1\], expected float32 \[N, 3\]"),
    ],
)
def test_a_network_of_another_form_is_refused_with_what_it_has(
    inputs: list[ValueInfoProto] | None, outputs: list[ValueInfoProto] | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_network(network([mean_of_channels("x")], inputs=inputs, outputs=outputs), SPEC)


def test_sizes_that_a_graph_leaves_open_are_accepted_and_so_are_weights_among_its_inputs() -> None:
    # ONNX before IR version 4 lists the weights among the inputs.
    open_sizes = [value("x", 1, "N", 3, "H", None), value("w", 1, 3)]
    check_network(network([mean_of_channels("x")], {"w": np.ones(3, np.float32)}, inputs=open_sizes), SPEC)
    assert [describe_value(each) for each in open_sizes] == ["float32 [N, 3, H, ?]", "float32 [3]"]
    assert describe_value(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)) == "sequence_type"
