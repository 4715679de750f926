from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
from made_engines import GPU, PLAN, make_engine
from program import Run

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.engines.engine_files import load_engine, sidecar_path

has_tensorrt = all(importlib.util.find_spec(name) is not None for name in ("tensorrt", "pycuda"))
without_tensorrt = pytest.mark.skipif(has_tensorrt, reason="TensorRT is installed here")


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy build` in this process, where models/tiny is, of an installation of its own."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tiny_model.path.parents[1])
    return partial(program, "build")


@pytest.fixture
def engine(run: Run, tiny_model: ModelFolder) -> Path:
    """A file in the place of an engine, signed by this installation."""
    return make_engine(tiny_model)


@without_tensorrt
@pytest.mark.parametrize("words", [(), ("--fp16",), ("--int8", "--views", "10"), ("--tencrop", "--max-batch", "4")])
def test_without_tensorrt_it_is_a_device_error_that_says_what_to_install(run: Run, words: tuple[str, ...]) -> None:
    result = run("tiny", *words)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "error: TensorRT cannot be used here: No module named" in result.stderr
    assert "pip install 'alexdeploy[gpu]'" in result.stderr
    assert "Without a GPU no engine is needed" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_model_is_a_model_error(run: Run) -> None:
    assert run("other").exit_code == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--fp16", "--int8"), "--fp16 and --int8 are two engines"),
        (("--tencrop", "--views", "1"), "--tencrop means ten views, --views asks for 1"),
        (("--tactic-sources", " , "), "--tactic-sources names none"),
        (("--max-batch", "0"), "max-batch"),
        (("--workspace", "0"), "workspace"),
        (("--views", "3"), "views"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run: Run, words: tuple[str, ...], told: str) -> None:
    result = run("tiny", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_another_installations_engine_can_be_trusted_by_name(
    run: Run, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    result = run("--trust-engine", engine)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"is trusted from now on: fp16 for {GPU}" in result.stderr
    assert load_engine(engine)[1] == PLAN


def test_json_says_what_is_trusted(run: Run, engine: Path) -> None:
    result = run("--trust-engine", engine, "--json")
    found = json.loads(result.stdout)
    assert (found["path"], found["compute_capability"], found["tensorrt"]) == (str(engine), [9, 0], "10.16.1.11")


def test_a_damaged_engine_is_not_trusted(run: Run, engine: Path) -> None:
    engine.write_bytes(PLAN[:-1] + b"x")
    result = run("--trust-engine", engine)
    assert result.exit_code == 4
    assert "was changed or exchanged" in result.stderr


def test_an_engine_without_its_sidecar_is_not_trusted(run: Run, engine: Path) -> None:
    sidecar_path(engine).unlink()
    result = run("--trust-engine", engine)
    assert result.exit_code == 4
    assert "has no readable" in result.stderr


def test_inspect_reads_the_sidecar_of_an_engine(program: Run, engine: Path) -> None:
    result = program("inspect", engine, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["kind"] == "engine"
    facts = found["facts"]
    assert (facts["built for"], facts["TensorRT"], facts["trusted"]) == (f"{GPU}, sm_90", "10.16.1.11", "yes")
    assert facts["images in a batch"] == "1 to 32, best 32"
    assert found["provenance"]["graph_sha256"] == "a" * 64


def test_inspect_says_of_another_installations_engine_that_it_is_not_trusted(
    program: Run, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    result = program("inspect", engine)
    assert result.exit_code == 0
    assert "no: " in result.stdout
    assert "was built by another installation" in result.stdout


def test_inspect_of_an_engine_without_a_sidecar_is_a_model_error(program: Run, engine: Path) -> None:
    sidecar_path(engine).unlink()
    assert program("inspect", engine).exit_code == 4
