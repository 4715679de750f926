"""The command that comes next: it names what is there, and can be pasted into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

import command_options
import pytest
from program import Run

from alexdeploy.cli import output
from alexdeploy.core.model_folder import ModelFolder


def next_words(stderr: str) -> list[str]:
    """The words of the command that stderr ends with, as a shell would split them."""
    line = stderr.splitlines()[-1]
    assert line.startswith("next: alexdeploy ")
    words = shlex.split(line.removeprefix("next: alexdeploy "))
    command_options.commands()[words[0]].make_context(words[0], words[1:])
    return words


def test_a_folder_with_a_space_is_one_word(program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = program("sample", "my $set", "--num-train", "1", "--num-val", "1")
    assert next_words(result.stderr) == ["train", "my $set", "--recipe", "alexnet-quarter"]
    prepared = program("prepare", "my $set", "a packed set")
    assert next_words(prepared.stderr) == ["train", "a packed set"]


def test_photographs_are_named_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output.next_with_images(Path("models/my model"), "--precision", "int8")
    assert next_words(capsys.readouterr().err) == ["verify", "models/my model"]
    Path("images").mkdir()
    output.next_with_images(Path("models/my model"), "--precision", "int8")
    assert next_words(capsys.readouterr().err) == [
        *("predict", "images/", "--tencrop", "--model", "models/my model", "--precision", "int8")
    ]


def test_the_next_step_after_an_export_runs(
    program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model.path.rename(tiny_model.path.with_name("a model"))
    monkeypatch.chdir(path.parents[1])
    words = next_words(program("export").stderr)
    assert words == ["verify", "models/a model"]
    assert program(*words, "--backend", "onnxruntime", "--num-images", "2").exit_code == 0


def test_the_command_in_a_hint_is_quoted_as_well(
    program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_model.path.rename(tiny_model.path.with_name("a model"))
    monkeypatch.chdir(path.parents[1])
    (path / "model.fp16.onnx").unlink()
    result = program("predict", "x.jpg", "--model", "a model", "--precision", "fp16")
    assert result.exit_code == 2
    Path("x.jpg").touch()
    result = program("predict", "x.jpg", "--model", "a model", "--precision", "fp16", "--backend", "onnxruntime")
    assert result.exit_code == 4
    words = shlex.split(result.stderr.splitlines()[-1].partition("alexdeploy ")[2])
    assert words == ["export", "models/a model", "--fp16"]
    assert program(*words).exit_code == 0
