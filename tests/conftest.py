"""Fixtures for all tests."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from colour import ColourEngine
from helpers import TINY, make_model, write_pictures
from hypothesis import settings
from store_fixtures import bucket, impatient, web  # noqa: F401

from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.quantize.quantize import Budget

# On a busy machine an example may take longer than Hypothesis' 200 ms.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# Some tests import ONNX Runtime themselves.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# A shell that puts a job into the background has it ignore Ctrl-C, and what it starts as well; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(scope="session")
def _exported(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    # tests/mutation.py runs a few tests thousands of times, each time in a process of its own.
    kept = os.environ.get("KEPT_TEST_MODELS")
    path = (Path(kept) if kept else tmp_path_factory.mktemp("models")) / "tiny"
    if path.is_dir():
        return ModelFolder(path)
    folder = make_model(path)
    export_model(folder, ExportOptions(fp16=True))
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ModelFolder]]:
    """(recipe, *overrides, fp16=False) -> a tiny model, exported once for all tests: to read, not to change."""
    contents: dict[Path, dict[Path, str]] = {}

    @functools.cache
    def export(recipe: str, *overrides: str, fp16: bool = False) -> ModelFolder:
        folder = make_model(tmp_path_factory.mktemp("exported") / recipe, recipe, (*TINY, *overrides))
        export_model(folder, ExportOptions(fp16=fp16))
        contents[folder.path] = _hashes(folder.path)
        return folder

    yield export
    for path, before in contents.items():
        assert _hashes(path) == before, f"a test has changed {path}, which is for all of them"


def _hashes(folder: Path) -> dict[Path, str]:
    return {path: sha256_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tiny_model(_exported: ModelFolder, tmp_path: Path) -> ModelFolder:
    """A two-tower AlexNet of 5 classes, exported to FP32 and FP16, in a folder of the test's own: models/tiny."""
    path = tmp_path / "models" / "tiny"
    shutil.copytree(_exported.path, path)
    return ModelFolder(path)


@pytest.fixture(scope="session")
def _quantized(_exported: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantized")
    shutil.copytree(_exported.path, root / "models" / "tiny")
    write_pictures(root / "pictures", 40)
    before = Path.cwd()
    os.chdir(root)
    try:
        options = ExportOptions(int8=True, calibrate="pictures", budget=Budget(max_drop=100.0))
        export_model(ModelFolder(Path("models/tiny")), options)
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def int8_model(_quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """The same with INT8, in a working folder of the test's own: models/tiny, calibration/, and 40 pictures/."""
    root = tmp_path / "work"
    shutil.copytree(_quantized, root)
    monkeypatch.chdir(root)
    return ModelFolder(Path("models/tiny"))


@pytest.fixture
def colour_engine() -> type[ColourEngine]:
    return ColourEngine


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test ends with the threads it began with."""
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("alexdeploy-")]


@pytest.fixture(autouse=True)
def signals_are_handled_as_before() -> Iterator[None]:
    """A handler that a test or fixture leaves could end the process in another test, which sends the signal."""
    before = _signal_handling()
    try:
        assert before == (signal.default_int_handler, signal.SIG_DFL, -1)
        yield
        assert _signal_handling() == before
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _signal_handling() -> tuple[object, ...]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
