"""INT8 activations as unsigned bytes: the same whole numbers, which no processor's sums saturate."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import smooth_images
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.engines.openvino_library import ov
from alexdeploy.graphs.openvino import openvino_graph
from alexdeploy.graphs.unsigned import unsigned_activations


def _graph(folder: ModelFolder, num_views: int, *, unsigned: bool) -> onnx.ModelProto:
    spec = folder.spec()
    network = onnx.load(folder.onnx_path("int8"))
    return openvino_graph(network, spec, "int8", num_views, folder.mean_image(spec), unsigned=unsigned)


def _run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, inputs)[0]


def _zero_points(model: onnx.ModelProto) -> list[tuple[np.dtype, int]]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = [constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return [(value.dtype, int(value)) for value in found]


@pytest.mark.parametrize("num_views", [1, 10])
def test_the_rewritten_graph_gives_the_same_bits(narrow_model: ModelFolder, num_views: int) -> None:
    images = smooth_images(3)
    signed, unsigned = (_graph(narrow_model, num_views, unsigned=each) for each in (False, True))
    onnx.checker.check_model(unsigned, full_check=True)
    np.testing.assert_array_equal(_run(unsigned, images=images), _run(signed, images=images))


def test_what_may_be_negative_is_unsigned_with_128_added_if_its_layer_has_weights_of_7_bits(
    narrow_model: ModelFolder,
) -> None:
    first, *others = _zero_points(_graph(narrow_model, 1, unsigned=True))
    assert first == (np.uint8, 128)
    assert set(others) == {(np.dtype(np.uint8), 0)}


def test_what_may_be_negative_stays_signed_before_weights_of_8_bits(int8_model: ModelFolder) -> None:
    first, *others = _zero_points(_graph(int8_model, 1, unsigned=True))
    assert first == (np.int8, 0)
    assert set(others) == {(np.dtype(np.uint8), 0)}


@pytest.mark.parametrize("before", ["Relu", "Tanh"])
def test_values_above_the_range_are_127_as_they_were(before: str) -> None:
    constants = {
        "scale": np.float32(0.5),
        "zero": np.int8(0),
        "weights": np.full((4, 8), 127, np.int8),
        "scales": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node(before, ["x"], ["before"]),
            helper.make_node("QuantizeLinear", ["before", "scale", "zero"], ["quantized"]),
            helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["dequantized"]),
            helper.make_node("DequantizeLinear", ["weights", "scales", "zeros"], ["factors"], axis=0),
            helper.make_node("Gemm", ["dequantized", "factors"], ["y"], transB=1),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = np.linspace(-200, 200, 80, dtype=np.float32).reshape(10, 8)
    expected = _run(model, x=values)
    if before == "Relu":
        assert expected.max() == 8 * 127 * 127 * 0.5
    unsigned = unsigned_activations(model)
    assert _zero_points(unsigned) == ([(np.uint8, 0)] if before == "Relu" else [(np.int8, 0)])
    np.testing.assert_array_equal(_run(unsigned, x=values), expected)


@pytest.mark.parametrize("num_views", [1, 10])
def test_openvino_gives_the_answers_of_the_graph_with_weights_of_7_bits(
    narrow_model: ModelFolder, num_views: int
) -> None:
    """Without it, on x86 processors without VNNI, the median is off by 0.005 and more.

    The layers are exact, and a value halfway between two may be rounded to either: then an image is off a little.
    """
    images = smooth_images(16, seed=3)
    expected = _run(_graph(narrow_model, num_views, unsigned=False), images=images)
    model = ov.Core().read_model(_graph(narrow_model, num_views, unsigned=True).SerializeToString())
    model.reshape(list(images.shape))
    found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: images})[0]
    errors = np.abs(found - expected).max(axis=1)
    assert np.median(errors) < 2e-3
    assert errors.max() < 0.02
    with open_engine(narrow_model, "openvino", EngineOptions(precision="int8", num_views=num_views)) as engine:  # type: ignore[arg-type]
        rows = np.concatenate([engine.run(images[start : start + 8]).probabilities for start in (0, 8)])
    # bfloat16 between the layers, where the processor has it.
    np.testing.assert_allclose(rows, expected, atol=0.02)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="a question of x86 processors")
def test_a_processor_without_vnni_is_told_by_what_it_computes() -> None:
    code = "from alexdeploy.engines.openvino_library import has_exact_int8; print(has_exact_int8())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
