"""Every backend is asked, before a graph is written, whether it gives that graph's answers; one that does not is named
and not chosen."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, make_model, smooth_images
from onnx import ModelProto, TensorProto, helper, numpy_helper

from alexdeploy.core.backend_checks import read_backend_checks
from alexdeploy.core.errors import ModelError, ParityError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing
from alexdeploy.engines import base
from alexdeploy.engines.base import Backend, EngineOptions, Predictions, choose_backend, join_predictions, open_engine
from alexdeploy.export import engine_check
from alexdeploy.export.engine_check import arithmetic
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.graphs import openvino
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.onnx import OnnxOptions, import_onnx
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import place

STEPS = Preprocessing(scale=1 / 32, mean=(4.0, 4.0, 4.0), crop=64)
BIASES, SIZES = (0.3, 0.5, 0.999, 1.5, 2.25, 3.7), (3, 5, 31)
MAPS, CLASSES = 16, 10


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    values = {
        "conv.w": rng.normal(0, 0.15, (MAPS, 3, 7, 7)),
        "conv.b": rng.normal(0, 0.3, MAPS),
        "fc.w": rng.normal(0, 0.2, (CLASSES, 16 * MAPS)),
        "fc.b": rng.normal(0, 0.3, CLASSES),
    }
    return {name: value.astype(np.float32) for name, value in values.items()}


def lrn_classifier(k: float, size: int) -> ModelProto:
    """Convolution, LRN, fully connected: `images` float32 [N, 3, 64, 64] -> [N, 10]."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.w", "conv.b"], ["conv"], strides=[16, 16]),
        helper.make_node("LRN", ["conv"], ["norm"], size=size, alpha=0.5, beta=0.75, bias=k),
        helper.make_node("Flatten", ["norm"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "lrn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights().items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_torch(images: np.ndarray, k: float, size: int, num_views: int) -> np.ndarray:
    """The probabilities of `lrn_classifier` as PyTorch computes them, the mean over the views."""
    tensors = {name: torch.from_numpy(value) for name, value in weights().items()}
    probabilities = []
    for image in images:
        x = torch.from_numpy(network_input(image, STEPS, num_views))
        x = torch.nn.functional.conv2d(x, tensors["conv.w"], tensors["conv.b"], stride=16)
        x = torch.nn.functional.local_response_norm(x, size, alpha=0.5, beta=0.75, k=k).flatten(1)
        scores = torch.nn.functional.linear(x, tensors["fc.w"], tensors["fc.b"])
        probabilities.append(scores.softmax(dim=1).mean(dim=0).numpy())
    return np.stack(probabilities)


def imported(path: Path, k: float, size: int, warnings: list[str] | None = None) -> ModelFolder:
    path.mkdir(parents=True, exist_ok=True)
    (path / "lrn.onnx").write_bytes(lrn_classifier(k, size).SerializeToString())
    folder = ModelFolder(path / "model")
    import_onnx(path / "lrn.onnx", folder, OnnxOptions(preprocessing=STEPS), (warnings or []).append)
    return folder


def run(folder: ModelFolder, backend: Backend, images: np.ndarray, num_views: base.NumViews = 1) -> Predictions:
    """In batches of 8, for which the import has compiled it."""
    with open_engine(folder, backend, EngineOptions(num_views=num_views)) as engine:
        return join_predictions([engine.run(images[start : start + 8]) for start in range(0, len(images), 8)])


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that compile what is wrong on purpose: no other test may find it."""
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "own-cache"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", BIASES)
def test_lrn_with_any_k_and_size_is_the_same_in_every_backend(tmp_path: Path, k: float, size: int) -> None:
    folder = imported(tmp_path, k, size)
    # The views are cut before any LRN: one size is enough for ten.
    for num_views in (1, 10) if size == 5 else (1,):
        images = smooth_images(32 if num_views == 1 else 8)
        expected = in_torch(images, k, size, num_views)
        assert len(set(expected.argmax(axis=1))) > 1, "the images should not all have one answer"
        for backend in ("openvino", "onnxruntime"):
            found = run(folder, backend, images, num_views).probabilities
            np.testing.assert_allclose(found, expected, atol=1e-4)
            np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("k", [0.5, 3.7])
def test_a_recipe_may_have_any_k(tmp_path: Path, k: float) -> None:
    lrn = f"architecture.lrn={{size=5, alpha=0.01, beta=0.75, k={k}, per_tower=true}}"
    folder = make_model(tmp_path / "model", "alexnet", (*TINY, lrn))
    export_model(folder, ExportOptions(fp16=True))
    images = smooth_images(8)
    expected = run(folder, "torch", images, 10).probabilities
    for precision, backend in itertools.product(("fp32", "fp16"), ("openvino", "onnxruntime")):
        with open_engine(folder, backend, EngineOptions(precision=precision, num_views=10, batch_size=8)) as engine:
            found = engine.run(images).probabilities
        np.testing.assert_allclose(found, expected, atol=1e-4 if precision == "fp32" else 5e-3)


def test_every_backend_is_recorded_with_the_graph_that_it_ran(tiny_model: ModelFolder) -> None:
    checks = read_backend_checks(tiny_model)
    assert {(each.backend, each.precision) for each in checks} == set(
        itertools.product(("openvino", "onnxruntime"), ("fp32", "fp16"))
    )
    for each in checks:
        assert each.artifact == sha256_file(tiny_model.onnx_path(each.precision))
        assert each.problem is None
        assert each.error is not None
        # FP16's own error is against the FP16 graph, which OpenVINO computes in float32.
        assert each.error < (1e-5 if each.precision == "fp32" else 2e-2)


def test_a_backend_with_other_answers_is_named_recorded_and_not_chosen(
    tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenVINO itself, as it computes LRN when nothing is done about k.
    monkeypatch.setattr(openvino, "unit_lrn_bias", lambda model: model)
    warnings: list[str] = []
    (tmp_path / "lrn.onnx").write_bytes(lrn_classifier(0.3, 5).SerializeToString())
    folder = ModelFolder(tmp_path / "model")
    import_onnx(tmp_path / "lrn.onnx", folder, OnnxOptions(preprocessing=STEPS), warnings.append)
    assert [each for each in warnings if "openvino" in each and "gives other answers" in each]
    by_backend = {each.backend: each for each in read_backend_checks(folder)}
    assert by_backend["onnxruntime"].problem is None
    assert "0.0001 is allowed" in str(by_backend["openvino"].problem)
    assert choose_backend(folder, "fp32") == "onnxruntime"
    placed = place(folder, PredictOptions())
    assert placed.engine.info.backend == "onnxruntime"
    assert any("openvino is not used" in note for note in placed.notes)
    asked = place(folder, PredictOptions(backend="openvino"))
    assert asked.engine.info.backend == "openvino"
    assert any("openvino was requested" in note for note in asked.notes)
    # A record of another graph says nothing.
    monkeypatch.undo()
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path / "another-cache"))
    import_onnx(tmp_path / "lrn.onnx", folder, OnnxOptions(preprocessing=STEPS, overwrite=True))
    assert choose_backend(folder, "fp32") == "openvino"


def test_a_record_of_another_version_says_nothing(tiny_model: ModelFolder) -> None:
    text = tiny_model.backends_path.read_text()
    unfit = text.replace('"problem": null', '"problem": "gives other answers"', 1)
    tiny_model.backends_path.write_text(unfit)
    assert choose_backend(tiny_model, "fp32") == "onnxruntime"
    tiny_model.backends_path.write_text(re.sub(r'"version": "[^"]*"', '"version": "2024.6.0"', unfit))
    assert choose_backend(tiny_model, "fp32") == "openvino"


def test_a_record_of_another_graph_says_nothing(
    tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setattr(openvino, "unit_lrn_bias", lambda model: model)
        folder = imported(tmp_path, 0.3, 5)
    assert choose_backend(folder, "fp32") == "onnxruntime"
    other = imported(tmp_path / "other", 2.0, 5)
    folder.onnx_path().write_bytes(other.onnx_path().read_bytes())
    assert choose_backend(folder, "fp32") == "openvino"


def test_nothing_is_written_where_no_backend_gives_the_answers(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in tiny_model.path.rglob("*") if path.is_file()}
    real = engine_check._run

    def swapped(*arguments: object) -> Predictions:
        found = real(*arguments)  # type: ignore[arg-type]
        return found._replace(probabilities=found.probabilities[:, ::-1])

    monkeypatch.setattr(engine_check, "_run", swapped)
    with pytest.raises(ParityError, match=r"openvino .* gives other answers.*onnxruntime .* gives other answers"):
        export_model(tiny_model, ExportOptions(fp16=True))
    assert {path: path.read_bytes() for path in tiny_model.path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("checked_with_ten_views")
def test_answers_of_views_are_compared_as_well(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine_check._run

    def rotated(backend: str, *arguments: object) -> Predictions:
        found = real(backend, *arguments)  # type: ignore[arg-type]
        if backend == "openvino":
            return found._replace(view_classes=(found.view_classes + 1) % 5)
        return found

    monkeypatch.setattr(engine_check, "_run", rotated)
    export_model(tiny_model, ExportOptions())
    problems = {each.backend: each.problem for each in read_backend_checks(tiny_model) if each.precision == "fp32"}
    assert problems["onnxruntime"] is None
    assert "gives other answers" in str(problems["openvino"])


@pytest.mark.usefixtures("checked_with_ten_views")
@pytest.mark.parametrize("num_views", [1, 10])
def test_answers_that_are_not_finite_are_other_answers(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch, num_views: int
) -> None:
    real = engine_check._run

    def broken(backend: str, *arguments: object) -> Predictions:
        found = real(backend, *arguments)  # type: ignore[arg-type]
        value = np.nan if backend == "openvino" and arguments[-1] == num_views else 1.0
        return found._replace(probabilities=found.probabilities * np.float32(value))

    monkeypatch.setattr(engine_check, "_run", broken)
    export_model(tiny_model, ExportOptions())
    assert {each.backend: each.problem is None for each in read_backend_checks(tiny_model)} == {
        "openvino": False,
        "onnxruntime": True,
    }


def test_a_model_that_every_backend_gets_wrong_is_not_run_by_itself(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tiny_model.backends_path.read_text()
    tiny_model.backends_path.write_text(text.replace('"problem": null', '"problem": "gives other answers"'))
    monkeypatch.setattr(base, "is_installed", lambda backend: backend in ("openvino", "onnxruntime"))
    with pytest.raises(ModelError, match=r"no installed backend .*openvino gives other answers; onnxruntime gives"):
        choose_backend(tiny_model, "fp32")


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_a_graph_that_openvino_cannot_load_runs_in_onnx_runtime(tmp_path: Path, kind: type[np.integer]) -> None:
    folder, warnings = ModelFolder(tmp_path / "model"), []
    (tmp_path / "q.onnx").write_bytes(qoperator_classifier(kind).SerializeToString())
    import_onnx(tmp_path / "q.onnx", folder, OnnxOptions(preprocessing=STEPS), warnings.append)
    assert [each for each in warnings if "openvino" in each and "cannot run the graph" in each and "QGemm" in each]
    assert choose_backend(folder, "fp32") == "onnxruntime"
    with open_engine(folder, "onnxruntime", EngineOptions(num_views=10)) as engine:
        assert np.isfinite(engine.run(smooth_images(2)).probabilities).all()


def qoperator_classifier(kind: type[np.integer]) -> ModelProto:
    """ONNX Runtime's QOperator form of the same layers without LRN; QGemm is an operator of its own."""
    values = weights()
    constants = {
        "x_scale": np.array(1 / 32, np.float32),
        "y_scale": np.array(1 / 8, np.float32),
        "w_scale": np.array(1 / 256, np.float32),
        "middle": np.array(128 if kind is np.uint8 else 0, kind),
        "zero": np.array(0, np.int8),
        "conv.w": np.clip(np.rint(values["conv.w"] * 256), -127, 127).astype(np.int8),
        "conv.b": np.rint(values["conv.b"] * 256 * 32).astype(np.int32),
        "fc.w": np.clip(np.rint(values["fc.w"].T * 256), -127, 127).astype(np.int8),
        "fc.b": np.rint(values["fc.b"] * 256 * 8).astype(np.int32),
    }
    of_conv = ["q", "x_scale", "middle", "conv.w", "w_scale", "zero", "y_scale", "middle", "conv.b"]
    of_gemm = ["flat", "y_scale", "middle", "fc.w", "w_scale", "zero", "fc.b", "y_scale", "middle"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "middle"], ["q"]),
        helper.make_node("QLinearConv", of_conv, ["conv"], strides=[16, 16]),
        helper.make_node("Flatten", ["conv"], ["flat"]),
        helper.make_node("QGemm", of_gemm, ["quantized"], domain="com.microsoft"),
        helper.make_node("DequantizeLinear", ["quantized", "y_scale", "middle"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "qoperator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_a_damaged_record_is_a_model_error(tiny_model: ModelFolder) -> None:
    for content in (b"\xff", b"{}", b'[{"backend": 1}]'):
        tiny_model.backends_path.write_bytes(content)
        with pytest.raises(ModelError, match=r"backends\.json is damaged"):
            choose_backend(tiny_model, "fp32")
    export_model(tiny_model, ExportOptions())
    assert choose_backend(tiny_model, "fp32") == "openvino"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_arithmetic_of_a_graph_is_seen_in_its_nodes(
    int8_model: ModelFolder, exported: Callable[..., ModelFolder], precision: str
) -> None:
    folder = int8_model if precision == "int8" else exported("alexnet", fp16=True)
    assert arithmetic(load_graph(folder, precision, folder.spec()).model) == precision
