from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from program import Run

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.serving.triton import verify


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy triton` in this process, where models/tiny is."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    return partial(program, "triton")


def test_a_repository_and_its_second_version(run: Run) -> None:
    first = run("tiny", "repository", "--tencrop", "--instances", "2")
    assert (first.exit_code, first.stdout) == (0, "")
    assert "wrote repository: tiny_graph, tiny_decode, tiny, version 1\n" in first.stderr
    again = run("tiny", "repository", "--tencrop", "--instances", "2")
    assert again.exit_code == 2
    assert "Write it beside: --version 2" in again.stderr
    words = ("tiny", "repository", "--tencrop", "--instances", "2", "--version", "2", "--precision", "fp16", "--json")
    found = json.loads(run(*words).stdout)
    assert (found["path"], found["version"], found["is_verified"]) == ("repository", 2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tiny",), "expected one DIR"),
        (("tiny", "r", "--gpus", "0,one"), "--gpus 0,one: expected numbers"),
        (("tiny", "r", "--gpus", "0", "--backend", "python"), "python runs on the CPU in Triton"),
        (("tiny", "r", "--backend", "tensorrt-rtx"), "Triton has no backend for engines of TensorRT-RTX"),
        (("tiny", "r", "--backend", "torch"), "torch"),
    ],
)
def test_wrong_use_is_a_usage_error_before_anything_is_written(run: Run, words: tuple[str, ...], told: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not Path("r").exists()


def test_a_model_without_the_graph_or_engine_is_told_how_to_make_it(run: Run) -> None:
    result = run("tiny", "r", "--precision", "int8")
    assert (result.exit_code, "alexdeploy export models/tiny --int8" in result.stderr) == (4, True)
    result = run("tiny", "r", "--backend", "tensorrt", "--tencrop")
    assert result.exit_code == 4
    assert "alexdeploy build models/tiny --views 10\n" in result.stderr


def test_a_repository_that_cannot_be_written_is_an_output_error(run: Run) -> None:
    Path("file").write_text("")
    result = run("tiny", "file/repository")
    assert result.exit_code == 6
    assert "file/repository could not be written" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_disk_that_is_full_leaves_nothing_or_what_was_there(run: Run) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert run("tiny", "there").exit_code == 0
    before = sorted(Path().rglob("*"))
    # Python ignores SIGXFSZ; the graph has more bytes than that, and every other file fewer.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        results = [run("tiny", "new"), run("tiny", "there", "--version", "2")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for result, name in zip(results, ("new", "there"), strict=True):
        assert (result.exit_code, f"{name} could not be written: File too large" in result.stderr) == (6, True)
    assert sorted(Path().rglob("*")) == before


def test_it_is_said_that_nothing_could_be_verified(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "find_spec", lambda name: None)
    result = run("tiny", "r", "--no-jpeg", "-q")
    assert result.exit_code == 0
    assert "warning: the configurations were not parsed as Triton does" in result.stderr
