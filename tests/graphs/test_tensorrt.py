"""What TensorRT is given has the answers of the deployment graph, which ONNX Runtime runs for both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import smooth_images
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.graphs.deployment import PREFIX, VIEWS, deployment_graph
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.tensorrt import engine_graph, opset_for

Make = Callable[[str, int, int], tuple[onnx.ModelProto, onnx.ModelProto]]


@pytest.fixture
def make(int8_model: ModelFolder) -> Make:
    """(precision, views, opset) -> the deployment graph and the one for TensorRT."""

    def both(precision: str, num_views: int, opset: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        return _both(int8_model, precision, num_views, opset)

    return both


def _both(folder: ModelFolder, precision: str, num_views: int, opset: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    spec = folder.spec()
    network, mean = load_graph(folder, precision, spec).model, folder.mean_image(spec)
    return deployment_graph(network, spec, num_views, mean), engine_graph(network, spec, num_views, mean, opset)


TOLERANCE = {"fp32": 1e-6, "fp16": 5e-4, "int8": 1e-6}
"""Of probabilities. On the CPU ONNX Runtime computes FP16 in FP32 and rounds where it likes."""


def _run(model: onnx.ModelProto, images: np.ndarray, *outputs: str) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    # As written: fused integer kernels round differently from Q and DQ around a float one.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(outputs) or ["probabilities", "view_classes"], {"images": images})


@pytest.mark.parametrize("opset", [17, 19])
@pytest.mark.parametrize("num_views", [1, 10])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_gives_the_answers_of_the_deployment_graph(make: Make, precision: str, num_views: int, opset: int) -> None:
    deployed, typed = make(precision, num_views, opset)
    onnx.checker.check_model(typed, full_check=True)
    images = smooth_images(6)
    expected, found = _run(deployed, images), _run(typed, images)
    assert len(set(expected[0].argmax(axis=1))) > 1
    np.testing.assert_allclose(found[0], expected[0], atol=TOLERANCE[precision])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("opset", [17, 19])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_it_is_of_the_opset_that_was_asked_for(make: Make, precision: str, opset: int) -> None:
    _, typed = make(precision, 10, opset)
    assert [(entry.domain, entry.version) for entry in typed.opset_import] == [("", opset)]
    assert typed.ir_version >= (9 if opset == 19 else 8)


def test_tensorrt_8_is_given_opset_17_and_later_ones_opset_19() -> None:
    assert [opset_for(major) for major in (8, 10, 11)] == [17, 19, 19]


@pytest.mark.parametrize("recipe", ["caffe-alexnet", "torchvision"])
@pytest.mark.parametrize("opset", [17, 19])
def test_other_recipes_too(exported: Callable[..., ModelFolder], recipe: str, opset: int) -> None:
    deployed, typed = _both(exported(recipe, fp16=True), "fp16", 10, opset)
    found, expected = _run(typed, smooth_images(3))[0], _run(deployed, smooth_images(3))[0]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE["fp16"])


@pytest.mark.parametrize("opset", [17, 19])
def test_every_lrn_computes_in_fp32(make: Make, opset: int) -> None:
    for precision in ("fp16", "int8"):
        typed = make(precision, 1, opset)[1]
        types = _types(typed)
        norms = [node for node in typed.graph.node if node.op_type == "LRN"]
        assert len(norms) == 2
        assert {types[name] for node in norms for name in (*node.input, *node.output)} == {TensorProto.FLOAT}


@pytest.mark.parametrize("opset", [17, 19])
def test_the_fp16_graph_computes_its_convolutions_and_products_in_fp16(make: Make, opset: int) -> None:
    typed = make("fp16", 1, opset)[1]
    types = _types(typed)
    heavy = [node for node in typed.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(heavy) == 8
    assert {types[name] for node in heavy for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}


def test_nothing_but_quantized_layers_sees_int8(make: Make) -> None:
    typed = make("int8", 10, 19)[1]
    types = _types(typed)
    for node in typed.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert TensorProto.INT8 not in {types[name] for name in (*node.input, *node.output)}, node.name


def test_the_views_are_quantized_in_front_of_the_first_layer(make: Make) -> None:
    typed = make("int8", 10, 19)[1]
    readers = [node.op_type for node in typed.graph.node if VIEWS in node.input]
    assert readers == ["QuantizeLinear"]


def test_pixels_are_rounded_to_fp16_before_the_views_are_cut(make: Make) -> None:
    deployed, typed = make("fp16", 10, 19)
    assert _types(deployed)[VIEWS] == TensorProto.FLOAT
    assert _types(typed)[VIEWS] == TensorProto.FLOAT16
    assert len([node for node in typed.graph.node if node.output[0] == PREFIX + "rounded"]) == 1
    images = smooth_images(3)
    (before,), (after,) = _run(deployed, images, VIEWS), _run(typed, images, VIEWS)
    np.testing.assert_array_equal(after, before.astype(np.float16))


def test_weights_for_tensorrt_8_are_fp32_and_quantize_to_those_of_the_file(make: Make) -> None:
    old, new = make("int8", 1, 17)[1], make("int8", 1, 19)[1]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in old.graph.initializer}
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in new.graph.initializer}
    names = [name for name in kept if name.endswith("weight_quantized")]
    assert len(names) == 8
    assert all(kept[name].dtype == np.int8 and tensors[name].dtype == np.float32 for name in names)
    pairs = {node.input[0]: node for node in old.graph.node if node.op_type == "QuantizeLinear"}
    for name in names:
        scale = tensors[pairs[name].input[1]]
        shape = (-1, *[1] * (kept[name].ndim - 1))
        np.testing.assert_array_equal(np.rint(tensors[name] / scale.reshape(shape)), kept[name])


def test_zero_points_are_there_and_zero(make: Make) -> None:
    typed = make("int8", 1, 17)[1]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in typed.graph.initializer}
    pairs = [node for node in typed.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = tensors[node.input[2]]
        assert zero.dtype == np.int8
        assert zero.shape == tensors[node.input[1]].shape
        assert not zero.any()


def test_the_network_itself_is_left_as_it_was(int8_model: ModelFolder) -> None:
    spec = int8_model.spec()
    network = load_graph(int8_model, "int8", spec).model
    before = network.SerializeToString(deterministic=True)
    engine_graph(network, spec, 10, int8_model.mean_image(spec), 17)
    assert network.SerializeToString(deterministic=True) == before


def test_a_graph_that_is_too_new_for_tensorrt_8_is_a_model_error(int8_model: ModelFolder) -> None:
    spec = int8_model.spec()
    network = load_graph(int8_model, "fp32", spec).model
    network.opset_import[0].version = 20
    mean = int8_model.mean_image(spec)
    with pytest.raises(ModelError, match="opset 20, this TensorRT supports at most 17") as caught:
        engine_graph(network, spec, 1, mean, 17)
    assert caught.value.hint is not None
    assert engine_graph(network, spec, 1, mean, 19).opset_import[0].version == 20


def test_a_graph_that_cannot_be_converted_is_a_model_error(int8_model: ModelFolder) -> None:
    spec = int8_model.spec()
    network = load_graph(int8_model, "fp32", spec).model
    name = network.graph.node[0].output[0]
    for node in network.graph.node:
        node.input[:] = ["odd" if each == name else each for each in node.input]
    network.graph.node.insert(1, helper.make_node("NoSuchOperator", [name], ["odd"]))
    with pytest.raises(ModelError, match="from opset 17 to 19"):
        engine_graph(network, spec, 1, None, 19)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in model.graph.initializer}
