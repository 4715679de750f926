from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from helpers import write_pictures
from program import Run

from alexdeploy.core.model_folder import ModelFolder


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy figures` in this process, where models/tiny is."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    return partial(program, "figures")


def test_figures_go_to_a_folder_of_the_models_name(run: Run) -> None:
    result = run("tiny")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "wrote figures/tiny/index.html and 2 pictures\n"
    again = run("tiny")
    assert again.exit_code == 2
    assert "figures/tiny already holds figures\nReplace them: --overwrite" in again.stderr


def test_json_names_the_files(run: Run) -> None:
    image = write_pictures(Path("pictures"), 1) / "000.png"
    result = run("--model", "tiny", "--image", image, "-o", "out", "--json", "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["path"] == "out"
    assert sorted(found["files"]) == sorted(path.name for path in Path("out").iterdir())


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (("tiny", "-o", "file"), 2, "--output file is a file; expected a folder"),
        (("tiny", "-o", "s3://bucket/figures"), 2, "figures are written to a local folder"),
        (("tiny", "-o", "file/figures"), 6, "could not be written: Not a directory"),
        (("one-tower", "--image", "file"), 2, "one-tower is a recipe, which has no weights"),
        (("tiny", "--image", "file"), 3, "file: the file is empty"),
        (("tiny", "--image", "models"), 2, "--image models is a folder; expected a photograph"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_with_its_exit_code(
    run: Run, words: tuple[str, ...], exit_code: int, told: str
) -> None:
    Path("file").write_text("")
    result = run(*words)
    assert result.exit_code == exit_code, result.stderr
    assert told in result.stderr
    assert not Path("figures").exists()
