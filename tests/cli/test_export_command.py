from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from program import Run

from alexdeploy.core.artifacts import ModelFolder, sha256_file


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy export` in this process, where models/tiny is."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    return partial(program, "export")


def test_the_newest_model_is_exported_and_said_what_was_checked(run: Run, tiny_model: ModelFolder) -> None:
    for precision in ("fp32", "fp16"):
        tiny_model.onnx_path(precision).unlink()
    result = run("--fp16")
    assert result.exit_code == 0
    assert "model models/tiny\n" in result.stderr
    for precision in ("fp32", "fp16"):
        path = tiny_model.onnx_path(precision)
        assert f"wrote models/tiny/{path.name} (" in result.stderr
        assert f"sha256 {sha256_file(path)[:12]})" in result.stderr
    assert "6 of 6 answers the same" in result.stderr
    assert "next: alexdeploy predict images/ --tencrop --model models/tiny\n" in result.stderr


def test_fp16_is_written_only_when_it_is_asked_for(run: Run, tiny_model: ModelFolder) -> None:
    tiny_model.onnx_path("fp16").unlink()
    assert run("models/tiny").exit_code == 0
    assert not tiny_model.onnx_path("fp16").exists()


def test_json_says_what_was_written_and_how_it_was_checked(run: Run, tiny_model: ModelFolder) -> None:
    result = run("tiny", "--json")
    assert result.exit_code == 0
    (item,) = json.loads(result.stdout)
    assert item["sha256"] == sha256_file(tiny_model.onnx_path())
    assert Path(item["path"]).samefile(tiny_model.onnx_path())
    assert item["parity"]["same_answers"] == item["parity"]["num_images"] == 6


def test_an_unknown_model_is_a_model_error_that_names_those_there_are(run: Run) -> None:
    result = run("other")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == "error: no model at other nor at models/other\nModels here: tiny\n"


def test_no_model_at_all_is_a_model_error_that_says_how_to_get_one(
    run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    result = run()
    assert result.exit_code == 4
    assert "Train one: alexdeploy train\nor bring one: alexdeploy import FILE.onnx\n" in result.stderr


def test_damaged_weights_leave_the_old_graph(run: Run, tiny_model: ModelFolder) -> None:
    before = tiny_model.onnx_path().read_bytes()
    tiny_model.weights_path.write_bytes(tiny_model.weights_path.read_bytes()[:-1000])
    result = run("tiny")
    assert result.exit_code == 4
    assert "weights.safetensors" in result.stderr
    assert tiny_model.onnx_path().read_bytes() == before


def test_photographs_that_cannot_be_read_are_an_input_error(run: Run) -> None:
    Path("bad.jpg").write_bytes(b"no picture")
    result = run("tiny", "--images", "bad.jpg")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "bad.jpg" in result.stderr


def test_a_missing_pytorch_is_a_device_error_with_the_command_that_installs_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alexdeploy.export.onnx_export", None)
    result = run("tiny")
    assert result.exit_code == 5
    assert result.stderr.endswith("error: exporting weights needs PyTorch\npip install 'alexdeploy[train]'\n")
