from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import TINY, make_model, smooth_images
from onnx import NodeProto

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.export.deployment import deployment_graph
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.openvino_graph import openvino_graph

STRIDE_2 = "architecture.convs=[{channels=64, kernel=7, stride=2, pool=true}, {channels=64, kernel=3, pool=true}]"
STRIDE_1 = "architecture.convs=[{channels=64, kernel=5, stride=1, pool=true}, {channels=64, kernel=3, pool=true}]"


def _run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


def _graphs(folder: ModelFolder, precision: Precision, num_views: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The deployment graph, and OpenVINO's form of it."""
    spec, mean_image = folder.spec(), folder.mean_image(folder.spec())
    network = onnx.load(folder.onnx_path("fp32" if precision == "bf16" else precision))
    other = onnx.load(folder.onnx_path("fp32" if precision == "bf16" else precision))
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
    export_model(int8_model, ExportOptions(fp16=True))
    images = smooth_images(4)
    expected, found = (_run(model, images) for model in _graphs(int8_model, precision, num_views))
    # INT8: the same whole numbers, added in another order after they were scaled. FP16: as tests/export/test_towers.py.
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3 if precision in ("int8", "fp16") else 1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("alexnet", ()),
        ("caffenet", ()),
        ("torchvision", ()),
        ("torchvision", (STRIDE_2,)),
        ("torchvision", (STRIDE_1,)),
        ("alexnet", ("preprocessing.channels=bgr",)),
    ],
)
def test_every_kind_of_preprocessing_and_first_layer_keeps_its_answers(
    tmp_path: Path, recipe: str, overrides: tuple[str, ...]
) -> None:
    folder = make_model(tmp_path / "model", recipe, (*TINY, *overrides))
    export_model(folder)
    images = smooth_images(3)
    expected, found = (_run(model, images) for model in _graphs(folder, "bf16", 10))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_eleven_columns_of_three_channels_become_three_of_twelve(tiny_model: ModelFolder) -> None:
    _, folded = _graphs(tiny_model, "bf16", 10)
    shape, attributes = _first_convolution(folded)
    assert shape[1:] == [12, 11, 3]
    assert attributes["strides"] == [4, 1]
    assert attributes["kernel_shape"] == [11, 3]


def test_seven_columns_at_a_stride_of_two_become_four_of_six_channels(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "torchvision", (*TINY, STRIDE_2))
    export_model(folder)
    shape, attributes = _first_convolution(_graphs(folder, "bf16", 1)[1])
    assert shape[1:] == [6, 7, 4]
    assert attributes["strides"] == [2, 1]


def test_a_first_layer_that_pads_stays_as_it_is(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "torchvision", TINY)
    export_model(folder)
    shape, attributes = _first_convolution(_graphs(folder, "bf16", 10)[1])
    assert (shape[1:], attributes["strides"]) == ([3, 11, 11], [4, 4])


def test_fp32_takes_three_channels_as_they_are(tiny_model: ModelFolder) -> None:
    shape, attributes = _first_convolution(_graphs(tiny_model, "fp32", 10)[1])
    assert (shape[1:], attributes["strides"]) == ([3, 11, 11], [4, 4])
