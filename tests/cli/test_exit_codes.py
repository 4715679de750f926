"""One exit code for one kind of failure, whichever command meets it: the table of docs/exit-codes.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from program import Result, Run

from alexdeploy.cli import app
from alexdeploy.core import errors
from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.model_folder import ModelFolder

_GRAPH = ("import", "models/tiny/model.onnx", "--name", "new", "--scale", "1", "--mean", "0,0,0")

_MISSING_PATHS = (
    ("prepare", "GONE", "out"),
    ("prepare", "data", "out", "--val", "GONE"),
    ("prepare", "data", "out", "--train-list", "GONE"),
    ("prepare", "data", "out", "--train-list", "list.txt", "--val-list", "GONE"),
    ("prepare", "data", "out", "--train-list", "list.txt", "--classes", "GONE"),
    ("prepare", "GONE", "out", "--train-list", "list.txt"),
    ("train", "GONE", "--name", "new"),
    ("train", "data", "--name", "new", "--val", "GONE"),
    ("train", "data", "--name", "new", "--recipe", "GONE"),
    ("train", "data", "--name", "new", "--recipe", "GONE.toml"),
    ("train", "data", "--name", "new", "--pretrained", "GONE"),
    ("explain", "GONE", "--model", "tiny"),
    ("explain", "data", "--model", "GONE"),
    ("calibrate", "GONE", "data"),
    ("calibrate", "tiny", "GONE"),
    ("calibrate", "tiny", "@GONE"),
    ("export", "GONE"),
    ("export", "tiny", "--images", "GONE"),
    ("export", "tiny", "--int8", "--calibrate", "GONE"),
    ("export", "tiny", "--int8", "--calibrate", "data", "--max-drop", "5", "--labelled", "GONE"),
    ("build", "GONE"),
    ("ensemble", "tiny", "GONE", "--name", "new"),
    ("triton", "GONE", "repository"),
    ("card", "GONE"),
    ("card", "tiny", "--images", "GONE"),
    ("card", "tiny", "--evaluation", "GONE"),
    ("card", "tiny", "--about", "GONE"),
    ("predict", "GONE.jpg"),
    ("predict", "GONE/"),
    ("predict", "GONE.zip"),
    ("predict", "GONE*.jpg"),
    ("predict", "@GONE.txt"),
    ("predict", "data", "GONE.jpg"),
    ("predict", "data", "--model", "GONE"),
    ("embed", "GONE.jpg"),
    ("embed", "data", "--model", "GONE"),
    ("similar", "data", "--in", "GONE.parquet"),
    ("serve", "GONE"),
    ("serve", "tiny", "--model", "GONE"),
    ("serve", "tiny", "--token-file", "GONE"),
    ("serve", "tiny", "--tls-cert", "GONE", "--tls-key", "GONE"),
    ("evaluate", "GONE"),
    ("evaluate", "data", "--model", "GONE"),
    ("evaluate", "data", "--labels", "GONE"),
    ("evaluate", "GONE", "--labels", "list.txt"),
    ("verify", "GONE"),
    ("verify", "tiny", "GONE"),
    ("verify", "tiny", "data", "GONE.jpg"),
    ("bench", "GONE"),
    ("bench", "tiny", "--images", "GONE"),
    ("inspect", "GONE"),
    ("inspect", "./GONE"),
    ("inspect", "GONE.onnx"),
    ("inspect", "GONE.safetensors"),
    ("inspect", "GONE.engine"),
    ("inspect", "GONE.toml"),
    ("figures", "GONE"),
    ("figures", "tiny", "--image", "GONE.jpg"),
    ("import", "GONE.onnx", "--recipe", "torchvision"),
    ("import", "GONE.onnx"),
    ("import", "GONE.pth"),
    ("import", "GONE.caffemodel"),
    ("import", "GONE.safetensors"),
    (*_GRAPH, "--labels", "GONE"),
    ("import", "models/tiny/model.onnx", "--name", "new", "--scale", "1", "--mean-image", "GONE"),
    ("import", "models/tiny/model.onnx", "--name", "new", "--recipe", "GONE"),
)

_MISSING_PACKAGES = (
    ("torch", ("train", "data")),
    ("torch", ("export", "tiny", "--overwrite")),
    ("torch", ("import", "weights.pth")),
    ("torch", ("predict", "data", "--backend", "torch")),
    ("torch", ("evaluate", "data", "--backend", "torch")),
    ("torch", ("verify", "tiny", "--backend", "torch")),
    ("torch", ("bench", "tiny", "--backend", "torch")),
    ("openvino", ("predict", "data", "--backend", "openvino")),
    ("openvino", ("predict", "data", "--backend", "openvino", "--devices", "cpu")),
    ("openvino", ("evaluate", "data", "--backend", "openvino")),
    ("openvino onnxruntime torch", ("predict", "data")),
    ("openvino onnxruntime torch", ("evaluate", "data")),
    ("onnxruntime", ("predict", "data", "--backend", "onnxruntime")),
    ("onnxruntime", ("predict", "data", "--placement", "towers", "--devices", "cpu,cpu")),
    ("onnxruntime", ("calibrate", "tiny", "data")),
    ("onnxruntime", ("export", "tiny", "--fp16")),
    ("onnxruntime", ("verify", "tiny", "--backend", "onnxruntime")),
    ("onnxruntime", _GRAPH),
    ("tensorrt", ("build", "tiny")),
    ("pycuda", ("build", "tiny")),
    ("tensorrt_rtx_bindings", ("build", "tiny", "--backend", "tensorrt-rtx")),
    ("tensorrt", ("predict", "data", "--backend", "tensorrt")),
    ("matplotlib", ("evaluate", "data", "--html", "page.html")),
    ("matplotlib", ("bench", "tiny", "--html", "page.html")),
    ("uvicorn", ("serve", "tiny")),
    ("pyarrow", ("predict", "data", "--output", "rows.parquet")),
)


@pytest.fixture(autouse=True)
def _workplace(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder: models/tiny, and data/ with its five classes, which list.txt names as well."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for index in range(10):
        path = Path("data") / f"class-{index % 5}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (25 * index, 100, 50)).save(path)
        lines.append(f"{path.relative_to('data').as_posix()} class-{index % 5}\n")
    Path("list.txt").write_text("".join(lines))
    torch.save({"fc.weight": torch.zeros(2, 2)}, "weights.pth")


def test_the_table_in_the_docs_is_that_of_the_classes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text()
    rows = {int(line.split()[1]): line for line in text.splitlines() if re.match(r"\| \d+ \|", line)}
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AlexDeployError)]
    assert {kind.exit_code for kind in classes} == {1, 2, 3, 4, 5, 6}
    assert rows.keys() == {0, 1, 2, 3, 4, 5, 6, 130, 141, 143}
    for kind in classes:
        if kind is not AlexDeployError:
            assert f"`{kind.__name__}`" in rows[kind.exit_code]


@pytest.mark.parametrize("words", _MISSING_PATHS, ids=" ".join)
def test_a_named_path_that_does_not_exist_is_a_usage_error(words: tuple[str, ...], program: Run) -> None:
    before = sorted(Path().rglob("*"))
    result = program(*words)
    assert result.exit_code == 2, result.stderr
    assert "GONE" in result.stderr
    assert result.stdout == ""
    assert sorted(Path().rglob("*")) == before


def test_each_command_that_reads_a_path_is_in_the_table_of_missing_paths() -> None:
    assert set(app._PANELS.keys()) - {words[0] for words in _MISSING_PATHS} == {"sample", "devices", "doctor"}


_WITHOUT = """
import contextlib, io, json, sys
# As importlib has it: a module that is None is one that is not there.
sys.modules.update(dict.fromkeys(sys.argv[1].split()))
from alexdeploy.cli.app import main
found = []
for words in json.loads(sys.argv[2]):
    sys.argv = ["alexdeploy", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stop:
            found.append((stop.code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""
"""Commands one after the other where packages are missing: what each ends with and prints."""


@pytest.fixture(scope="module")
def ran_without() -> dict[str, dict[tuple[str, ...], Result]]:
    return {}


@pytest.mark.parametrize(
    ("packages", "words"),
    _MISSING_PACKAGES,
    ids=[f"{packages}, {' '.join(words)}" for packages, words in _MISSING_PACKAGES],
)
def test_a_package_that_is_not_installed_is_a_usage_error_that_names_the_extra(
    packages: str, words: tuple[str, ...], ran_without: dict[str, dict[tuple[str, ...], Result]]
) -> None:
    if packages not in ran_without:
        # A process for all commands without the same packages.
        commands = [each for missing, each in _MISSING_PACKAGES if missing == packages]
        script = [sys.executable, "-c", _WITHOUT, packages, json.dumps(commands)]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        results = (Result(exit_code=code, stdout=out, stderr=err) for code, out, err in json.loads(done.stdout))
        ran_without[packages] = dict(zip(commands, results, strict=True))
    result = ran_without[packages][words]
    assert result.exit_code == 2, result.stderr
    assert "pip install 'alexdeploy[" in result.stderr or "is not installed" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_all_missing_inputs_are_named_before_anything_runs(program: Run) -> None:
    result = program("predict", "data", "one.jpg", "@two.txt", "three*.jpg", "--output", "rows.csv")
    assert result.exit_code == 2
    assert "error: one.jpg, @two.txt, three*.jpg do not exist" in result.stderr
    assert not list(Path().glob("rows.csv*"))


def test_what_a_list_names_and_is_not_there_is_a_row(program: Run) -> None:
    Path("inputs.txt").write_text("data/class-0/0.png\ngone.jpg\n")
    result = program("predict", "@inputs.txt")
    assert result.exit_code == 3
    assert [(row["source"], row["error"]) for row in result.rows] == [
        ("data/class-0/0.png", None),
        ("gone.jpg", "not found: no such file"),
    ]


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_that_leads_nowhere_is_there_and_is_a_row(program: Run) -> None:
    os.symlink("nowhere.jpg", "link.jpg")
    result = program("predict", "link.jpg")
    assert result.exit_code == 3
    assert [row["error"] for row in result.rows] == ["broken symbolic link to nowhere.jpg"]


def test_a_damaged_model_is_not_a_missing_one(program: Run) -> None:
    Path("models/tiny/spec.json").write_bytes(b"{")
    assert program("predict", "data").exit_code == 4
    Path("models/tiny/spec.json").unlink()
    assert program("predict", "data", "--model", "tiny").exit_code == 4
