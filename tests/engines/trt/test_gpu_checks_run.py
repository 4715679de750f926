"""`make test-gpu` without a GPU: tests/gpu_checks.py over the packages in fake_gpu, where ONNX Runtime computes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_engine_checks import OF_AN_ENGINE
from gpu_model_checks import OF_A_MODEL

from alexdeploy.core.model_folder import ModelFolder

TESTS = Path(__file__).parents[2]
FAKE_GPU = TESTS / "placement" / "fake_gpu"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(int8_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command with a root that has a tiny model in the place of the one that it makes."""
    root = tmp_path / "root"
    shutil.copytree(int8_model.path, root / "models" / "alexnet-small")
    paths = (str(FAKE_GPU), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000000-0000-0000-0000-000000000000")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(TESTS / "gpu_checks.py"), "--small", "--root", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run


def _rows(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Check -> result, of the rows for the table."""
    cells = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("|")]
    assert all(len(each) == 5 for each in cells), result.stdout
    return {name: found for _, _, _, name, found in cells}


@pytest.mark.slow
def test_every_check_that_needs_no_other_package_runs_and_finds_nothing(run: Run) -> None:
    # `decoders` needs a real GPU, where its package is installed.
    names = ",".join(name for name in (*OF_AN_ENGINE, *OF_A_MODEL) if name != "decoders")
    result = run("--precisions", "fp16", "--views", "10", "--num-images", "20", "--max-batch", "2", "--checks", names)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = _rows(result)
    checks = ("build", "reuse", "layers", "answers", "tails", "speed")
    of_engines = {f"alexnet-small fp16, 10 views: {check}" for check in checks}
    of_a_model = {"wrong-key", "memory", "reopened", "replicas", "end-to-end", "full", "huge"}
    assert set(rows) == {"alexnet-small made", *of_engines, *of_a_model}
    assert {found.split(":")[0] for found in rows.values()} == {"ok"}
    assert "5 Half; LRN: 2 Float" in rows["alexnet-small fp16, 10 views: layers"]
    assert rows["end-to-end"].startswith("ok: ")
    assert "over 20 files" in rows["end-to-end"]
    assert "skipped: pins: TensorRT 10.16.1.11 is strongly typed" in result.stdout

    again = run("--precisions", "fp16", "--views", "10", "--checks", "build", "--max-batch", "2")
    assert "by an earlier call" in _rows(again)["alexnet-small fp16, 10 views: build"]


def test_after_the_time_no_check_begins(run: Run) -> None:
    result = run("--seconds", "0", "--checks", "build,full", "--views", "1", "--precisions", "fp32")
    assert result.returncode == 0, result.stderr
    assert _rows(result) == {}
    assert "not begun: alexnet-small fp32, 1 views: build\nnot begun: full\n" in result.stdout
    assert "0 failed, 0 skipped, 3 not begun" in result.stdout


def test_a_check_that_fails_is_a_row_too_and_the_next_one_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "root" / "models" / "alexnet-small" / "model.fp16.onnx").write_bytes(b"not a graph")
    result = run("--checks", "build", "--views", "1", "--precisions", "fp16,fp32")
    assert result.returncode == 1
    rows = _rows(result)
    assert rows["alexnet-small fp16, 1 views: build"].startswith("FAILED: ModelError: ")
    assert rows["alexnet-small fp32, 1 views: build"].startswith("ok: ")


def test_a_check_that_does_not_exist_is_refused_before_any_work(run: Run) -> None:
    result = run("--checks", "build,everything")
    assert result.returncode == 2
    assert "everything: unknown; known are build, reuse, layers" in result.stderr
