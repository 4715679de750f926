"""The rules that let TensorRT, ONNX Runtime and OpenVINO all run one INT8 file, and that it computes what it should."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import TINY, assert_int8_agrees, make_model, smooth_images
from onnx import TensorProto, numpy_helper

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.quantize.int8 import quantizable_layers, to_int8
from alexdeploy.export.quantize.quantize import Budget
from alexdeploy.graphs.deployment import PIXELS, deployment_graph
from alexdeploy.graphs.edit import float_layers, weight_bits
from alexdeploy.graphs.freshness import read_metadata
from alexdeploy.graphs.ranges import read_ranges
from alexdeploy.graphs.runner import run_graph
from alexdeploy.images.preprocess import network_input

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def _graph(folder: ModelFolder, precision: str = "int8") -> onnx.ModelProto:
    return onnx.load(folder.onnx_path(precision))


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _maker(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    return next((node for node in model.graph.node if name in node.output), None)


def _thresholds(model: onnx.ModelProto, images: np.ndarray) -> dict[str, float]:
    read = [node.input[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    inside = [name for name in read if name != "images"]
    values = dict(zip(inside, run_graph(model, images, inside), strict=True)) | {"images": images}
    return {name: float(np.abs(value).max()) for name, value in values.items()}


def test_the_file_is_valid_onnx_of_opset_17(int8_model: ModelFolder) -> None:
    model = _graph(int8_model)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]


def test_each_layer_reads_an_int8_activation_of_one_scale_and_int8_weights_of_one_scale_a_channel(
    int8_model: ModelFolder,
) -> None:
    model = _graph(int8_model)
    constants = _constants(model)
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert tuple(node.name for node in layers) == LAYERS
    for node in layers:
        weight = _maker(model, node.input[1])
        assert weight is not None
        assert weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)
        assert next(attribute.i for attribute in weight.attribute if attribute.name == "axis") == 0
        activation = _maker(model, node.input[0])
        assert activation is not None
        assert activation.op_type == "DequantizeLinear"
        quantize = _maker(model, activation.input[0])
        assert quantize is not None
        assert quantize.op_type == "QuantizeLinear"
        assert list(quantize.input[1:]) == list(activation.input[1:])
        assert constants[activation.input[1]].shape == ()
        # A pair of its own, which nothing else reads.
        assert sum(activation.output[0] in other.input for other in model.graph.node) == 1


def test_every_quantization_is_symmetric_with_a_zero_point_that_is_there_and_scales_above_zero(
    int8_model: ModelFolder,
) -> None:
    model = _graph(int8_model)
    constants = _constants(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 3 * len(LAYERS)
    for node in pairs:
        assert len(node.input) == 3
        scale, zero_point = constants[node.input[1]], constants[node.input[2]]
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert zero_point.dtype == np.int8
        assert not zero_point.any()


def test_biases_are_float_and_gemm_keeps_its_factors(int8_model: ModelFolder) -> None:
    model = _graph(int8_model)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert types[node.input[2]] == TensorProto.FLOAT
            assert all(a.f == 1.0 for a in node.attribute if a.name in ("alpha", "beta"))


def test_no_quantization_stands_round_an_lrn_or_at_the_output(int8_model: ModelFolder) -> None:
    model = _graph(int8_model)
    around = {"Reshape", "LRN", "MaxPool", "Relu"}
    norms = [node for node in model.graph.node if node.op_type == "LRN"]
    assert len(norms) == 2
    for norm in norms:
        before = _maker(model, norm.input[0])
        assert before is not None
        assert before.op_type in around
        assert {node.op_type for node in model.graph.node if norm.output[0] in node.input} <= around
    last = _maker(model, model.graph.output[0].name)
    assert last is not None
    assert last.op_type == "Gemm"


def test_the_scales_in_the_graph_are_those_of_the_ranges_file(int8_model: ModelFolder) -> None:
    constants = _constants(_graph(int8_model))
    ranges = read_ranges(int8_model.ranges_path)
    names = [name.removesuffix("_scale") for name in constants if name.endswith("_scale") and "weight" not in name]
    assert len(names) == len(LAYERS)
    for name in names:
        assert constants[f"{name}_scale"] == pytest.approx(ranges.tensors[name].scale, rel=1e-6)


def test_each_weight_is_off_by_at_most_half_a_step_of_its_channel(int8_model: ModelFolder) -> None:
    quantized, original = _constants(_graph(int8_model)), _constants(_graph(int8_model, "fp32"))
    for layer in LAYERS:
        weight = original[f"{layer}.weight"]
        rows = (-1,) + (1,) * (weight.ndim - 1)
        scale = quantized[f"{layer}.weight_scale"].reshape(rows)
        found = quantized[f"{layer}.weight_quantized"] * scale
        assert (np.abs(found - weight) <= 0.5001 * scale).all()
        np.testing.assert_allclose(scale.ravel(), np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127, rtol=1e-5)


def test_7_bit_weights_lie_within_minus_64_and_63_and_are_off_by_at_most_half_a_step(tiny_model: ModelFolder) -> None:
    model, steps = _graph(tiny_model, "fp32"), tiny_model.spec().preprocessing
    inputs = network_input(smooth_images(1)[0], steps, 1, tiny_model.mean_image(tiny_model.spec()))
    quantized = to_int8(model, _thresholds(model, inputs), steps, weight_bits=7)
    constants, original = _constants(quantized), _constants(model)
    for layer in LAYERS:
        values, weight = constants[f"{layer}.weight_quantized"], original[f"{layer}.weight"]
        assert values.dtype == np.int8
        assert -64 <= values.min() <= values.max() <= 63
        scale = constants[f"{layer}.weight_scale"].reshape((-1,) + (1,) * (weight.ndim - 1))
        assert (np.abs(values * scale - weight) <= 0.5001 * scale).all()
        np.testing.assert_allclose(scale.ravel(), np.abs(weight).reshape(len(weight), -1).max(axis=1) / 63, rtol=1e-5)
    # Activations keep all 8 bits.
    eight = _constants(to_int8(model, _thresholds(model, inputs), steps))
    activations = [name for name in eight if name.endswith("_scale") and "weight" not in name]
    assert len(activations) == len(LAYERS)
    assert all(constants[name] == eight[name] for name in activations)
    assert (weight_bits(model), weight_bits(quantized)) == (None, 7)


def test_weights_of_other_than_7_or_8_bits_are_refused() -> None:
    with pytest.raises(UsageError, match="int8_weights is 6; expected 7 or 8"):
        ExportOptions(int8=True, int8_weights=6)  # type: ignore[arg-type]


def test_a_layer_that_is_kept_stays_float_and_the_others_do_not(tiny_model: ModelFolder) -> None:
    model = _graph(tiny_model, "fp32")
    inputs = network_input(
        smooth_images(1)[0], tiny_model.spec().preprocessing, 1, tiny_model.mean_image(tiny_model.spec())
    )
    quantized = to_int8(model, _thresholds(model, inputs), tiny_model.spec().preprocessing, keep=["conv1", "fc7"])
    direct = {
        node.name
        for node in quantized.graph.node
        if node.op_type in ("Conv", "Gemm") and node.input[1].endswith(".weight")
    }
    assert direct == {"conv1", "fc7"}
    assert quantizable_layers(quantized) == ("conv1", "fc7")


@pytest.mark.parametrize("keep", [(), ("conv1", "fc8")])
def test_an_int8_file_says_which_layers_stay_in_float(
    int8_model: ModelFolder, any_drop: None, keep: tuple[str, ...]
) -> None:
    # Without any it was made so.
    if keep:
        export_model(int8_model, ExportOptions(int8=True, budget=Budget(keep=keep)))
    facts = read_metadata(int8_model.onnx_path("int8"))
    assert facts.metadata["alexdeploy.float_layers"] == ",".join(keep)
    assert facts.is_int8_throughout == (not keep)


def test_a_file_without_int8_layers_says_nothing_of_them(tiny_model: ModelFolder) -> None:
    facts = read_metadata(tiny_model.onnx_path())
    assert "alexdeploy.float_layers" not in facts.metadata
    assert not facts.is_int8_throughout


def test_a_layer_whose_weights_alone_are_int8_multiplies_in_float(int8_model: ModelFolder) -> None:
    model = _graph(int8_model)
    assert float_layers(model) == ()
    conv = next(node for node in model.graph.node if node.name == "conv3")
    dequantize = _maker(model, conv.input[0])
    assert dequantize is not None
    quantize = _maker(model, dequantize.input[0])
    assert quantize is not None
    conv.input[0] = quantize.input[0]
    assert float_layers(model) == ("conv3",)


def test_nothing_left_to_quantize_is_an_error(tiny_model: ModelFolder) -> None:
    with pytest.raises(ModelError, match="no layer"):
        to_int8(_graph(tiny_model, "fp32"), {}, tiny_model.spec().preprocessing, keep=LAYERS)


def test_a_tensor_that_was_not_measured_is_named(tiny_model: ModelFolder) -> None:
    steps = tiny_model.spec().preprocessing
    with pytest.raises(ModelError, match="lack images, pool1"):
        to_int8(_graph(tiny_model, "fp32"), {"flatten": 1.0}, steps, keep=["conv3", "conv4", "conv5", "fc7", "fc8"])


@pytest.mark.parametrize(
    "steps",
    [
        Preprocessing(mean=(123.0, 117.5, 104.25)),
        Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255),
        Preprocessing(channels="bgr", mean=(104.0, 117.0, 123.0), std=(64.0, 64.0, 64.0)),
    ],
)
def test_with_a_channel_mean_the_first_layer_reads_the_pixels_without_any_error(
    tiny_model: ModelFolder, steps: Preprocessing
) -> None:
    """INT8 in its input alone: with weights on the INT8 grid, conv1 in INT8 is conv1 in float64 of the photograph."""
    model = _graph(tiny_model, "fp32")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    rng = np.random.default_rng(0)
    # One std for all channels of a weight would be on the grid by itself; undo the factor that goes into the weights.
    factor = np.array(steps.scale, np.float64) / np.array(steps.std).reshape(1, 3, 1, 1)
    grid = rng.integers(-126, 127, tuple(weights.dims)).astype(np.float64)
    grid[:, 0, 0, 0] = 127
    weights.CopyFrom(numpy_helper.from_array((grid * 1e-3 / factor).astype(np.float32), weights.name))
    quantized = to_int8(model, {}, steps, keep=[name for name in LAYERS if name != "conv1"])
    image = smooth_images(1)[0] // 2 + rng.integers(0, 128, (256, 256, 3), dtype=np.uint8)
    inputs = network_input(image, steps, 1)
    (found,) = run_graph(quantized, inputs, ["conv1"])
    (expected,) = run_graph(model, inputs, ["conv1"])
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(np.abs(expected).max()))
    # Quantized by its range instead, the same input is off by far more.
    ranged = to_int8(
        model, {"images": float(np.abs(inputs).max())}, dataclasses.replace(steps, mean_image="x"), LAYERS[1:]
    )
    (coarse,) = run_graph(ranged, inputs, ["conv1"])
    assert np.abs(coarse - expected).max() > 20 * np.abs(found - expected).max()


def test_deployed_the_pixels_go_into_the_first_layer_as_they_are(tmp_path: Path) -> None:
    folder = make_model(
        tmp_path / "channel",
        "torchvision",
        (
            *TINY,
            "architecture.convs=[{channels=64, kernel=11, stride=4, pool=true}, {channels=64, kernel=3, pool=true}]",
        ),
    )
    export_model(folder)
    spec, model = folder.spec(), _graph(folder, "fp32")
    images = smooth_images(3)
    inputs = np.concatenate([network_input(image, spec.preprocessing, 1) for image in images])
    quantized = to_int8(model, _thresholds(model, inputs), spec.preprocessing)
    deployed = deployment_graph(quantized, spec, 10)
    assert not any(PIXELS in node.output for node in deployed.graph.node)
    assert not any(node.op_type in ("Div", "Mul") for node in deployed.graph.node)
    onnx.checker.check_model(deployed, full_check=True)
    session = onnxruntime.InferenceSession(deployed.SerializeToString())
    (found, _) = session.run(None, {"images": images})
    (logits,) = run_graph(quantized, np.concatenate([network_input(i, spec.preprocessing, 10) for i in images]))
    views = np.exp(logits - logits.max(axis=1, keepdims=True))
    views /= views.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, views.reshape(3, 10, -1).mean(axis=1), atol=2e-3)


def test_padding_in_the_first_layer_leaves_its_input_to_the_measured_range(
    exported: Callable[..., ModelFolder],
) -> None:
    folder = exported("torchvision")
    model, steps = _graph(folder, "fp32"), folder.spec().preprocessing
    assert steps.mean_image is None
    inputs = network_input(smooth_images(1)[0], steps, 1)
    quantized = to_int8(model, _thresholds(model, inputs), steps)
    assert not any(PIXELS in node.output for node in quantized.graph.node)


@pytest.mark.parametrize("num_views", [1, 10])
def test_openvino_and_onnx_runtime_agree_on_the_same_file(narrow_model: ModelFolder, num_views: int) -> None:
    """OpenVINO 2026.4 answers wrongly where INT8 branches meet after they are dequantized: see unroll_towers.py."""
    images = smooth_images(16, seed=3)
    answers = []
    for backend, precision in (("onnxruntime", "int8"), ("openvino", "int8"), ("onnxruntime", "fp32")):
        options = EngineOptions(precision=precision, num_views=num_views, batch_size=16)  # type: ignore[arg-type]
        with open_engine(narrow_model, backend, options) as engine:  # type: ignore[arg-type]
            assert engine.info.precision == precision
            answers.append(engine.run(images).probabilities)
    assert_int8_agrees(*answers)
