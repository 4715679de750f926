from __future__ import annotations

import importlib.util
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
from made_engines import GPU, PLAN, make_engine
from program import Run

from alexdeploy.cli.build import see_only
from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.diagnosis.inspect import _device_for
from alexdeploy.engines.trt.files import BuildOptions, load_engine, sidecar_path
from alexdeploy.export.build import build_words, one_of_each_kind
from alexdeploy.placement.devices import Device, GpuSurvey

sys.path.insert(0, str(Path(__file__).parents[1] / "placement"))
from imagined import JETSON, jetson

has_tensorrt = all(importlib.util.find_spec(name) is not None for name in ("tensorrt", "pycuda"))
without_tensorrt = pytest.mark.skipif(has_tensorrt, reason="TensorRT is installed here")


@pytest.fixture
def run(program: Run, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`alexdeploy build` in this process, where models/tiny is, of an installation of its own."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tiny_model.path.parents[1])
    return partial(program, "build")


@pytest.fixture
def engine(run: Run, tiny_model: ModelFolder) -> Path:
    """A file in the place of an engine, signed by this installation."""
    return make_engine(tiny_model)


@without_tensorrt
@pytest.mark.parametrize("words", [(), ("--fp16",), ("--int8", "--views", "10"), ("--tencrop", "--max-batch", "4")])
def test_without_tensorrt_it_is_a_usage_error_that_says_what_to_install(run: Run, words: tuple[str, ...]) -> None:
    result = run("tiny", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "TensorRT cannot be used here: No module named" in result.stderr
    assert "pip install 'alexdeploy[gpu]'" in result.stderr
    assert "Without a GPU" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_model_is_a_usage_error(run: Run) -> None:
    assert run("other").exit_code == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--fp16", "--int8"), "fp16 and int8 are two engines"),
        (("--tencrop", "--views", "1"), "--tencrop means ten views, --views asks for 1"),
        (("--tactic-sources", " , "), "--tactic-sources names none"),
        (("--max-batch", "0"), "max-batch"),
        (("--workspace", "0"), "workspace"),
        (("--max-batch", "99999999999999999999"), "2147483647"),
        (("--workspace", "99999999999999999"), "1073741824"),
        (("--for", "sm86"), "--for needs --backend tensorrt-rtx"),
        (("--views", "3"), "views"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run: Run, words: tuple[str, ...], told: str) -> None:
    result = run("tiny", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("max_batch", 2**31, "2147483647"), ("max_batch", 10**30, "2147483647"), ("workspace_bytes", 2**64, str(2**50))],
)
def test_a_number_that_the_builder_cannot_hold_is_a_usage_error_in_python(name: str, value: int, most: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}; expected an integer from 1 to {most}"):
        BuildOptions(**{name: value})  # type: ignore[arg-type]


def gpu(index: int, capability: tuple[int, int]) -> Device:
    return Device(kind="cuda", index=index, uuid=f"GPU-{index}abc", name="GPU", compute_capability=capability)


GPUS = (gpu(0, (8, 6)), gpu(1, (9, 0)), gpu(2, (8, 6)))


@pytest.mark.parametrize("name", ["cuda:1", "1", "GPU-1abc", "gpu-1a"])
def test_a_gpu_is_named_as_devices_lists_it_and_cuda_sees_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    assert see_only(name, GpuSurvey(devices=GPUS)) == "cuda:0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1abc"


@pytest.mark.parametrize("name", ["cuda:0", JETSON])
def test_for_the_gpu_of_a_jetson_cuda_is_left_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert see_only(name, jetson()) == "cuda:0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize("name", ["cuda:3", "cpu", "all", "0,1", "GPU-", "GPU-9", ""])
def test_what_is_not_one_gpu_of_those_here_is_a_usage_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    with pytest.raises(UsageError, match=r"expected one of: cuda:0 \(GPU, GPU-0abc\), cuda:1") as caught:
        see_only(name, GpuSurvey(devices=GPUS))
    assert "alexdeploy devices" in str(caught.value.hint)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "before"


def test_where_the_driver_lists_no_gpu_the_name_is_left_to_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert see_only("cuda:0", GpuSurvey(problem="no NVML")) == "cuda:0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_export_builds_on_the_first_gpu_of_each_compute_capability() -> None:
    assert one_of_each_kind(GPUS) == [GPUS[0], GPUS[1]]


@without_tensorrt
def test_what_export_runs_is_a_build_command(run: Run, program: Run, tiny_model: ModelFolder) -> None:
    for num_views in (1, 10):
        result = program(*build_words(tiny_model, "fp16", num_views, GPUS[0]))
        assert result.exit_code == 2
        assert "TensorRT cannot be used here" in result.stderr


def test_a_gpu_is_called_by_its_number_in_what_export_runs(tiny_model: ModelFolder) -> None:
    # A Jetson's UUID is no name of a GPU for CUDA.
    words = build_words(tiny_model, "int8", 10, jetson().devices[0])
    assert words == ["build", "--int8", "--views", "10", "--devices", "cuda:0", "--", str(tiny_model.path)]


def test_an_engine_is_inspected_only_on_a_gpu_that_it_was_built_for() -> None:
    with pytest.raises(DeviceError, match=r"no GPU here has compute capability 9\.0"):
        _device_for([(9, 0)], GPUS[::2])
    assert _device_for([(9, 0)], ()) == "cuda:0"


def test_another_installations_engine_can_be_trusted_by_name(
    run: Run, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    result = run("--trust-engine", engine)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"is trusted from now on: fp16 for {GPU}" in result.stderr
    assert load_engine(engine)[1] == PLAN


def test_json_says_what_is_trusted(run: Run, engine: Path) -> None:
    result = run("--trust-engine", engine, "--json")
    found = json.loads(result.stdout)
    assert (found["path"], found["compute_capabilities"], found["version"]) == (str(engine), [[9, 0]], "10.16.1.11")


def test_a_damaged_engine_is_not_trusted(run: Run, engine: Path) -> None:
    engine.write_bytes(PLAN[:-1] + b"x")
    result = run("--trust-engine", engine)
    assert result.exit_code == 4
    assert "was changed or replaced" in result.stderr


@pytest.mark.parametrize(("name", "value"), [("key", "0" * 64), ("precision", "fp32"), ("builder", {})])
def test_an_engine_whose_key_is_not_that_of_its_sidecar_is_not_trusted(
    run: Run, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    sidecar = sidecar_path(engine)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_bytes()), name: value}))
    result = run("--trust-engine", engine)
    assert result.exit_code == 4
    assert "its key is not of its fields" in result.stderr


def test_an_engine_without_its_sidecar_is_not_trusted(run: Run, engine: Path) -> None:
    sidecar_path(engine).unlink()
    result = run("--trust-engine", engine)
    assert result.exit_code == 4
    assert "has no readable" in result.stderr


def test_inspect_reads_the_sidecar_of_an_engine(program: Run, engine: Path) -> None:
    result = program("inspect", engine, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["kind"] == "engine"
    facts = found["facts"]
    assert (facts["built for"], facts["TensorRT"], facts["trusted"]) == (f"{GPU}, sm_90", "10.16.1.11", "yes")
    assert facts["images in a batch"] == "1 to 32, best 32"
    assert found["provenance"]["graph_sha256"] == "a" * 64
    assert found["provenance"]["weights_sha256"] == "f" * 64


@without_tensorrt
def test_where_the_layers_of_an_engine_cannot_be_seen_there_is_no_table_of_them(program: Run, engine: Path) -> None:
    result = program("inspect", engine)
    assert result.exit_code == 0
    assert "layers " in result.stdout
    assert "not seen: " in result.stdout
    assert not [line for line in result.stdout.splitlines() if line.startswith(("layer ", "total"))]


def test_inspect_says_of_another_installations_engine_that_it_is_not_trusted(
    program: Run, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    result = program("inspect", engine)
    assert result.exit_code == 0
    assert "no: " in result.stdout
    assert "was built by another installation" in result.stdout


def test_inspect_of_an_engine_without_a_sidecar_is_a_model_error(program: Run, engine: Path) -> None:
    sidecar_path(engine).unlink()
    assert program("inspect", engine).exit_code == 4
