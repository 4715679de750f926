"""What is chosen on machines that are imagined, for a model that is there; nothing is opened."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from imagined import JETSON, RTX, TENSORRT, jetson, machine, put_engine
from patience import wait_for

from alexdeploy.core.errors import DeviceError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines import base
from alexdeploy.engines.base import Backend
from alexdeploy.placement import engine_fit
from alexdeploy.placement import place as placing
from alexdeploy.placement.devices import GpuSurvey
from alexdeploy.placement.frames import Job
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import Placed, place
from alexdeploy.placement.pool import Pool
from alexdeploy.placement.process import ReplicaProcess
from alexdeploy.placement.split_engine import SplitEngine

H100, A100, RTX_4090 = (9, 0), (8, 0), (8, 9)
BROKEN = GpuSurvey(problem="NVML: Driver Not Loaded", hint="sudo modprobe nvidia", is_fault=True)
LAPTOP = GpuSurvey(problem="NVML: Shared Library Not Found", hint="Install a driver.")


class Here:
    """`place` on a machine with a survey of its GPUs and the backends for them."""

    def __init__(self, folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch

    def place(
        self, survey: GpuSurvey, backends: tuple[Backend, ...] = ("tensorrt", "onnxruntime"), **request: Any
    ) -> Placed:
        self._monkeypatch.setattr(placing, "survey_gpus", lambda: survey)
        self._monkeypatch.setattr(placing, "_gpu_backends", lambda: backends)
        self._monkeypatch.setattr(placing, "check_installed", lambda backend: None)
        return place(self.folder, PredictOptions(**{"precision": "fp16", "num_views": 10, **request}))


@pytest.fixture
def here(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """models/tiny, TensorRT 10.16, and an installation of its own."""
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    versions = {"tensorrt": TENSORRT, "tensorrt-rtx": RTX["version"]}
    monkeypatch.setattr(engine_fit, "backend_version", versions.__getitem__)
    return Here(tiny_model, monkeypatch)


def rows(placed: Placed) -> list[tuple[str, str, int]]:
    assert isinstance(placed.engine, Pool)
    replicas = [supervisor.replica for supervisor in placed.engine._supervisors]
    return [(str(each.device), each.backend, each.options.batch_size) for each in replicas]


def test_each_gpu_runs_tensorrt_where_an_engine_fits_it_with_the_greatest_batch_of_that_engine(here: Here) -> None:
    put_engine(here.folder, capability=H100, max_batch=16)
    put_engine(here.folder, capability=H100, max_batch=48)
    put_engine(here.folder, capability=A100, max_batch=8)
    placed = here.place(machine(H100, A100, H100), batch_size="auto")
    assert rows(placed) == [("cuda:0", "tensorrt", 48), ("cuda:1", "tensorrt", 8), ("cuda:2", "tensorrt", 48)]
    assert placed.notes == ()


def test_a_gpu_without_an_engine_runs_the_next_backend_and_the_note_has_the_command_that_builds_one(
    here: Here,
) -> None:
    put_engine(here.folder, capability=H100)
    placed = here.place(machine(H100, A100), batch_size="auto")
    assert rows(placed) == [("cuda:0", "tensorrt", 32), ("cuda:1", "onnxruntime", 256)]
    (note,) = placed.notes
    assert note.startswith("cuda:1 runs onnxruntime instead of TensorRT: ")
    assert "it is for sm_90, this device is sm_80. Build one there: " in note
    assert note.endswith(f"alexdeploy build {here.folder.path} --fp16 --views 10 --max-batch 32 --devices cuda:1")


def test_a_gpu_without_an_engine_and_without_another_backend_is_left_out_or_an_error_if_it_is_named(
    here: Here,
) -> None:
    put_engine(here.folder, capability=H100)
    placed = here.place(machine(H100, A100), backends=("tensorrt",))
    assert rows(placed) == [("cuda:0", "tensorrt", 8)]
    assert placed.notes[0].startswith("cuda:1 is skipped: ")
    assert "alexdeploy build" in placed.notes[0]
    with pytest.raises(ModelError, match=r"cuda:1 \(NVIDIA A100\): .* it is for sm_90, this device is sm_80") as caught:
        here.place(machine(H100, A100), backends=("tensorrt",), devices="0,1")
    assert "alexdeploy build" in str(caught.value.hint)


ALL: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx", "onnxruntime")


def test_an_rtx_card_runs_tensorrt_rtx_before_tensorrt_and_no_other_gpu_does(here: Here) -> None:
    put_engine(here.folder, capability=RTX_4090, max_batch=16)
    put_engine(here.folder, capability=H100, max_batch=16)
    placed = here.place(machine(RTX_4090, H100), backends=ALL)
    assert rows(placed) == [("cuda:0", "tensorrt", 8), ("cuda:1", "tensorrt", 8)]
    put_engine(here.folder, max_batch=24, **RTX)
    placed = here.place(machine(RTX_4090, H100), backends=ALL, batch_size="auto")
    assert rows(placed) == [("cuda:0", "tensorrt-rtx", 24), ("cuda:1", "tensorrt", 16)]
    assert placed.notes == ()
    assert rows(here.place(machine(RTX_4090), backend="tensorrt", backends=ALL)) == [("cuda:0", "tensorrt", 8)]


def test_an_engine_for_rtx_cards_does_not_depend_on_the_driver(here: Here) -> None:
    put_engine(here.folder, **RTX)
    older = dataclasses.replace(machine(RTX_4090), cuda_version=(12, 9))
    assert rows(here.place(older, backends=ALL)) == [("cuda:0", "tensorrt-rtx", 8)]


def test_without_an_engine_for_it_the_note_has_the_command_that_builds_one_anywhere(here: Here) -> None:
    placed = here.place(machine(RTX_4090), backends=ALL)
    assert rows(placed) == [("cuda:0", "onnxruntime", 8)]
    (note,) = placed.notes
    assert note.startswith(f"cuda:0 runs onnxruntime instead of TensorRT-RTX: {here.folder.path} has no TensorRT-RTX")
    assert note.endswith("--fp16 --views 10 --max-batch 32 --backend tensorrt-rtx --for sm89")


def test_tensorrt_rtx_by_name_on_another_gpu_is_an_error(here: Here) -> None:
    put_engine(here.folder, **RTX)
    with pytest.raises(DeviceError, match=r"tensorrt-rtx does not run on compute capability 9\.0") as caught:
        here.place(machine(H100), backends=ALL, backend="tensorrt-rtx", devices="0")
    assert "--backend tensorrt" in str(caught.value.hint)


def test_an_engine_for_other_rtx_cards_says_for_which(here: Here) -> None:
    put_engine(here.folder, **{**RTX, "compute_capabilities": ((7, 5), (8, 6))})
    with pytest.raises(ModelError, match="it is for sm_75 and sm_86, this device is sm_89"):
        here.place(machine(RTX_4090), backends=ALL, backend="tensorrt-rtx")


@pytest.mark.parametrize("devices", [None, "0"])
def test_tensorrt_by_name_and_no_engine_is_an_error_that_says_how_to_build_one(here: Here, devices: str | None) -> None:
    with pytest.raises(ModelError, match="has no TensorRT engine") as caught:
        here.place(machine(H100), backend="tensorrt", devices=devices)
    assert "--fp16 --views 10 --max-batch 32" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": "10.15.0"}, "it was built with TensorRT 10.15.0, here is 10.16.1.11"),
        ({"cuda": "12.2"}, "it was built with CUDA 12.2, here is 13.0"),
        ({"precision": "fp32"}, "its precision is fp32, requested fp16"),
        ({"num_views": 1}, "it averages 1 views, requested 10"),
        ({"weights_sha256": "a" * 64}, "it was built from weights aaaaaaaaaaaa"),
        ({"max_batch": 4}, "it takes 1 to 4 images, requested 8"),
    ],
)
def test_an_engine_that_does_not_fit_in_any_part_is_not_chosen(here: Here, changes: dict[str, Any], told: str) -> None:
    put_engine(here.folder, **changes)
    placed = here.place(machine(H100))
    assert rows(placed) == [("cuda:0", "onnxruntime", 8)]
    assert told in placed.notes[0]


def test_an_engine_that_is_not_trusted_is_not_chosen_and_the_note_says_how_to_trust_it(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_engine(here.folder)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    placed = here.place(machine(H100))
    assert rows(placed) == [("cuda:0", "onnxruntime", 8)]
    assert "another installation" in placed.notes[0]
    assert f"alexdeploy build --trust-engine {path}" in placed.notes[0]
    assert not (tmp_path / "other").exists(), "to look at an engine makes no key"


def test_an_engine_that_came_without_weights_and_graphs_is_chosen(here: Here) -> None:
    put_engine(here.folder)
    for path in (here.folder.weights_path, *here.folder.path.glob("*.onnx")):
        path.unlink()
    assert rows(here.place(machine(H100))) == [("cuda:0", "tensorrt", 8)]


def test_a_graph_that_cannot_be_read_is_no_reason_to_stop_here(here: Here) -> None:
    put_engine(here.folder)
    here.folder.onnx_path("fp16").write_bytes(b"no graph")
    placed = here.place(machine(H100))
    assert rows(placed) == [("cuda:0", "onnxruntime", 8)]
    assert "model.fp16.onnx" in placed.notes[0]


def test_gpus_of_one_kind_share_an_engine(here: Here) -> None:
    put_engine(here.folder)
    assert rows(here.place(machine(H100, H100), devices="1,1,0")) == [
        ("cuda:1", "tensorrt", 8),
        ("cuda:1", "tensorrt", 8),
        ("cuda:0", "tensorrt", 8),
    ]


@pytest.fixture
def no_cpu_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all backends TensorRT alone is installed."""
    monkeypatch.setattr(base, "is_installed", lambda backend: backend == "tensorrt")


@pytest.mark.usefixtures("no_cpu_backend")
def test_a_machine_with_tensorrt_needs_no_backend_for_the_cpu(here: Here) -> None:
    put_engine(here.folder, capability=H100)
    assert rows(here.place(machine(H100), backends=("tensorrt",))) == [("cuda:0", "tensorrt", 8)]
    assert rows(here.place(machine(H100), backends=("tensorrt",), devices="0")) == [("cuda:0", "tensorrt", 8)]


@pytest.mark.usefixtures("no_cpu_backend")
@pytest.mark.parametrize(
    ("survey", "devices", "told"),
    [
        (LAPTOP, None, "no backend that can run this model is installed"),
        (machine(H100), "cpu", "no backend that can run this model is installed"),
        (machine(H100), "0,cpu", r"^cpu \(.*\): no backend for the CPU is installed"),
        # The engine is for another kind of GPU.
        (machine(A100), None, r"^cpu.*: no backend for the CPU is installed; cuda:0: .* it is for sm_90"),
    ],
)
def test_without_any_backend_for_the_cpu_whoever_needs_it_hears_of_it(
    here: Here, survey: GpuSurvey, devices: str | None, told: str
) -> None:
    put_engine(here.folder, capability=H100)
    with pytest.raises((UsageError, ModelError), match=told) as caught:
        here.place(survey, backends=("tensorrt",), devices=devices)
    assert caught.value.hint


def test_a_jetson_is_placed_by_whatever_name_it_has(here: Here) -> None:
    put_engine(here.folder, capability=(8, 7))
    for devices in (None, "all", "0", "cuda:0", JETSON):
        assert rows(here.place(jetson(), devices=devices)) == [("cuda:0", "tensorrt", 8)]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="Linux tells the environment of a process")
@pytest.mark.parametrize(
    ("survey", "expected"), [(machine(H100), b"CUDA_VISIBLE_DEVICES=GPU-0"), (jetson(), b"CUDA_VISIBLE_DEVICES=before")]
)
def test_the_process_of_a_replica_sees_its_gpu_alone_and_a_jetsons_as_it_is(
    here: Here, survey: GpuSurvey, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_engine(here.folder, capability=H100)
    put_engine(here.folder, capability=(8, 7))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    engine = here.place(survey).engine
    assert isinstance(engine, Pool)
    replica = engine._supervisors[0].replica
    job = Job(folder=os.fsencode(here.folder.path), backend=replica.backend, options=replica.options)
    process = ReplicaProcess(job, replica)
    try:
        environ = Path(f"/proc/{process._process.pid}/environ")
        # Empty for a moment after the program was started.
        wait_for(environ.read_bytes)
        environment = environ.read_bytes().split(b"\0")
    finally:
        process.end("seen")
        process._clear_away()
    assert [each for each in environment if each.startswith(b"CUDA_VISIBLE_DEVICES=")] == [expected]


def test_a_driver_that_does_not_work_is_told_where_the_cpu_is_used_instead(here: Here) -> None:
    placed = here.place(BROKEN)
    assert placed.notes == ("Using the CPU, since no GPU can be used: NVML: Driver Not Loaded. sudo modprobe nvidia",)
    assert not isinstance(placed.engine, Pool)


@pytest.mark.parametrize(
    ("survey", "request_"),
    [
        (LAPTOP, {}),
        (LAPTOP, {"devices": "all"}),
        (BROKEN, {"devices": "cpu"}),
        (BROKEN, {"devices": "cpu,cpu"}),
        (BROKEN, {"backend": "openvino"}),
        (dataclasses.replace(machine(H100), notes=("GPU 1 does not answer",)), {"devices": "cpu"}),
    ],
)
def test_who_has_no_gpu_or_wants_none_hears_of_none(here: Here, survey: GpuSurvey, request_: dict[str, Any]) -> None:
    assert here.place(survey, **request_).notes == ()


@pytest.mark.parametrize("more", [{}, {"placement": "towers"}])
def test_all_devices_of_a_machine_whose_driver_does_not_work_is_an_error(here: Here, more: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match='devices="all": no GPU can be used: NVML: Driver Not Loaded'):
        here.place(BROKEN, devices="all", **more)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("survey", "devices"), [(LAPTOP, None), (BROKEN, None), (LAPTOP, "all")])
def test_tensorrt_by_name_and_no_gpu_is_an_error_that_says_why_there_is_none(
    here: Here, survey: GpuSurvey, devices: str | None, backend: str
) -> None:
    with pytest.raises(DeviceError, match=f"none was found: {survey.problem}") as caught:
        here.place(survey, backend=backend, devices=devices)
    assert caught.value.hint == survey.hint


def test_what_the_driver_says_of_some_gpus_is_told_with_the_others(here: Here) -> None:
    survey = dataclasses.replace(machine(H100), notes=("GPU 1 does not answer",))
    assert "GPU 1 does not answer" in here.place(survey, backends=("onnxruntime",)).notes


def split_devices(placed: Placed) -> str:
    assert isinstance(placed.engine, SplitEngine)
    return placed.engine.info.device


@pytest.mark.parametrize(
    ("survey", "backends", "devices", "notes"),
    [
        (LAPTOP, (), "cpu,cpu", ("uses the CPU twice, with half of the threads each, since there is no GPU",)),
        (BROKEN, (), "cpu,cpu", ("Driver Not Loaded", "uses the CPU twice")),
        (machine(H100), ("tensorrt",), "cpu,cpu", ("since onnxruntime-gpu is not installed for cuda:0",)),
        (machine(H100, A100, H100), ("onnxruntime",), "cuda:0,cuda:1", ("uses cuda:0 and cuda:1; --devices selects",)),
    ],
)
def test_a_placement_without_devices_says_what_it_takes(
    here: Here, survey: GpuSurvey, backends: tuple[Backend, ...], devices: str, notes: tuple[str, ...]
) -> None:
    placed = here.place(survey, backends=backends, placement="towers")
    assert split_devices(placed) == devices
    for note, words in zip(placed.notes, notes, strict=True):
        assert words in note


def test_a_placement_on_one_gpu_asks_for_the_second_device(here: Here) -> None:
    with pytest.raises(UsageError, match=r"needs two devices, found one GPU, cuda:0 \(NVIDIA H100\)") as caught:
        here.place(machine(H100), placement="pipeline")
    assert "--devices 0,cpu" in str(caught.value.hint)


def test_a_placement_on_devices_that_were_named_says_nothing(here: Here) -> None:
    placed = here.place(machine(H100), placement="pipeline", devices="0,cpu")
    assert (split_devices(placed), placed.notes) == ("cuda:0,cpu", ())


@pytest.mark.parametrize("devices", [None, "cpu", "cpu,cpu"])
def test_a_placement_has_no_replicas(here: Here, devices: str | None) -> None:
    with pytest.raises(UsageError, match=r'placement="towers" runs one network .* replicas=2') as caught:
        here.place(LAPTOP, placement="towers", devices=devices, replicas=2)
    assert caught.value.hint == "Remove one of them."
