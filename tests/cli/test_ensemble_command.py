"""`alexdeploy ensemble` as a user has it; what it makes is tested in tests/importing/test_ensemble.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from program import Run

from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder


def test_the_graphs_are_listed_and_the_members_are_shown(
    program: Run, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for graph in tiny_model.path.glob("model.fp16.onnx*"):
        graph.unlink()
    shutil.copytree("models/tiny", "models/other")
    made = program("ensemble", "tiny", "other", "--name", "both", "--json")
    assert made.exit_code == 0
    written = json.loads(made.stdout)
    assert (written["model"], written["members"]) == ("models/both", ["tiny", "other"])
    (graph,) = written["graphs"]
    assert (graph["path"], graph["precision"]) == ("models/both/model.onnx", "fp32")
    assert graph["sha256"] == sha256_file(Path("models/both/model.onnx"))
    assert made.stderr.endswith("wrote models/both: 2 members, model.onnx\nnext: alexdeploy verify models/both\n")
    shown = program("inspect", "both").stdout
    assert "member1: tiny" in shown
    assert "member2: other" in shown
    assert shown.count(sha256_file(Path("models/tiny/model.onnx"))[:12]) == 2
