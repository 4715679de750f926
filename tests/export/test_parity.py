from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from PIL import Image
from safetensors.numpy import load_file, save_file

from alexdeploy.core.errors import ParityError
from alexdeploy.core.events import Status
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export import checked as checked_module
from alexdeploy.export.events import Event
from alexdeploy.export.export import ExportOptions, check_images, export_model
from alexdeploy.export.fp16 import to_fp16
from alexdeploy.export.parity import check_parity, compare_outputs
from alexdeploy.graphs.files import read_graph
from alexdeploy.graphs.runner import run_graph
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights


@pytest.fixture
def checked(tiny_model: ModelFolder):
    spec = tiny_model.spec()
    assert spec.architecture is not None
    plan = plan_layers(spec.architecture, spec.num_classes)
    images = check_images(spec, tiny_model.mean_image(spec), None).inputs
    return onnx.load(tiny_model.onnx_path()), plan, load_weights(tiny_model.weights_path, plan), images


def _change(model: onnx.ModelProto, name: str, factor: float) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))


def test_an_export_agrees_with_float64_to_float32_rounding(checked) -> None:
    parity = check_parity(*checked, "fp32")
    assert 0 < parity.worst_error < 1e-5
    assert parity.same_answers == parity.num_images == 6


@pytest.mark.parametrize("layer", ["conv1", "conv4", "fc8"])
def test_the_first_layer_that_differs_is_named(checked, layer: str) -> None:
    model, plan, weights, images = checked
    _change(model, f"{layer}.weight", 1.001)
    with pytest.raises(ParityError, match=f"{layer} is the first layer that differs: ONNX Runtime"):
        check_parity(model, plan, weights, images, "fp32")


def test_an_lrn_with_the_papers_literal_alpha_is_found(checked) -> None:
    model, plan, weights, images = checked
    node = next(node for node in model.graph.node if node.name == "norm1")
    next(a for a in node.attribute if a.name == "alpha").f = 5e-4
    with pytest.raises(ParityError, match="norm1 is the first layer"):
        check_parity(model, plan, weights, images, "fp32")


def test_a_peer_that_differs_is_named(checked) -> None:
    model, plan, weights, images = checked
    from alexdeploy.network import reference

    activations = {layer.name: output for layer, output in reference.forward(plan, weights, images)}
    activations["pool2"] = activations["pool2"] + np.nan
    with pytest.raises(ParityError, match="pool2 is the first layer that differs: PyTorch"):
        check_parity(model, plan, weights, images, "fp32", {"PyTorch": activations})


@pytest.mark.parametrize("weights", ["unchanged", "newer"])
def test_a_failed_check_replaces_nothing(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    if weights == "newer":
        tensors = load_file(tiny_model.weights_path)
        tensors["fc8.bias"] += np.float32(1)
        save_file(tensors, tiny_model.weights_path)
    before = {path.name: path.read_bytes() for path in tiny_model.path.iterdir()}

    def ruined(model: onnx.ModelProto, keep: Collection[str]) -> onnx.ModelProto:
        converted = to_fp16(model, keep)
        tensor = next(tensor for tensor in converted.graph.initializer if tensor.name == "conv2.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16(2), "conv2.weight"))
        return converted

    monkeypatch.setattr(checked_module, "to_fp16", ruined)
    with pytest.raises(ParityError, match="fp16: conv2 is the first layer"):
        export_model(tiny_model, ExportOptions(fp16=True))
    assert {path.name: path.read_bytes() for path in tiny_model.path.iterdir()} == before


def test_each_graph_says_what_it_was_made_from(tiny_model: ModelFolder) -> None:
    fp32, fp16 = export_model(tiny_model, ExportOptions(fp16=True))
    assert [fp32.sha256, fp16.sha256] == [sha256_file(fp32.path), sha256_file(fp16.path)]
    weights = sha256_file(tiny_model.weights_path)
    expected = {"fp32": ("weights.safetensors", weights), "fp16": ("model.onnx", fp32.sha256)}
    for precision, source in expected.items():
        metadata = read_graph(tiny_model.onnx_path(precision)).metadata
        assert (metadata["alexdeploy.source"], metadata["alexdeploy.source_sha256"]) == source
        assert metadata["alexdeploy.weights_sha256"] == weights


def test_fp16_keeps_lrn_in_fp32_and_the_rest_in_fp16(tiny_model: ModelFolder) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(tiny_model.onnx_path("fp16")))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type == "LRN":
            assert types[node.input[0]] == TensorProto.FLOAT
        elif node.op_type in ("Conv", "Gemm", "Relu", "MaxPool") and node.output[0] in types:
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name
    assert [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)] == [1, 1]
    weights = [tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith("weight")]
    assert set(weights) == {TensorProto.FLOAT16}
    onnx.checker.check_model(model, full_check=True)


def test_fp16_survives_activations_whose_squares_leave_its_range(checked) -> None:
    model, plan, weights, images = checked
    scaled = dict(weights) | {"conv1.weight": weights["conv1.weight"] * np.float32(8)}
    _change(model, "conv1.weight", 8)
    from alexdeploy.network import reference

    largest = next(np.abs(output).max() for layer, output in reference.forward(plan, scaled, images))
    assert largest > 255
    parity = check_parity(to_fp16(model), plan, scaled, images, "fp16")
    assert parity.worst_error < 2e-2


def test_the_check_uses_the_photographs_that_are_named(tiny_model: ModelFolder, tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), (10, 20, 30)).save(tmp_path / "flat.png")
    events: list[Event] = []
    images = check_images(
        tiny_model.spec(), tiny_model.mean_image(tiny_model.spec()), str(tmp_path / "flat.png"), events.append
    ).inputs
    mean = tiny_model.mean_image(tiny_model.spec())
    assert mean is not None
    expected = np.array([10, 20, 30], np.float32)[:, None, None] - mean[:, 14:241, 14:241]
    np.testing.assert_array_equal(images[-1], expected)
    assert isinstance(events[0], Status)
    assert "flat.png" in events[0].message


def _classes_of_one_colour(folder: Path) -> None:
    """Five classes of ten pictures; the red of a picture is ten times its class."""
    for label in range(5):
        (folder / f"class-{label}").mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (256, 256), (10 * label, 0, 0)).save(folder / f"class-{label}" / f"{index}.png")


def _check_images_of(folder: ModelFolder, data: str) -> tuple[np.ndarray, Event]:
    spec = folder.spec().replace_provenance(data=data)
    events: list[Event] = []
    return check_images(spec, folder.mean_image(spec), None, events.append).inputs, events[0]


def _reds(folder: ModelFolder, images: np.ndarray) -> list[int]:
    mean = folder.mean_image(folder.spec())
    assert mean is not None
    return [round(float((image[0] + mean[0, 14:241, 14:241]).mean())) for image in images[2:]]


def test_the_check_takes_pictures_of_several_classes_of_the_training_data(
    tiny_model: ModelFolder, tmp_path: Path
) -> None:
    _classes_of_one_colour(tmp_path / "data")
    images, event = _check_images_of(tiny_model, str(tmp_path / "data"))
    assert event == Status(message=f"checking on 2 random inputs and 4 images of {tmp_path / 'data'}")
    assert len(set(_reds(tiny_model, images))) == 4


def test_training_pictures_that_cannot_be_decoded_are_passed_over(tiny_model: ModelFolder, tmp_path: Path) -> None:
    _classes_of_one_colour(tmp_path / "data")
    for path in (tmp_path / "data").glob("*/*.png"):
        if path.name != "7.png":
            path.write_bytes(b"no picture")
    os.mkfifo(tmp_path / "data" / "class-0" / "fifo.png")
    images, _ = _check_images_of(tiny_model, str(tmp_path / "data"))
    assert len(set(_reds(tiny_model, images))) == 4


class _NeverRead(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise AssertionError("standard input was read")


@pytest.mark.parametrize("data", ["-", "@list.txt", "*.png", "one.png", "all.zip", "missing", "a\0b"])
def test_a_data_path_in_a_spec_is_used_only_if_it_is_a_folder(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (256, 256)).save("one.png")
    Path("list.txt").write_text("one.png\n")
    with zipfile.ZipFile("all.zip", "w") as archive:
        archive.write("one.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(_NeverRead()))  # type: ignore[type-var]
    _, event = _check_images_of(tiny_model, data)
    assert event == Status(message="checking on 2 random inputs and 4 images of rendered pictures")


def test_the_images_that_the_user_names_may_be_a_list(tiny_model: ModelFolder, tmp_path: Path) -> None:
    Image.new("RGB", (256, 256)).save(tmp_path / "one.png")
    (tmp_path / "list.txt").write_text("one.png\n")
    events: list[Event] = []
    check_images(
        tiny_model.spec(), tiny_model.mean_image(tiny_model.spec()), f"@{tmp_path / 'list.txt'}", events.append
    )
    assert events == [Status(message=f"checking on 2 random inputs and 1 images of @{tmp_path / 'list.txt'}")]


def test_outputs_of_an_imported_network_that_differ_are_refused_with_the_error(tiny_model: ModelFolder) -> None:
    original = onnx.load(tiny_model.onnx_path())
    images = np.random.default_rng(0).normal(0, 50, (2, 3, 227, 227)).astype(np.float32)
    assert compare_outputs(original, original, images, "fp16").logit_error == 0
    other = onnx.ModelProto.FromString(original.SerializeToString())
    (bias,) = [each for each in other.graph.initializer if each.name == "fc8.bias"]
    largest = np.abs(run_graph(original, images)[0]).max()
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.25 * largest), bias.name))
    with pytest.raises(ParityError, match=r"fp16: the outputs are off by 2\.50e-01 of the largest, allowed are "):
        compare_outputs(other, original, images, "fp16")
