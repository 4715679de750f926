from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from program import Run

from alexdeploy.core.processors import available_processors
from alexdeploy.placement import devices
from alexdeploy.placement.devices import Device, GpuSurvey

GPU = Device(
    kind="cuda",
    index=0,
    uuid="GPU-8932f937",
    name="NVIDIA [bold]H100",
    compute_capability=(9, 0),
    free_bytes=80_000_000_000,
    total_bytes=85_000_000_000,
    driver="580.65.06",
)


@pytest.fixture
def run(program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy devices` in this process and in a folder with an engine for compute capability 9.0."""
    engines = tmp_path / "models" / "alexnet" / "engines"
    engines.mkdir(parents=True)
    (engines / "h100-fp16.json").write_text('{"compute_capability": [9, 0], "tensorrt": "10.16.1"}')
    (engines / "broken.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return partial(program, "devices")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (GPU, replace(GPU, index=1, uuid="GPU-1111", compute_capability=(8, 0), free_bytes=None, total_bytes=None))
    survey = GpuSurvey(devices=gpus, driver="580.65.06", cuda_version=(13, 0), notes=("GPU 2 does not answer",))
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
def test_gpus_are_listed_with_the_engines_that_fit(run: Run) -> None:
    result = run()
    assert result.exit_code == 0
    head, cpu, first, second = result.stdout.splitlines()
    assert "UUID" in head
    assert cpu.startswith("cpu ")
    for cell in ("cuda:0", "NVIDIA [bold]H100", "9.0", "80.0 GB", "85.0 GB", "580.65.06", "GPU-8932f937"):
        assert cell in first
    assert first.endswith("alexnet/h100-fp16")
    assert second.endswith("GPU-1111")
    assert result.stderr == "warning: GPU 2 does not answer\n"


@pytest.mark.usefixtures("two_gpus")
def test_json_has_bytes_and_paths(run: Run) -> None:
    found = json.loads(run("--json").stdout)
    assert [row["device"] for row in found["devices"]] == ["cpu", "cuda:0", "cuda:1"]
    assert found["devices"][1]["free_bytes"] == 80_000_000_000
    assert found["devices"][1]["compute_capability"] == [9, 0]
    assert found["devices"][1]["engines"] == [str(Path("models/alexnet/engines/h100-fp16.json"))]
    assert found["devices"][2]["engines"] == []
    assert (found["driver"], found["cuda_version"], found["gpu_problem"]) == ("580.65.06", [13, 0], None)


def test_json_without_a_gpu_says_why_on_stdout_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "survey_gpus", lambda: GpuSurvey(problem="the driver is gone"))
    result = run("--json")
    assert json.loads(result.stdout)["gpu_problem"] == "the driver is gone"
    assert "No GPU: the driver is gone" in result.stderr
