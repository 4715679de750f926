"""The parts of `python -m benchmarks` on tiny things: sides in processes of their own, scripts of others, the file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import write_pictures

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.predictor import Predictor
from benchmarks.process import ROOT, Process
from benchmarks.startup import LEAN_SCRIPT, SCRIPT, StartupOptions, cpu_precisions, measure_startup
from benchmarks.subjects import Ask, Setup


def silent(text: str) -> None:
    """Nothing is said."""


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    return sorted(map(str, write_pictures(tmp_path / "pictures", 4).iterdir()))


def ours(model: ModelFolder, files: list[str]) -> list[tuple[int, float]]:
    with Predictor(model.path, num_views=10) as predictor:
        return [(row.top[0].index, row.top[0].probability) for row in predictor.predict(files)]


def test_a_side_gives_the_answers_of_each_file_and_the_rate(tiny_model: ModelFolder, pictures: list[str]) -> None:
    with Process(Setup(side="ours", model=str(tiny_model.path))) as process:
        reply = process.ask(Ask(files=tuple(pictures), repeats=2, with_answers=True))
    assert process.opened.open_seconds > 0
    assert reply.images_per_second > 0
    assert reply.answers == ours(tiny_model, pictures) * 2


@pytest.mark.parametrize("side", ["engine", "decode", "full decode"])
def test_what_only_has_a_rate_has_no_answers(side: str, tiny_model: ModelFolder, pictures: list[str]) -> None:
    with Process(Setup(side=side, model=str(tiny_model.path), batch_size=2)) as process:
        reply = process.ask(Ask(files=tuple(pictures), seconds=0.1))
    assert reply.images_per_second > 0
    assert not reply.answers


def classify_in_openvino(
    model: ModelFolder, files: list[str], mean: np.ndarray, cache: Path
) -> list[tuple[int, float]]:
    pytest.importorskip("openvino")
    # Without its telemetry, here too: the script itself imports OpenVINO as everybody does.
    import alexdeploy.engines.openvino_library  # noqa: F401
    from benchmarks import peer_openvino

    network = peer_openvino.compile_network(str(model.onnx_path()), str(cache))
    return [answer for _, *answer in peer_openvino.classify(network, mean, files)]


def classify_in_onnxruntime(
    model: ModelFolder, files: list[str], mean: np.ndarray, cache: Path
) -> list[tuple[int, float]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    from benchmarks import peer_onnxruntime

    session = onnxruntime.InferenceSession(model.onnx_path())
    return [answer for _, *answer in peer_onnxruntime.classify(session, mean, files, batch_size=3)]


@pytest.mark.parametrize("classify", [classify_in_openvino, classify_in_onnxruntime])
def test_the_scripts_of_others_give_our_answers_on_the_same_pixels(
    classify: Callable[..., list[tuple[int, float]]], tiny_model: ModelFolder, pictures: list[str], tmp_path: Path
) -> None:
    mean = np.load(tiny_model.mean_path).transpose(1, 2, 0)
    found, expected = classify(tiny_model, pictures, mean, tmp_path / "cache"), ours(tiny_model, pictures)
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [share for _, share in found] == pytest.approx([share for _, share in expected], rel=1e-4)


def test_a_start_is_measured_in_each_precision_that_the_folder_has(
    tiny_model: ModelFolder, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.startup._NUM_WARM", 1)
    assert cpu_precisions(tiny_model, has_bfloat16=False) == ("fp32", "fp16")
    assert cpu_precisions(tiny_model, has_bfloat16=True) == ("fp32", "fp16", "bf16")
    options = StartupOptions(photograph=pictures[0], precisions=("fp32",), num_rounds=1)
    found = measure_startup(tiny_model, tmp_path, options, silent)
    names = (SCRIPT, LEAN_SCRIPT, "alexdeploy fp32")
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == dict.fromkeys(names, 1)
    assert found["same_answers"] == dict.fromkeys(names, True)
    assert found["answers"]["alexdeploy fp32"] == ours(tiny_model, pictures[:1])[0]
    assert found["answers"][SCRIPT][1] == pytest.approx(found["answers"]["alexdeploy fp32"][1], abs=1e-4)


def test_a_part_without_its_option_is_left_out_with_a_word() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--parts", "loader"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "loader is left out: there is no --train-images" in run.stderr
