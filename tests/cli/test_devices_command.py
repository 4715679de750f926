from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from program import Run

from alexdeploy.core import packages
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.engines import base
from alexdeploy.placement import devices, engine_fit
from alexdeploy.placement.devices import GpuSurvey

sys.path.insert(0, str(Path(__file__).parents[1] / "placement"))
from imagined import RTX, TENSORRT, machine, put_engine


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy devices` in this process and in the folder of models/tiny, of an installation of its own."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(engine_fit, "backend_version", lambda backend: TENSORRT)
    monkeypatch.chdir(tiny_model.path.parents[1])
    monkeypatch.delenv("COLUMNS", raising=False)
    return partial(program, "devices")


@pytest.fixture
def folder(tiny_model: ModelFolder) -> ModelFolder:
    """The same model as the command sees it."""
    return ModelFolder(tiny_model.path.relative_to(tiny_model.path.parents[1]))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 whose name is also Rich's markup, and an A100."""
    survey = machine((9, 0), (8, 0))
    first = replace(survey.devices[0], name="NVIDIA [bold]H100")
    survey = replace(survey, devices=(first, survey.devices[1]), notes=("GPU 2 does not answer",))
    monkeypatch.setattr(devices, "survey_gpus", lambda: survey)


@pytest.mark.skipif(bool(devices.survey_gpus().devices), reason="this machine has a GPU")
def test_without_a_gpu_there_is_the_cpu_and_the_reason(run: Run) -> None:
    result = run()
    head, row = result.stdout.splitlines()
    assert head.split() == ["device", "name", "free", "total", "processors"]
    assert row.startswith("cpu ")
    assert row.endswith(f" {available_processors()}")
    assert result.exit_code == 0
    assert result.stderr.startswith("No GPU: ")
    assert "alexdeploy doctor" in result.stderr


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_listed_with_the_engines_that_fit(run: Run, folder: ModelFolder) -> None:
    engine = put_engine(folder, capability=(9, 0))
    result = run()
    assert result.exit_code == 0
    head, cpu, first, second = result.stdout.splitlines()
    assert "UUID" in head
    assert cpu.startswith("cpu ")
    for cell in ("cuda:0", "NVIDIA [bold]H100", "9.0", "80.0 GB", "85.0 GB", "580.65.06", "GPU-0"):
        assert cell in first
    assert first.endswith(f"tiny/{engine.stem}")
    assert second.endswith("GPU-1")
    assert result.stderr == "warning: GPU 2 does not answer\n"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "10.15.0"}, "it was built with TensorRT 10.15.0, here is 10.16.1.11"),
        ({"graph_sha256": "a" * 64}, "it was built from graph aaaaaaaaaaaa, the model's is "),
        ({"weights_sha256": "a" * 64}, "it was built from weights aaaaaaaaaaaa, the model's are "),
        (
            {"compute_capabilities": ((7, 5),), "cuda": "12.2"},
            "it is for sm_75, this device is sm_90; it was built with CUDA",
        ),
    ],
)
def test_of_an_engine_that_fits_no_gpu_it_says_why(
    run: Run, folder: ModelFolder, changes: dict[str, object], told: str
) -> None:
    engine = put_engine(folder, **changes)
    result = run()
    assert result.exit_code == 0
    assert engine.stem not in result.stdout
    assert f"No GPU here runs {engine}: {told}" in result.stderr


@pytest.mark.usefixtures("two_gpus")
def test_an_engine_of_another_installation_is_listed_as_not_trusted_here(
    run: Run, folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = put_engine(folder)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    result = run()
    assert engine.stem not in result.stdout
    assert f"No GPU here runs {engine}: it is not trusted here; it was built by another installation" in result.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("two_gpus")
def test_an_engine_without_a_readable_sidecar_is_told_of_and_hides_no_other(run: Run, folder: ModelFolder) -> None:
    engine, damaged = put_engine(folder), put_engine(folder, num_views=1)
    damaged.with_suffix(".json").write_text("{")
    result = run()
    assert engine.stem in result.stdout
    assert f"No GPU here runs {damaged}: " in result.stderr
    assert "is damaged" in result.stderr


@pytest.mark.usefixtures("two_gpus")
def test_json_has_bytes_paths_and_reasons(run: Run, folder: ModelFolder) -> None:
    engine, other = put_engine(folder), put_engine(folder, cuda="12.2")
    found = json.loads(run("--json").stdout)
    assert [row["device"] for row in found["devices"]] == ["cpu", "cuda:0", "cuda:1"]
    assert found["devices"][1]["free_bytes"] == 80_000_000_000
    assert found["devices"][1]["compute_capability"] == [9, 0]
    assert found["devices"][1]["engines"] == [str(engine)]
    assert found["devices"][2]["engines"] == []
    assert found["engines_for_no_device"] == {str(other): ["it was built with CUDA 12.2, here is 13.0"]}
    assert (found["driver"], found["cuda_version"], found["gpu_problem"]) == ("580.65.06", [13, 0], None)


def test_an_engine_for_rtx_cards_is_listed_at_the_card_where_tensorrt_rtx_is_installed(
    run: Run, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"tensorrt": TENSORRT, "tensorrt-rtx": RTX["version"]}
    monkeypatch.setattr(engine_fit, "backend_version", versions.__getitem__)
    monkeypatch.setattr(packages, "backend_version", versions.__getitem__)
    monkeypatch.setattr(base, "is_installed", lambda backend: True)
    monkeypatch.setattr(devices, "survey_gpus", lambda: machine((8, 9), (9, 0)))
    engine = put_engine(folder, **RTX)
    found = json.loads(run("--json").stdout)
    assert [row["engines"] for row in found["devices"]] == [[], [str(engine)], []]
    assert found["tensorrt_rtx"] == "1.7.1.116"
    monkeypatch.setenv("COLUMNS", "200")
    header, _, card, other = run().stdout.splitlines()[:4]
    assert "TensorRT-RTX" in header
    assert "1.7.1.116" in card
    assert engine.stem in card
    assert "1.7.1.116" not in other


def test_without_a_gpu_nobody_hears_of_engines(run: Run, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put_engine(folder)
    monkeypatch.setattr(devices, "survey_gpus", lambda: GpuSurvey(problem="there is none"))
    assert run().stderr == "No GPU: there is none. More: alexdeploy doctor\n"


def test_a_driver_that_does_not_work_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "survey_gpus", lambda: GpuSurvey(problem="the driver is gone", is_fault=True))
    assert run().stderr.startswith("warning: No GPU: the driver is gone.")


def test_json_without_a_gpu_says_why_on_stdout_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "survey_gpus", lambda: GpuSurvey(problem="the driver is gone"))
    result = run("--json")
    assert json.loads(result.stdout)["gpu_problem"] == "the driver is gone"
    assert "No GPU: the driver is gone" in result.stderr
