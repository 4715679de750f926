from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.graphs.deployment import VIEWS, deployment_graph
from alexdeploy.images.crops import cut_views
from alexdeploy.network import reference
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights


def _run(model: onnx.ModelProto, images: np.ndarray, *outputs: str) -> list[np.ndarray]:
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    known = [value.name for value in probed.graph.output]
    probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs) or None, {"images": images})


def _random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)


def _tiny_network(size: int) -> onnx.ModelProto:
    """Logits = the mean of each channel: enough to look at the views."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("num_views", [1, 5, 10])
@pytest.mark.parametrize("size", [227, 224, 256])
def test_the_views_are_bitwise_those_of_the_numpy_reference(num_views: int, size: int, channels_last: bool) -> None:
    spec = ModelSpec(name="t", classes=("a", "b", "c"), preprocessing=Preprocessing(crop=size))
    images = _random_images(3)
    model = deployment_graph(_tiny_network(size), spec, num_views, channels_last=channels_last)
    (views,) = _run(model, images, VIEWS)
    by_view = views.reshape(num_views, 3, 3, size, size)
    for index, image in enumerate(images):
        expected = cut_views(image, size, num_views).transpose(0, 3, 1, 2).astype(np.float32)
        np.testing.assert_array_equal(by_view[:, index], expected)


def test_channel_order_scale_mean_and_std_are_applied_as_the_spec_says() -> None:
    steps = Preprocessing(channels="bgr", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), crop=224)
    spec = ModelSpec(name="t", classes=("a", "b", "c"), preprocessing=steps)
    images = _random_images(2)
    (views,) = _run(deployment_graph(_tiny_network(224), spec, 1), images, VIEWS)
    blue_first = images[:, 16:240, 16:240, ::-1].astype(np.float64) / 255
    expected = ((blue_first - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(views, expected, atol=1e-6)


def test_the_mean_image_goes_off_each_pixel_before_the_crop() -> None:
    mean = np.random.default_rng(1).uniform(0, 255, (3, 256, 256)).astype(np.float32)
    spec = ModelSpec(name="t", classes=("a", "b", "c"), preprocessing=Preprocessing(mean_image="0" * 64))
    image = _random_images(1)
    (views,) = _run(deployment_graph(_tiny_network(227), spec, 10, mean), image, VIEWS)
    centered = image[0].astype(np.float32) - mean.transpose(1, 2, 0)
    np.testing.assert_array_equal(views, cut_views(centered, 227, 10).transpose(0, 3, 1, 2))


def test_probabilities_are_the_mean_of_the_views_softmax_and_not_the_softmax_of_their_mean() -> None:
    images = _random_images(2)
    images[:, :128] //= 8
    spec = ModelSpec(name="t", classes=("a", "b", "c"), preprocessing=Preprocessing())
    probabilities, answers = _run(deployment_graph(_tiny_network(227), spec, 10), images)
    for image, found, votes in zip(images, probabilities, answers, strict=True):
        logits = cut_views(image, 227, 10).astype(np.float64).mean(axis=(1, 2))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax = powers / powers.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found, softmax.mean(axis=0), atol=1e-4)
        np.testing.assert_array_equal(votes, logits.argmax(axis=1))


@pytest.mark.parametrize("recipe", ["alexnet", "caffe-alexnet", "torchvision"])
def test_the_whole_graph_equals_float64_from_pixels_to_probabilities(
    exported: Callable[..., ModelFolder], recipe: str
) -> None:
    folder = exported(recipe)
    spec = folder.spec()
    assert spec.architecture is not None
    mean = folder.mean_image(spec)
    plan = plan_layers(spec.architecture, spec.num_classes)
    image = _random_images(1)
    (found, _) = _run(deployment_graph(onnx.load(folder.onnx_path()), spec, 10, mean), image)
    steps = spec.preprocessing
    pixels = image[0].astype(np.float64)[..., :: -1 if steps.channels == "bgr" else 1] * steps.scale
    pixels = (pixels - (np.array(steps.mean) if mean is None else mean.transpose(1, 2, 0))) / steps.std
    views = cut_views(pixels, steps.crop, 10).transpose(0, 3, 1, 2)
    *_, (_, logits) = reference.forward(plan, load_weights(folder.weights_path, plan), views)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found[0], (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0), atol=1e-5)


def test_a_network_whose_tensors_are_called_like_ours_still_works() -> None:
    network = _tiny_network(227)
    for node in network.graph.node:
        node.input[0], node.output[0] = "images", "probabilities"
    network.graph.input[0].name, network.graph.output[0].name = "images", "probabilities"
    spec = ModelSpec(name="t", classes=("a", "b", "c"), preprocessing=Preprocessing())
    probabilities, answers = _run(deployment_graph(network, spec, 5), _random_images(4))
    assert probabilities.shape == (4, 3)
    assert answers.shape == (4, 5)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
def test_it_is_valid_at_every_opset(opset: int) -> None:
    weight = numpy_helper.from_array(np.ones((3, 3, 227, 227), np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Flatten", ["c"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 227, 227])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "conv", inputs, outputs, [weight])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    spec = ModelSpec(name="t", classes=("a", "b", "c"), preprocessing=Preprocessing())
    deployed = deployment_graph(network, spec, 10)
    onnx.checker.check_model(deployed, full_check=True)
    assert _run(deployed, _random_images(2))[0].shape == (2, 3)


def test_a_graph_that_is_not_the_specs_is_refused(tiny_model: ModelFolder) -> None:
    network = onnx.load(tiny_model.onnx_path())
    other = ModelSpec(name="t", classes=("a", "b"), preprocessing=tiny_model.spec().preprocessing)
    with pytest.raises(ModelError, match=r"logits is float32 \[N, 5\], spec expects float32 \[N, 2\]"):
        deployment_graph(network, other, 10, np.zeros((3, 256, 256), np.float32))
    with pytest.raises(UsageError, match="mean image"):
        deployment_graph(network, tiny_model.spec(), 10)
