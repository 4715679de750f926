"""Which engine a machine of imagined GPUs would run, and what it costs to tell."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Literal

import pytest
from imagined import TENSORRT, machine, put_engine
from made_engines import GPU

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.trt.choose import choose_engine, engine_requirements
from alexdeploy.engines.trt.files import read_record, trust_engine, write_engine
from alexdeploy.placement import engine_fit
from alexdeploy.placement.devices import Device, GpuSurvey
from alexdeploy.placement.engine_fit import local_engines, match_engines
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.plan import NoEngine

H100, A100 = (9, 0), (8, 0)


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT, and an installation of its own."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(engine_fit, "backend_version", lambda backend: TENSORRT)


def put_foreign(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_batch: int) -> Path:
    """An engine that another installation signed."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    path = put_engine(folder, max_batch=max_batch)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    return path


def found(
    folder: ModelFolder, survey: GpuSurvey, batch_size: int | Literal["auto"]
) -> dict[tuple[int, int], int | NoEngine]:
    return local_engines(folder, survey, PredictOptions(precision="fp16", num_views=10, batch_size=batch_size))


def opened(folder: ModelFolder, batch_size: int, gpu: str) -> Path:
    """What the process of a replica chooses."""
    wanted = engine_requirements(
        folder,
        precision="fp16",
        num_views=10,
        batch_size=batch_size,
        version=TENSORRT,
        compute_capability=H100,
        cuda="13.0",
    )
    return choose_engine(folder, wanted, gpu=gpu)


@pytest.mark.parametrize("foreign_batch", [16, 64])
@pytest.mark.parametrize("batch_size", [8, "auto"])
def test_an_engine_that_is_not_trusted_does_not_hide_one_that_is(
    tiny_model: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    foreign_batch: int,
    batch_size: int | Literal["auto"],
) -> None:
    own = put_engine(tiny_model, max_batch=32)
    foreign = put_foreign(tiny_model, monkeypatch, tmp_path, foreign_batch)
    assert own != foreign
    assert found(tiny_model, machine(H100), batch_size) == {H100: 32}
    assert opened(tiny_model, 32 if batch_size == "auto" else batch_size, "NVIDIA H100") == own


def test_an_engine_of_another_installation_counts_once_it_is_trusted(
    tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_engine(tiny_model, max_batch=32)
    foreign = put_foreign(tiny_model, monkeypatch, tmp_path, 64)
    trust_engine(foreign)
    assert found(tiny_model, machine(H100), "auto") == {H100: 64}
    assert opened(tiny_model, 64, "NVIDIA H100") == foreign


def test_the_engine_built_on_a_gpu_of_the_same_name_comes_before_one_of_its_capability(
    tiny_model: ModelFolder,
) -> None:
    put_engine(tiny_model, max_batch=16)
    own = put_engine(tiny_model, max_batch=32)
    _rename(own, "NVIDIA H100 PCIe")
    put_engine(tiny_model, max_batch=64)
    survey = _named("NVIDIA H100 PCIe")
    assert found(tiny_model, survey, "auto") == {H100: 32}
    assert opened(tiny_model, 8, "NVIDIA H100 PCIe") == own
    assert found(tiny_model, _named(GPU), "auto") == {H100: 64}


def test_of_two_gpus_of_one_capability_the_smaller_engine_decides(tiny_model: ModelFolder) -> None:
    _rename(put_engine(tiny_model, max_batch=32), "NVIDIA H100 PCIe")
    put_engine(tiny_model, max_batch=64)
    assert found(tiny_model, _named("NVIDIA H100 PCIe", GPU), "auto") == {H100: 32}


def test_the_folder_in_a_command_is_quoted(tiny_model: ModelFolder) -> None:
    folder = ModelFolder(tiny_model.path.rename(tiny_model.path.with_name("my model")))
    told = found(folder, machine(H100), 8)[H100]
    assert isinstance(told, NoEngine)
    assert shlex.split(told.hint.partition(": ")[2])[:3] == ["alexdeploy", "build", str(folder.path)]


def test_the_command_is_for_the_first_gpu_of_a_capability(tiny_model: ModelFolder) -> None:
    put_engine(tiny_model, capability=H100)
    told = found(tiny_model, machine(H100, A100, A100), 8)[A100]
    assert isinstance(told, NoEngine)
    assert told.hint.endswith(f"alexdeploy build {tiny_model.path} --fp16 --views 10 --max-batch 32 --devices cuda:1")


def test_the_graph_of_a_precision_is_read_once_for_all_its_engines(
    tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    wanted_of = engine_fit.engine_requirements

    def count(*args: object, **options: object) -> object:
        asked.append(options["precision"])
        return wanted_of(*args, **options)  # type: ignore[arg-type]

    paths = [put_engine(tiny_model, num_views=num_views, max_batch=8) for num_views in (1, 5, 10)]  # type: ignore[arg-type]
    paths += [put_engine(tiny_model, precision="fp32")]
    monkeypatch.setattr(engine_fit, "engine_requirements", count)
    judged = {each.path: each.devices for each in match_engines(tiny_model, machine(H100))}
    assert set(judged) == set(paths)
    assert all(judged.values()), "each fits"
    assert sorted(map(str, asked)) == ["fp16", "fp32"]
    asked.clear()
    tiny_model.onnx_path("fp16").write_bytes(b"")
    told = [each.reasons for each in match_engines(tiny_model, machine(H100)) if "fp16" in each.path.name]
    assert len(told) == 3
    assert all(told)
    assert asked.count("fp16") == 1, "nor is a graph that is damaged read for each"


def _named(*names: str) -> GpuSurvey:
    survey = machine(*[H100] * len(names))
    gpus: list[Device] = [dataclasses.replace(gpu, name=name) for gpu, name in zip(survey.devices, names, strict=True)]
    return dataclasses.replace(survey, devices=tuple(gpus))


def _rename(path: Path, gpu: str) -> None:
    """As if it had been built on that GPU, by this installation."""
    write_engine(path, path.read_bytes(), dataclasses.replace(read_record(path), gpu=gpu))
