"""The features of a layer from every backend and precision, against NumPy float64 and the graph that is not cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from helpers import assert_int8_agrees, smooth_images
from safetensors.numpy import load_file

from alexdeploy.core.errors import UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import Backend, EngineOptions, NumViews, open_engine, open_graph
from alexdeploy.graphs.features import layer_tensors
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.runner import GraphRunner
from alexdeploy.images.preprocess import network_input
from alexdeploy.network import reference
from alexdeploy.network.feature_names import feature_layer, feature_name
from alexdeploy.network.layers import plan_layers

BACKENDS: tuple[Backend, ...] = ("openvino", "onnxruntime", "torch")


def _expected(folder: ModelFolder, images: np.ndarray, num_views: int) -> dict[str, np.ndarray]:
    """The mean over the views of every layer of the plan, float64, [N, D]."""
    spec = folder.spec()
    mean = folder.mean_image(spec)
    inputs = np.concatenate([network_input(image, spec.preprocessing, num_views, mean) for image in images])
    plan = plan_layers(spec.architecture, spec.num_classes)
    outputs = reference.forward(plan, load_file(folder.weights_path), inputs)
    return {layer.name: values.reshape(len(images), num_views, -1).mean(axis=1) for layer, values in outputs}


def _features(
    folder: ModelFolder, backend: Backend, images: np.ndarray, layer: str, views: NumViews = 1, precision: str = "fp32"
) -> np.ndarray:
    options = EngineOptions(layer=layer, num_views=views, batch_size=4, precision=precision)
    with open_engine(folder, backend, options) as engine:
        assert engine.info.num_outputs == np.prod(engine.info.feature_shape)
        found = engine.run(images)
    assert found.view_classes.shape == (len(images), 0)
    assert found.probabilities.dtype == np.float32
    return found.probabilities


@pytest.mark.parametrize(
    ("views", "layers"), [(1, ("conv1:pre", "norm1", "conv2", "pool5", "fc7:pre", "fc8")), (10, ("conv1", "fc7"))]
)
def test_every_backend_gives_the_features_of_numpy_in_float64(
    tiny_model: ModelFolder, views: NumViews, layers: tuple[str, ...]
) -> None:
    images = smooth_images(2)
    expected = _expected(tiny_model, images, views)
    for layer in layers:
        reference_values = expected[feature_layer(tiny_model.spec(), layer).name]
        largest = np.abs(reference_values).max()
        for backend in BACKENDS:
            found = _features(tiny_model, backend, images, layer, views)
            assert found.shape == reference_values.shape
            assert np.abs(found - reference_values).max() <= 1e-5 * largest, (backend, layer)


def test_another_architecture_too(exported: Callable[..., ModelFolder]) -> None:
    folder = exported("torchvision")
    images = smooth_images(2)
    expected = _expected(folder, images, 1)
    for layer in ("conv1", "fc7"):
        values = expected[feature_layer(folder.spec(), layer).name]
        for backend in BACKENDS:
            found = _features(folder, backend, images, layer)
            assert np.abs(found - values).max() <= 1e-5 * np.abs(values).max(), (backend, layer)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_fp16_graph_is_cut_as_it_is(tiny_model: ModelFolder, backend: Backend) -> None:
    images = smooth_images(2)
    expected = _expected(tiny_model, images, 5)
    for layer in ("norm1", "fc7"):
        values = expected[feature_layer(tiny_model.spec(), layer).name]
        found = _features(tiny_model, backend, images, layer, 5, "fp16")
        # FP16 has 11 bits, and errors add up over the layers: the tolerance of the export's own check.
        assert 1e-6 < np.abs(found - values).max() / np.abs(values).max() <= 2e-2, layer


def test_an_int8_graph_is_cut_as_it_is(int8_model: ModelFolder) -> None:
    images = smooth_images(4)
    spec = int8_model.spec()
    model = load_graph(int8_model, "int8", spec).model
    tensors = layer_tensors(model, plan_layers(spec.architecture, spec.num_classes))
    inputs = np.concatenate(
        [network_input(image, spec.preprocessing, 1, int8_model.mean_image(spec)) for image in images]
    )
    inside = GraphRunner(model, tensors.values()).run(inputs)
    fp32 = _expected(int8_model, images, 1)
    for layer in ("norm1", "conv2", "pool2", "conv4", "pool5", "fc7"):
        name = feature_layer(spec, layer).name
        expected = inside[tensors[name]].reshape(len(images), -1)
        for backend in ("openvino", "onnxruntime"):
            found = _features(int8_model, backend, images, layer, 1, "int8")
            assert_int8_agrees(found, expected, fp32[name])


def test_a_network_without_a_plan_is_cut_at_a_tensor(tiny_model: ModelFolder) -> None:
    spec = tiny_model.spec()
    graph = load_graph(tiny_model, "fp32", spec)
    bare = type(spec)(name=spec.name, classes=spec.classes, preprocessing=spec.preprocessing)
    images = smooth_images(2)
    mean = tiny_model.mean_image(spec)
    expected = _expected(tiny_model, images, 5)
    for backend in ("openvino", "onnxruntime"):
        options = EngineOptions(layer="relu5", num_views=5, batch_size=2)
        with open_graph(backend, graph, bare, mean, options) as engine:
            assert engine.info.feature_shape == feature_layer(spec, "conv5").output_shape
            found = engine.run(images).probabilities
        assert np.abs(found - expected["relu5"]).max() <= 1e-5 * np.abs(expected["relu5"]).max()
    with pytest.raises(UsageError, match="no tensor is called 'relu9'") as caught:
        open_graph("onnxruntime", graph, bare, mean, EngineOptions(layer="relu9"))
    assert "relu7" in str(caught.value)
    # Two towers folded into the batch are not the values of one image.
    with pytest.raises(UsageError, match="for each image: its shape is"):
        open_graph("onnxruntime", graph, bare, mean, EngineOptions(layer="norm1_split"))
    with pytest.raises(UsageError, match="imported without its architecture"):
        feature_name(bare)


def test_names_of_layers(tiny_model: ModelFolder) -> None:
    spec = tiny_model.spec()
    for name in ("fc7", "relu7", "drop7"):
        assert feature_name(spec, name) == "fc7"
    for name in ("fc7:pre", "fc8", "pool5"):
        assert feature_name(spec, name) == name
    assert feature_name(spec, "fc8:pre") == "fc8"
    assert feature_name(spec) == "fc7"
    assert feature_layer(spec, "conv1").name == "relu1"
    assert feature_layer(spec, "conv1:pre").name == "conv1"
    for wrong in ("fc9", "pool5:pre", ""):
        with pytest.raises(UsageError, match="no layer is called") as caught:
            feature_name(spec, wrong)
        assert "conv1, relu1, norm1, pool1" in str(caught.value)


def test_engine_files_give_no_features(tiny_model: ModelFolder) -> None:
    with pytest.raises(UsageError, match="tensorrt runs engine files, which give probabilities"):
        open_engine(tiny_model, "tensorrt", EngineOptions(layer="fc7"))


def test_the_original_graph_is_not_changed(tiny_model: ModelFolder) -> None:
    before = onnx.load(tiny_model.onnx_path())
    graph = load_graph(tiny_model, "fp32", tiny_model.spec())
    spec = tiny_model.spec()
    open_graph("onnxruntime", graph, spec, tiny_model.mean_image(spec), EngineOptions(layer="conv2"))
    assert graph.model.graph == before.graph
