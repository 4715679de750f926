"""A network with the same answers in float64 that is built to break in FP16 and in INT8."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from half_machine import run_in_fp16
from helpers import change_weights, make_model, smooth_images, write_pictures
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from alexdeploy.core.errors import ParityError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.fp16 import to_fp16
from alexdeploy.export.quantize.int8 import to_int8
from alexdeploy.export.quantize.quantize import Budget
from alexdeploy.export.quantize.sensitivity import Evaluator
from alexdeploy.graphs.ranges import read_ranges
from alexdeploy.images.preprocess import network_input

SCALE = 16.0
IMAGES = smooth_images(64, seed=7)


def break_fp16(folder: ModelFolder) -> None:
    """Scale what the LRNs read by 16: LRN(s x; alpha / s^2) = s LRN(x; alpha), and conv3 takes s back."""
    spec = folder.spec()
    assert spec.architecture is not None
    assert spec.architecture.lrn is not None
    lrn = dataclasses.replace(spec.architecture.lrn, alpha=spec.architecture.lrn.alpha / SCALE**2)
    folder.write_spec(dataclasses.replace(spec, architecture=dataclasses.replace(spec.architecture, lrn=lrn)))
    change_weights(
        folder,
        conv1__weight=lambda weight: weight * SCALE,
        conv1__bias=lambda bias: bias * SCALE,
        conv2__bias=lambda bias: bias * SCALE,
        conv3__weight=lambda weight: weight / SCALE,
    )


def break_int8(folder: ModelFolder) -> None:
    """Give each of conv4's filters one huge weight, on a map that is always 0: no sum changes, every scale does."""

    def silence(bias: np.ndarray) -> np.ndarray:
        # One map in each tower.
        bias[[0, len(bias) // 2]] = -1e4
        return bias

    def spoil(weight: np.ndarray) -> np.ndarray:
        weight[:, 0, 1, 1] = 50.0
        return weight

    change_weights(folder, conv3__bias=silence, conv4__weight=spoil)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """models/broken, and 32 images in pictures/."""
    monkeypatch.chdir(tmp_path)
    folder = make_model(Path("models/broken"), seed=5)
    break_fp16(folder)
    break_int8(folder)
    write_pictures(Path("pictures"), 32, seed=1)
    return folder


def _inputs(folder: ModelFolder) -> np.ndarray:
    spec = folder.spec()
    mean = folder.mean_image(spec)
    return np.concatenate([network_input(image, spec.preprocessing, 1, mean) for image in IMAGES[:16]])


def _answers(folder: ModelFolder, precision: str) -> np.ndarray:
    options = EngineOptions(precision=precision, batch_size=64)  # type: ignore[arg-type]
    with open_engine(folder, "onnxruntime", options) as engine:
        return engine.run(IMAGES).probabilities.argmax(axis=1)


def test_naive_fp16_ruins_it_and_the_exported_one_does_not(broken: ModelFolder) -> None:
    _, fp16 = export_model(broken, ExportOptions(fp16=True, images="pictures"))
    model, inputs = onnx.load(broken.onnx_path()), _inputs(broken)
    expected = run_in_fp16(model, inputs)
    assert np.abs(expected["relu1"]).max() > 255.9
    converted = OnnxModel(convert_float_to_float16(onnx.load(broken.onnx_path()), keep_io_types=True))
    converted.topological_sort()
    naive = run_in_fp16(converted.model, inputs)
    # Where the square is infinite the LRN gives 0: the brightest features vanish.
    assert (naive["norm1"][np.abs(expected["norm1_split"]) > 260] == 0).all()
    wrong = (naive["logits"].argmax(axis=1) != expected["logits"].argmax(axis=1)).mean()
    assert wrong > 0.3
    found = run_in_fp16(onnx.load(broken.onnx_path("fp16")), inputs)
    np.testing.assert_array_equal(found["logits"].argmax(axis=1), expected["logits"].argmax(axis=1))
    assert np.abs(found["logits"] - expected["logits"]).max() < 0.01 * np.abs(expected["logits"]).max()
    reasons = {layer.layer: layer.reason for layer in fp16.half_layers}
    assert reasons["norm1"] == reasons["norm2"] == "its squares overflow FP16"


def test_naive_int8_ruins_it_and_the_exported_one_keeps_the_layer_that_the_ranking_names(broken: ModelFolder) -> None:
    (_, int8) = export_model(broken, ExportOptions(int8=True, calibrate="pictures", budget=Budget(max_drop=10.0)))
    found = int8.quantization
    assert found is not None
    assert found.ranking[0].layer == "conv4"
    assert found.ranking[0].drop.logit_error > 5 * found.ranking[1].drop.logit_error
    assert found.choice.keep == ("conv4",)
    assert found.choice.drop.points <= 10.0
    spec = broken.spec()
    model = onnx.load(broken.onnx_path())
    thresholds = {name: each.threshold for name, each in read_ranges(broken.ranges_path).tensors.items()}
    judge = Evaluator(model, spec, broken.mean_image(spec), 1, IMAGES)
    naive = judge.measure(to_int8(model, thresholds, spec.preprocessing))
    ours = judge.measure(onnx.load(broken.onnx_path("int8")))
    # On pictures that neither was made with.
    assert naive.points > 40
    assert ours.points < 15
    assert int((_answers(broken, "int8") != _answers(broken, "fp32")).sum()) == ours.num_flips


def test_a_budget_that_nobody_can_hold_writes_no_int8_file_and_says_so(broken: ModelFolder) -> None:
    write_pictures(Path("many"), 128, seed=2)
    options = ExportOptions(int8=True, calibrate="many", budget=Budget(max_drop=0.0))
    with pytest.raises(ParityError, match="INT8 cannot hold a drop of 0 points: even with") as error:
        export_model(broken, options)
    assert "No INT8 file was written" in str(error.value)
    assert not broken.onnx_path("int8").exists()
    assert not broken.onnx_path().exists()
    assert not broken.ranges_path.exists()


def test_islands_are_those_of_the_plan(broken: ModelFolder) -> None:
    export_model(broken)
    model = onnx.load(broken.onnx_path())
    kept = to_fp16(model, ["conv5"])
    types = {tensor.name: tensor.data_type for tensor in kept.graph.initializer}
    assert types["conv5.weight"] == onnx.TensorProto.FLOAT
    assert types["conv4.weight"] == onnx.TensorProto.FLOAT16
