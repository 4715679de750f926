from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from program import Run

from alexdeploy.core.model_folder import ModelFolder


@pytest.fixture
def run(program: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy inspect` in this process."""
    monkeypatch.delenv("COLUMNS", raising=False)
    return partial(program, "inspect")


def strict_json(text: str) -> dict[str, object]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    found: dict[str, object] = json.loads(text, parse_constant=refuse)
    return found


def test_json_has_the_papers_totals(run: Run) -> None:
    result = run("alexnet", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = strict_json(result.stdout)
    assert found["parameters"] == 60_965_224
    assert found["macs"] == 724_406_816
    assert found["neurons"] == sum(layer["neurons"] for layer in found["layers"]) == 659_272
    assert found["kind"] == "recipe"
    assert sum(layer["parameters"] for layer in found["layers"]) == 60_965_224


def test_the_default_is_alexnet_with_1000_classes(run: Run) -> None:
    assert run().stdout == run("alexnet", "--num-classes", "1000").stdout


def test_json_of_a_model_a_graph_and_weights_agree(run: Run, tiny_model: ModelFolder) -> None:
    targets = (tiny_model.path, tiny_model.onnx_path(), tiny_model.onnx_path("fp16"), tiny_model.weights_path)
    found = [strict_json(run(target, "--json").stdout) for target in targets]
    assert len({each["parameters"] for each in found}) == 1
    # Weights alone do not say how large the maps are.
    assert [each["neurons"] for each in found] == [found[0]["neurons"]] * 3 + [0]


def test_a_number_that_is_not_finite_is_null_in_json(run: Run) -> None:
    result = run("alexnet", "--set", "preprocessing.mean=[nan, 1.0, 2.0]", "--json")
    assert result.exit_code == 0
    assert strict_json(result.stdout)["preprocessing"]["mean"] == [None, 1.0, 2.0]


@pytest.mark.parametrize("recipe", ["alexnet", "caffe-alexnet", "one-tower", "torchvision"])
def test_a_recipe_fits_80_columns_with_a_line_for_each_layer(
    run: Run, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(recipe).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    table = lines[lines.index(next(line for line in lines if line.startswith("layer "))) :]
    names = [line.split()[0] for line in table[1:] if not line.startswith(" ")]
    assert names[:2] == ["conv1", "relu1"]
    layers = strict_json(run(recipe, "--json").stdout)["layers"]
    assert table.index(next(line for line in table if line.startswith("total"))) == len(layers) + 1


def test_the_table_reads_as_it_should(run: Run) -> None:
    lines = run("alexnet").stdout.splitlines()
    assert lines[0] == "recipe alexnet"
    assert "  neurons      659,272" in lines
    assert "conv1    conv        96x55x55       34,944  105,415,200  11x11 stride 4" in lines
    assert "norm1    lrn         96x55x55                            within each tower" in lines
    assert "total                           60,965,224  724,406,816" in lines
    assert "  per_tower  yes" in lines
    assert not any(line != line.rstrip() for line in lines)


def test_into_a_pipe_nothing_is_folded(run: Run) -> None:
    description = "torchvision's alexnet (one weird trick): 64-192-384-256-256 maps, no LRN, 224 views, RGB in [0, 1]"
    assert f"  description  {description}\n" in run("torchvision").stdout


def test_a_model_shows_its_provenance_and_files_with_hashes_in_one_piece(
    run: Run, tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(tiny_model.path).stdout
    assert re.search(r"^  model\.onnx +[\d,]+ bytes  sha256 [0-9a-f]{12}$", shown, re.MULTILINE)
    assert re.search(r"^  sha256 +[0-9a-f]{64}$", run(tiny_model.onnx_path()).stdout, re.MULTILINE)


def long_named_graph(path: Path, name: str) -> Path:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name=name),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"], name=f"{name}/pool"),
        helper.make_node("Flatten", ["pool"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1024])],
        [numpy_helper.from_array(np.zeros((1024, 3, 7, 7), np.float32), "w")],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def test_long_names_are_folded_and_numbers_are_not(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = long_named_graph(tmp_path / "long.onnx", "/features/features.0/block/0/sub_layer/Conv")
    shown = run(path).stdout
    table = shown[shown.index("\nlayer") :].splitlines()
    assert max(map(len, table)) <= 80
    folded = "".join(line.split(" ")[0] for line in table)
    assert "/features/features.0/block/0/sub_layer/Conv" in folded
    macs = 1024 * 3 * 7 * 7 * 58 * 58
    assert f"{1024 * 3 * 7 * 7:,}" in shown
    assert f"{macs:,}" in shown
    assert "…" not in shown


def test_names_from_a_file_cannot_steer_the_terminal_or_the_markup(run: Run, tmp_path: Path) -> None:
    shown = run(long_named_graph(tmp_path / "evil.onnx", "\x1b[2Jgone [red]now[/red]")).stdout
    assert "\x1b" not in shown
    assert "\\x1b[2Jgone [red]now[/red]" in shown


def test_json_keeps_such_names_as_they_are(run: Run, tmp_path: Path) -> None:
    found = strict_json(run(long_named_graph(tmp_path / "evil.onnx", "\x1b[2J ünï"), "--json").stdout)
    assert found["layers"][0]["name"] == "\x1b[2J ünï"


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (("alexnt",), 2, "did you mean 'alexnet'?"),
        (("alexnet", "--set", "architecture.tower=1"), 2, "did you mean 'towers'?"),
        (("nowhere.onnx",), 2, "nowhere.onnx does not exist"),
        (("nowhere.safetensors",), 2, "nowhere.safetensors does not exist"),
        (("nowhere/at/all",), 2, "nowhere/at/all does not exist"),
    ],
)
def test_what_cannot_be_inspected_is_an_error_with_its_exit_code(
    run: Run, args: tuple[str, ...], exit_code: int, message: str
) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr


def test_a_foreign_graph_without_names_shows_its_tensors(run: Run, tmp_path: Path) -> None:
    path = long_named_graph(tmp_path / "unnamed.onnx", "")
    model = onnx.load(path)
    model.graph.node[0].ClearField("name")
    path.write_bytes(model.SerializeToString())
    assert re.search(r"^conv +Conv +1024x58x58 ", run(path).stdout, re.MULTILINE)
