"""Tests of a GPU are skipped where there is none, and nowhere else."""

from __future__ import annotations

import shutil
from pathlib import Path

import gpu_here
import pytest


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU; what is put into its PATH is there."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_here.glob, "glob", lambda pattern: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put_driver(machine: Path) -> None:
    (machine / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (machine / "nvidia-smi").chmod(0o755)
    assert shutil.which("nvidia-smi")


def test_a_driver_that_fails_is_a_gpu_that_must_work(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not gpu_here.has_gpu()
    put_driver(machine)
    assert gpu_here.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_here.has_gpu(), "it was asked for"


def test_tensorrt_must_work_where_it_is_installed_and_there_is_a_gpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_driver(machine)
    monkeypatch.setattr(gpu_here.importlib.util, "find_spec", lambda name: None if name == "pycuda" else name)
    assert gpu_here.why_no_tensorrt() == "pycuda is not installed"
    monkeypatch.setattr(gpu_here.importlib.util, "find_spec", lambda name: name)
    assert gpu_here.why_no_tensorrt() is None
    (machine / "nvidia-smi").unlink()
    assert gpu_here.why_no_tensorrt() == "there is no NVIDIA GPU"
