"""Fixtures for all tests."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

# Before PyTorch is imported: its threads wait for each other by spinning, on processors that other tests run on.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Some tests import ONNX Runtime themselves.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import pytest
from colour import ColourEngine
from helpers import TINY, make_model, write_pictures
from hypothesis import settings
from shared import answered_once, checked_once, made_once, shared_folder, traced_once
from store_fixtures import bucket, impatient, web  # noqa: F401

from alexdeploy.benchmark import roofline, rounds, statistics
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export import engine_check, export, onnx_export
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.quantize import quantize
from alexdeploy.export.quantize.quantize import Budget
from alexdeploy.export.quantize.sensitivity import Evaluator
from alexdeploy.importing import ensemble, onnx
from alexdeploy.training import report, run

# On a busy machine an example may take longer than Hypothesis' 200 ms.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# A shell that puts a job into the background has it ignore Ctrl-C, and what it starts as well; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look at it again and again, a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(scope="session", autouse=True)
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PyTorch's exporter runs once for each architecture, two seconds each, unless a test calls it itself."""
    with pytest.MonkeyPatch.context() as patch:
        folder = shared_folder(tmp_path_factory, "traced")
        patch.setattr(onnx_export, "network_to_onnx", traced_once(folder, onnx_export.network_to_onnx))
        yield


@pytest.fixture(scope="session", autouse=True)
def _checked_once() -> Iterator[None]:
    """A graph that many tests export is run once in every backend, and once for each layer that INT8 may cost."""
    with pytest.MonkeyPatch.context() as patch:
        check = checked_once(export.check_engines)
        for module in (export, onnx, ensemble):
            patch.setattr(module, "check_engines", check)
        patch.setattr(Evaluator, "_run", answered_once(Evaluator._run))
        yield


@pytest.fixture(scope="session", autouse=True)
def _power_stays_on() -> Iterator[None]:
    """No test cuts the power, so none in this process need wait until the disk has what it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Runs of training draw no report, two thirds of their time, but where a test looks at it: see `drawn_curves`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", lambda folder, summary: None)
        yield


@pytest.fixture(scope="module")
def drawn_curves() -> Iterator[None]:
    """For the rest of the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", report.write_report)
        yield


@pytest.fixture(scope="session", autouse=True)
def _checked_with_one_view() -> Iterator[None]:
    """Exports and imports try each backend with one view, not with ten as well, unless a test asks for both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_check, "_NUM_VIEWS", (1,))
        yield


@pytest.fixture(scope="module")
def checked_with_ten_views(_checked_with_one_view: None) -> Iterator[None]:
    """For the rest of the module, as for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_check, "_NUM_VIEWS", (1, 10))
        yield


@pytest.fixture(scope="session")
def _exported(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    def make(path: Path) -> None:
        export_model(make_model(path / "tiny"), ExportOptions(fp16=True))

    # tests/mutation.py runs a few tests thousands of times, each time in a process of its own.
    kept = os.environ.get("KEPT_TEST_MODELS")
    folder = Path(kept) if kept else shared_folder(tmp_path_factory, "models")
    return ModelFolder(made_once(folder / "exported", make) / "tiny")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ModelFolder]]:
    """(recipe, *overrides, fp16=False) -> a tiny model, exported once for all tests: to read, not to change."""
    contents: dict[Path, dict[Path, str]] = {}

    @functools.cache
    def export(recipe: str, *overrides: str, fp16: bool = False) -> ModelFolder:
        def make(path: Path) -> None:
            folder = make_model(path / recipe, recipe, (*TINY, *overrides))
            export_model(folder, ExportOptions(fp16=fp16))

        key = sha256(repr((recipe, overrides, fp16)).encode()).hexdigest()
        folder = ModelFolder(made_once(shared_folder(tmp_path_factory, "exported") / key, make) / recipe)
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
    def make(root: Path) -> None:
        shutil.copytree(_exported.path, root / "models" / "tiny")
        write_pictures(root / "pictures", 40)
        with pytest.MonkeyPatch.context() as patch:
            # Ranges lie in the working folder.
            patch.chdir(root)
            options = ExportOptions(int8=True, calibrate="pictures", budget=Budget(max_drop=100.0))
            export_model(ModelFolder(Path("models/tiny")), options)

    return made_once(shared_folder(tmp_path_factory, "models") / "quantized", make)


def _at_work(made: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    shutil.copytree(made, root)
    monkeypatch.chdir(root)
    return ModelFolder(Path("models/tiny"))


@pytest.fixture
def int8_model(_quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """The same with INT8, in a working folder of the test's own: models/tiny, calibration/, and 40 pictures/."""
    return _at_work(_quantized, tmp_path / "work", monkeypatch)


@pytest.fixture(scope="session")
def _narrow(_quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        shutil.copytree(_quantized, root)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            options = ExportOptions(int8=True, int8_weights=7, budget=Budget(max_drop=100.0))
            export_model(ModelFolder(Path("models/tiny")), options)

    return made_once(shared_folder(tmp_path_factory, "models") / "narrow", make)


@pytest.fixture
def narrow_model(_narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """`int8_model` with weights of 7 bits: with 8, OpenVINO's sums saturate on processors without VNNI."""
    return _at_work(_narrow, tmp_path / "work", monkeypatch)


@pytest.fixture
def any_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 may change every answer. With a limit that a test names, each layer is measured in INT8 alone as well."""
    monkeypatch.setattr(quantize, "DEFAULT_MAX_DROP", 100.0)


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


@pytest.fixture
def quick_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench whose matrix products are of 64 channels, not 1,024, that does not pause, and takes 0.05 s at a time."""
    monkeypatch.setattr(roofline, "_CHANNELS", 64)
    monkeypatch.setattr(rounds, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(statistics, "_MOST_SLICE_SECONDS", 0.05)
