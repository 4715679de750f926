"""`evaluate` and `verify` on a GPU that is not there: the packages in fake_gpu take its and TensorRT's place."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import smooth_images
from imagined import put_engine
from PIL import Image

from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.evaluation.evaluate import EvaluateOptions, evaluate
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.freshness import load_graph

FAKE_GPU = Path(__file__).parent / "fake_gpu"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`python -m alexdeploy` beside data/ with a picture of each of five classes, where the GPU is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{FAKE_GPU}{os.pathsep}{others}" if others else str(FAKE_GPU))
    for index, image in enumerate(smooth_images(5)):
        path = tmp_path / "data" / f"class-{index}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "alexdeploy", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture
def engine(tiny_model: ModelFolder, run: Run) -> Path:
    """The engine of the FP16 graph with ten views."""
    spec = tiny_model.spec()
    network = deployment_graph(load_graph(tiny_model, "fp16", spec).model, spec, 10, tiny_model.mean_image(spec))
    return put_engine(tiny_model, plan=network.SerializeToString())


CHOICE = ("--precision", "fp16", "--views", "10", "--backend", "tensorrt", "--json")


def test_evaluate_judges_the_engine(run: Run, engine: Path, tiny_model: ModelFolder) -> None:
    result = run("evaluate", "data", "--model", str(tiny_model.path), "--devices", "0", *CHOICE)
    assert result.returncode == 0, result.stderr
    (score,) = json.loads(result.stdout)["scores"]
    assert score["configuration"] == {"backend": "tensorrt", "precision": "fp16", "num_views": 10}
    assert score["artifact"] == sha256_file(engine)
    options = EvaluateOptions(precisions=("fp16",), num_views=(10,), backends=("onnxruntime",), devices="cpu")
    (expected,) = evaluate(tiny_model, "data", options).scores
    found = {(each["true"], each["predicted"]): each["count"] for each in score["confusion"]}
    assert found == {(each.true, each.predicted): each.count for each in expected.confusion}


def test_verify_judges_the_engine_against_fp32(run: Run, engine: Path, tiny_model: ModelFolder) -> None:
    result = run("verify", str(tiny_model.path), "data", "--devices", "0", *CHOICE)
    assert result.returncode == 0, result.stderr
    (report,) = json.loads(result.stdout)["engines"]
    assert (report["backend"], report["artifact"], report["sha256"]) == ("tensorrt", engine.name, sha256_file(engine))
    assert (report["agreement"]["num_rows"], report["agreement"]["num_flips"]) == (5, 0)
    # FP16 is not FP32: the engine's own answers were compared.
    assert 0 < report["agreement"]["max_error"] < 2e-2


def test_evaluate_names_the_version_of_each_backend_of_its_replicas(
    run: Run, engine: Path, tiny_model: ModelFolder
) -> None:
    words = ("--precision", "fp16", "--views", "10", "--devices", "cpu,0", "--json")
    result = run("evaluate", "data", "--model", str(tiny_model.path), *words)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["scores"][0]["configuration"]["backend"] == "openvino+tensorrt"
    versions = {name: found["versions"].get(name) for name in ("openvino", "tensorrt", "openvino+tensorrt")}
    assert versions == {
        "openvino": importlib.metadata.version("openvino"),
        "tensorrt": "10.16.1.11",
        "openvino+tensorrt": None,
    }


def test_evaluate_leaves_out_a_backend_without_a_device_if_another_one_has_one(
    run: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ("evaluate", "data", "--model", str(tiny_model.path), "--views", "1", "--json", "--backend")
    result = run(*words, "tensorrt,onnxruntime")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [score["configuration"]["backend"] for score in found["scores"]] == ["onnxruntime"]
    (note,) = found["notes"]
    assert note.startswith("tensorrt fp32 is left out: TensorRT needs an NVIDIA GPU")
    assert note in " ".join(result.stderr.split())
    result = run(*words, "tensorrt")
    assert (result.returncode, result.stdout) == (5, "")
    assert "nothing is left to evaluate: tensorrt fp32 is left out: TensorRT needs" in result.stderr


@pytest.mark.parametrize(
    "others",
    [
        pytest.param((), id="all", marks=pytest.mark.slow),
        pytest.param(("--precision", "fp16", "--backend", "tensorrt,openvino"), id="those named"),
    ],
)
def test_verify_judges_each_engine_on_the_devices_that_its_backend_supports(
    run: Run, engine: Path, tiny_model: ModelFolder, others: tuple[str, ...]
) -> None:
    words = ("verify", str(tiny_model.path), "data", "--views", "10", "--devices", "cpu,0", "--json")
    result = run(*words, *others)
    assert result.returncode == 0, result.stderr
    engines = {(report["backend"], report["precision"]) for report in json.loads(result.stdout)["engines"]}
    assert {("tensorrt", "fp16"), ("openvino", "fp16")} <= engines
    assert "tensorrt fp16 is left out" not in result.stderr
    assert "openvino fp16 is left out" not in result.stderr


def test_verify_refuses_devices_on_which_it_judges_no_engine(run: Run, tiny_model: ModelFolder) -> None:
    result = run("verify", str(tiny_model.path), "data", "--devices", "0")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no engine can be verified on --devices 0; openvino fp32 is left out: cuda:0" in result.stderr
    assert "reading" not in result.stderr


def test_verify_without_options_judges_the_engines_beside_all_graphs(
    run: Run, engine: Path, tiny_model: ModelFolder
) -> None:
    result = run("verify", str(tiny_model.path), "data", "--views", "10", "--json")
    assert result.returncode == 0, result.stderr
    assert "tensorrt fp16 is left out" not in result.stderr
    engines = {(report["backend"], report["precision"]) for report in json.loads(result.stdout)["engines"]}
    assert ("tensorrt", "fp16") in engines
    assert ("openvino", "fp32") in engines
    result = run("verify", str(tiny_model.path), "data")
    assert result.returncode == 0, result.stderr
    assert "tensorrt fp16 is left out" in result.stderr
    assert "tencrop" in result.stderr


@pytest.mark.parametrize("command", [("verify", "MODEL", "data"), ("evaluate", "data", "--model", "MODEL")])
def test_an_engine_that_is_not_there_is_an_error_before_any_image_is_read(
    run: Run, engine: Path, tiny_model: ModelFolder, command: tuple[str, ...]
) -> None:
    words = [str(tiny_model.path) if word == "MODEL" else word for word in command]
    result = run(*words, "--devices", "0", "--precision", "fp16", "--views", "5", "--backend", "tensorrt")
    assert (result.returncode, result.stdout) == (4, "")
    assert "alexdeploy build" in result.stderr
    assert "--fp16 --views 5" in result.stderr
    assert "reading" not in result.stderr
