"""Fixtures for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import make_model

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.export.export import ExportOptions, export_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def _exported(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = make_model(tmp_path_factory.mktemp("models") / "tiny")
    export_model(folder, ExportOptions(fp16=True))
    return folder


@pytest.fixture
def tiny_model(_exported: ModelFolder, tmp_path: Path) -> ModelFolder:
    """A two-tower AlexNet of 5 classes, exported to FP32 and FP16, in a folder of the test's own: models/tiny."""
    path = tmp_path / "models" / "tiny"
    shutil.copytree(_exported.path, path)
    return ModelFolder(path)
