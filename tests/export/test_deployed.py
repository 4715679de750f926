"""`export --deployment`: a file that other programs run, pixels in and probabilities out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from helpers import change_weights, smooth_images, write_pictures
from PIL import Image

from alexdeploy import Predictor
from alexdeploy.core.errors import ParityError, StaleArtifactError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.diagnosis.inspect import inspect
from alexdeploy.engines.base import EngineOptions, NumViews, open_engine
from alexdeploy.export import deployed
from alexdeploy.export.deployed import portable_graph
from alexdeploy.export.export import Exported, ExportOptions, export_model
from alexdeploy.graphs.files import read_graph
from alexdeploy.graphs.freshness import check_fresh
from alexdeploy.graphs.onnxruntime_library import load_onnxruntime

STANDARD_OPS = {
    *("ArgMax", "Cast", "Concat", "Conv", "Flatten", "Gather", "Gemm", "LRN", "MaxPool", "ReduceMean", "Relu"),
    *("Reshape", "Slice", "Softmax", "Sub", "Transpose"),
}

Deployed = tuple[ModelFolder, list[Exported]]


def run_elsewhere(path: Path, images: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Both outputs of the file in ONNX Runtime and OpenVINO, by runtime, with nothing of this package."""
    session = load_onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images)
    return {
        "onnxruntime": session.run(["probabilities", "view_classes"], {"images": images}),
        "openvino": [found["probabilities"], found["view_classes"]],
    }


def answers(folder: ModelFolder, images: np.ndarray, precision: Precision, num_views: NumViews) -> np.ndarray:
    options = EngineOptions(precision=precision, num_views=num_views, batch_size=len(images))
    with open_engine(folder, "onnxruntime", options) as engine:
        return engine.run(images).probabilities


@pytest.fixture(scope="module")
def exported_files(_exported: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """A tiny model that was exported with one view, and then with ten and FP16: the model and the second export."""
    folder = ModelFolder(tmp_path_factory.mktemp("deployed") / "tiny")
    shutil.copytree(_exported.path, folder.path)
    export_model(folder, ExportOptions(deployment=True))
    return folder, list(export_model(folder, ExportOptions(fp16=True, deployment=True, num_views=10)))


def test_each_precision_has_a_file_and_one_that_is_there_is_kept(exported_files: Deployed) -> None:
    folder, items = exported_files
    assert [(item.path.name, item.num_views, item.written) for item in items] == [
        ("model.onnx", None, False),
        ("model.fp16.onnx", None, True),
        ("deployment.onnx", 1, False),
        ("deployment.tencrop.onnx", 10, True),
        ("deployment.fp16.tencrop.onnx", 10, True),
    ]
    for item in items:
        assert (folder.path / f"{item.path.name}.sha256").read_text() == f"{item.sha256}  {item.path.name}\n"


@pytest.mark.parametrize("num_views", [1, 10])
def test_other_programs_run_the_file_to_the_same_probabilities(exported_files: Deployed, num_views: NumViews) -> None:
    folder, _ = exported_files
    images = smooth_images(3)
    expected = answers(folder, images, "fp32", num_views)
    for runtime, (probabilities, view_classes) in run_elsewhere(folder.onnx_path("fp32", num_views), images).items():
        assert probabilities.dtype == np.float32
        assert (view_classes.dtype, view_classes.shape) == (np.int32, (3, num_views))
        # Float32 sums in another order, of 9,216 products at most: well under a thousandth of a logit.
        np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=runtime)


def test_the_file_has_standard_operators_and_its_origin(exported_files: Deployed) -> None:
    folder, _ = exported_files
    for precision in ("fp32", "fp16"):
        model = onnx.load(folder.onnx_path(precision, 10))
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        assert {node.op_type for node in model.graph.node} <= STANDARD_OPS
        assert sum(node.op_type == "LRN" for node in model.graph.node) == 2
        metadata = {each.key: each.value for each in model.metadata_props}
        assert metadata["alexdeploy.source"] == folder.onnx_path(precision).name
        assert (metadata["alexdeploy.num_views"], metadata["alexdeploy.precision"]) == ("10", precision)
        assert folder.spec().contract_sha256 == metadata["alexdeploy.contract_sha256"]


def test_inspect_says_what_it_is_and_whether_its_network_has_changed(exported_files: Deployed, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "tiny")
    shutil.copytree(exported_files[0].path, folder.path)
    path = folder.onnx_path("fp32", 10)
    before = path.read_bytes()
    found = inspect(str(path))
    assert found.facts["deployment graph"] == "fp32, 10 views"
    assert found.facts["input images"] == "uint8 [N, 256, 256, 3]"
    assert found.parameters == inspect(str(folder.onnx_path())).parameters
    assert found.facts["up to date"] == "yes"
    change_weights(folder, fc8__bias=lambda bias: bias + 1)
    export_model(folder)
    # It was renewed with its network.
    assert inspect(str(path)).facts["up to date"] == "yes"
    path.write_bytes(before)
    assert "SHA-256 mismatch" in str(inspect(str(path)).facts["up to date"])
    folder.sum_path("fp32", 10).unlink()
    assert "which is now" in str(inspect(str(path)).facts["up to date"])
    with pytest.raises(StaleArtifactError) as caught:
        check_fresh(read_graph(path), folder, "fp32", folder.spec())
    assert str(caught.value.hint).endswith("--deployment --views 10")


def test_a_damaged_hash_file_is_written_again(exported_files: Deployed, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "tiny")
    shutil.copytree(exported_files[0].path, folder.path)
    path, sum_path = folder.onnx_path("fp32", 10), folder.sum_path("fp32", 10)
    before = sum_path.read_text()
    sum_path.write_text("0" * 64)
    assert "SHA-256 mismatch" in str(inspect(str(path)).facts["up to date"])
    items = {item.path: item for item in export_model(folder)}
    assert items[path].written
    assert sum_path.read_text() == before
    assert inspect(str(path)).facts["up to date"] == "yes"


def test_a_graph_under_the_name_of_another_is_not_up_to_date(exported_files: Deployed, tmp_path: Path) -> None:
    folder = ModelFolder(tmp_path / "tiny")
    shutil.copytree(exported_files[0].path, folder.path)
    path = shutil.copyfile(folder.onnx_path("fp32", 10), folder.onnx_path("fp16", 1))
    expected = "no: deployment.fp16.onnx is the name of the fp16 graph with 1 view"
    assert inspect(str(path)).facts["up to date"] == expected
    elsewhere = shutil.copyfile(path, folder.path / "other.onnx")
    assert "up to date" not in inspect(str(elsewhere)).facts


def test_an_lrn_that_openvino_computes_wrongly_is_written_so_that_it_does_not(
    exported: Callable[..., ModelFolder], tmp_path: Path
) -> None:
    folder = exported("alexnet", "architecture.lrn.k=1.5", "architecture.lrn.alpha=0.01")
    spec = folder.spec()
    network = read_graph(folder.onnx_path())
    _, content = portable_graph(network, "model.onnx", spec, "fp32", 1, folder.mean_image(spec))
    path = tmp_path / "deployment.onnx"
    path.write_bytes(content)
    images = smooth_images(2)
    expected = answers(folder, images, "fp32", 1)
    for runtime, (probabilities, _) in run_elsewhere(path, images).items():
        np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=runtime)


def test_int8_keeps_its_scales(int8_model: ModelFolder, any_drop: None) -> None:
    options = ExportOptions(int8=True, deployment=True, num_views=5)
    *_, item = export_model(int8_model, options)
    assert item.path.name == "deployment.int8.fivecrop.onnx"
    images = smooth_images(4)
    session_options = load_onnxruntime().SessionOptions()
    # As the engine does: sums of INT8 products in 16 bits would saturate on some processors.
    session_options.add_session_config_entry("session.x64quantprecision", "1")
    session = load_onnxruntime().InferenceSession(item.path, session_options, providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"images": images})
    np.testing.assert_allclose(found, answers(int8_model, images, "int8", 5), atol=1e-6)


def test_the_programs_of_the_docs_give_the_answers_of_predict(
    exported_files: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
    with_pillow, with_decode = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.M)[:2]
    shutil.copytree(exported_files[0].path, tmp_path / "models" / "flowers")
    monkeypatch.chdir(tmp_path)
    image = smooth_images(1)[0]
    # Fully transparent to the left, over colours that do not show.
    alpha = np.where(np.arange(256) < 128, 0, 255).astype(np.uint8)
    pictures = {
        "small JPEG": (image, "JPEG"),
        "large JPEG": (np.random.default_rng(1).integers(0, 256, (540, 700, 3), np.uint8), "JPEG"),
        "RGBA": (np.dstack([image, np.broadcast_to(alpha, (256, 256))]), "PNG"),
    }
    with Predictor("models/flowers", num_views=10, backend="onnxruntime", batch_size=1) as predictor:
        for name, (array, kind) in pictures.items():
            Image.fromarray(array).save("photo.jpg", kind)
            (row,) = predictor.predict(["photo.jpg"])
            names: dict[str, Any] = {}
            exec(compile(with_pillow, "deployment.md", "exec"), names)
            first = names["pixels"], names["probabilities"].max()
            exec(compile(with_decode, "deployment.md", "exec"), names)
            assert row.probability == names["probabilities"].max()
            assert names["view_classes"].shape == (1, 10)
            # The page names the kinds for which Pillow alone gives other pixels.
            assert np.array_equal(first[0], names["pixels"]) == (name == "small JPEG")
            assert (first[1] == row.probability) == (name == "small JPEG")


def test_a_graph_with_other_answers_is_not_written(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def mirrored(*arguments: object) -> object:
        graph, content = portable_graph(*arguments)  # type: ignore[arg-type]
        softmax = next(node for node in graph.model.graph.node if node.op_type == "Softmax")
        softmax.op_type = "Sigmoid"
        del softmax.attribute[:]
        return graph, content

    monkeypatch.setattr(deployed, "portable_graph", mirrored)
    with pytest.raises(ParityError, match="gives other answers"):
        export_model(tiny_model, ExportOptions(deployment=True, images=str(write_pictures(tiny_model.path / "p", 4))))
    assert not tiny_model.onnx_path("fp32", 1).exists()
