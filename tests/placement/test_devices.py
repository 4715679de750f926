from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from imagined import JETSON

from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.trt import cuda_driver
from alexdeploy.placement import devices
from alexdeploy.placement.devices import (
    Device,
    PhysicalGpu,
    cpu_device,
    environment_for,
    find_devices,
    survey_gpus,
    visible_devices,
)

CPU = Device(kind="cpu", index=0, name="a CPU")


def gpu(index: int, uuid: str, capability: tuple[int, int] = (9, 0)) -> Device:
    return Device(kind="cuda", index=index, uuid=uuid, name=f"GPU {uuid}", compute_capability=capability)


# The first two share a beginning; MIG is on in the fourth, with two instances.
GPUS = (
    PhysicalGpu(uuid="GPU-8932f937-d72c", devices=(gpu(0, "GPU-8932f937-d72c"),)),
    PhysicalGpu(uuid="GPU-8932aaaa-0000", devices=(gpu(1, "GPU-8932aaaa-0000"),)),
    PhysicalGpu(uuid="GPU-1111", devices=(gpu(2, "GPU-1111"),)),
    PhysicalGpu(uuid="GPU-2222", devices=(gpu(3, "MIG-aaaa"), gpu(3, "MIG-bbbb"))),
)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, ["GPU-8932f937-d72c", "GPU-8932aaaa-0000", "GPU-1111", "MIG-aaaa", "MIG-bbbb"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", ["GPU-8932f937-d72c"]),
        ("2,1", ["GPU-1111", "GPU-8932aaaa-0000"]),
        ("0,2,-1,1", ["GPU-8932f937-d72c", "GPU-1111"]),
        ("0,9,1", ["GPU-8932f937-d72c"]),
        (" 1 , 0 ", ["GPU-8932aaaa-0000", "GPU-8932f937-d72c"]),
        ("0,0", ["GPU-8932f937-d72c"]),
        ("GPU-1111", ["GPU-1111"]),
        ("gpu-8932F", ["GPU-8932f937-d72c"]),
        ("GPU-8932", []),
        ("GPU-1,GPU-8932aaaa-0000", ["GPU-1111", "GPU-8932aaaa-0000"]),
        ("1111", []),
        ("3", ["MIG-aaaa", "MIG-bbbb"]),
        ("GPU-2222", ["MIG-aaaa", "MIG-bbbb"]),
        ("MIG-b,0", ["MIG-bbbb", "GPU-8932f937-d72c"]),
    ],
)
def test_a_mask_names_gpus_as_in_cuda(mask: str | None, expected: list[str]) -> None:
    assert [device.uuid for device in visible_devices(GPUS, mask)] == expected


def test_visible_devices_are_counted_again() -> None:
    assert [device.index for device in visible_devices(GPUS, "2,3,0")] == [0, 1, 2, 3]


HERE = (CPU, *(gpu(index, uuid) for index, uuid in enumerate(("GPU-8932f937", "GPU-8932aaaa", "MIG-cccc"))))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("cpu", [0]),
        ("cpu,cpu", [0, 0]),
        ("0", [1]),
        ("cuda:1", [2]),
        ("1,0", [2, 1]),
        ("0,0,cpu", [1, 1, 0]),
        ("all", [1, 2, 3]),
        ("all,cpu", [1, 2, 3, 0]),
        ("GPU-8932a", [2]),
        ("gpu-8932F937", [1]),
        ("MIG-cc , CPU", [3, 0]),
    ],
)
def test_devices_are_found_by_name(names: str, expected: list[int]) -> None:
    assert find_devices(names, HERE) == tuple(HERE[place] for place in expected)


@pytest.mark.parametrize("name", ["0", "cuda:0", "all", JETSON, JETSON.upper()])
def test_a_jetson_is_named_by_its_number_or_its_whole_uuid(name: str) -> None:
    here = (CPU, gpu(0, JETSON))
    assert find_devices(name, here) == here[1:]
    with pytest.raises(UsageError):
        find_devices(JETSON[:8], here)


def test_a_process_sees_one_gpu_by_its_uuid_and_a_jetsons_as_it_is() -> None:
    assert environment_for(gpu(1, "GPU-8932f937")) == {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}
    assert environment_for(gpu(0, "MIG-cccc")) == {"CUDA_VISIBLE_DEVICES": "MIG-cccc"}
    assert environment_for(gpu(0, JETSON)) == {}


def test_cuda_takes_no_mask_with_the_uuid_of_a_jetson() -> None:
    jetson = PhysicalGpu(uuid=JETSON, devices=(gpu(0, JETSON),))
    assert visible_devices([jetson], JETSON) == ()
    assert visible_devices([jetson], "0") == jetson.devices


@pytest.mark.parametrize(
    ("uuid", "expected"),
    [
        ("GPU-54D0709B-558d-5a59-0000-000000000001", 1),
        ("MIG-54d0709b-558d-5a59-0000-000000000001", 1),
        ("54d0709b-558d-5a59-0000-000000000001", 1),
    ],
)
def test_only_the_prefix_of_a_uuid_is_cut_off(uuid: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ["a" * 32, "54d0709b558d5a590000000000000001"]
    monkeypatch.setattr(cuda_driver, "cuda_uuids", lambda: seen)
    assert cuda_driver.cuda_ordinal(uuid) == expected


def test_a_jetson_is_the_only_gpu_whatever_cuda_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "cuda_uuids", lambda: ["a" * 32])
    assert cuda_driver.cuda_ordinal(JETSON) == 0
    with pytest.raises(DeviceError, match="CUDA does not see GPU GPU-1"):
        cuda_driver.cuda_ordinal("GPU-1")


def test_all_is_the_cpu_where_there_is_no_gpu() -> None:
    assert find_devices("all", (CPU,)) == (CPU,)


@pytest.mark.parametrize("names", ["3", "cuda:7", "GPU-8932", "GPU-9", "cuda", "", "0,,1", "-1", "8932f937", "GPU"])
def test_a_device_that_is_not_there_is_an_error_that_lists_what_is(names: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_devices(names, HERE)
    assert f"--devices {names}: found " in caught.value.text
    assert "one of: cpu, 0 (GPU GPU-8932f937, GPU-8932f937), 1 (" in caught.value.text
    assert "alexdeploy devices" in caught.value.text


def test_the_error_says_why_there_is_no_gpu() -> None:
    with pytest.raises(UsageError, match=r"found '0', expected all or one of: cpu\. No GPU: the driver is gone\."):
        find_devices("0", (CPU,), gpu_problem="the driver is gone")


@pytest.mark.parametrize("names", ["all", "cpu,ALL"])
def test_all_is_an_error_where_there_should_be_gpus(names: str) -> None:
    with pytest.raises(DeviceError, match=f'devices="?{names}"?: no GPU can be used: the driver is gone'):
        find_devices(names, (CPU,), "the driver is gone", is_fault=True)
    assert find_devices("cpu", (CPU,), "the driver is gone", is_fault=True) == (CPU,)


def test_the_cpu_of_this_machine_is_a_device_with_its_memory() -> None:
    device = cpu_device()
    assert (device.kind, str(device), device.uuid) == ("cpu", "cpu", "")
    assert device.name
    assert device.num_processors == available_processors()
    if sys.platform == "linux":
        assert device.free_bytes is not None
        assert device.total_bytes is not None
        assert 0 < device.free_bytes <= device.total_bytes
        assert device.total_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_survey_finds_gpus_or_says_why_not() -> None:
    survey = survey_gpus()
    assert bool(survey.devices) != bool(survey.problem)
    for device in survey.devices:
        assert device.uuid.startswith(("GPU-", "MIG-")) or len(survey.devices) == 1


class FakeNvml(ModuleType):
    """The package pynvml on an imagined machine: `gpus` by UUID, of which those with a "?" do not answer."""

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"NVML error {value}")
            self.value = value

    def __init__(self, gpus: tuple[str, ...] = (), fails_with: int | None = None) -> None:
        super().__init__("pynvml")
        self.lacks: tuple[str, ...] = ()
        self.gpus, self.fails_with = gpus, fails_with
        self.nvmlInit, self.nvmlShutdown = self._init, lambda: None
        self.nvmlDeviceGetCount, self.nvmlDeviceGetUUID = lambda: len(gpus), str
        self.nvmlDeviceGetHandleByIndex = self._handle

    def _init(self) -> None:
        if self.fails_with is not None:
            raise self.NVMLError(self.fails_with)

    def _handle(self, index: int) -> str:
        if "?" in self.gpus[index]:
            raise self.NVMLError(15)
        return self.gpus[index]

    def __getattr__(self, name: str) -> object:
        if not name.startswith("nvml") or name in self.lacks:
            raise AttributeError(name)

        def unsupported(*_: object) -> None:
            raise self.NVMLError(3)

        return unsupported


@pytest.mark.parametrize(
    ("nvml", "has_driver", "mask", "problem", "is_fault"),
    [
        # A laptop without a GPU, with and without the package; then a driver whose library or package is missing.
        (None, False, None, "nvidia-ml-py", False),
        (FakeNvml(fails_with=12), False, None, "NVML error 12", False),
        (None, True, None, "nvidia-ml-py", True),
        (FakeNvml(fails_with=12), True, None, "NVML error 12", True),
        (FakeNvml(fails_with=9), False, None, "NVML error 9", True),
        (FakeNvml(fails_with=18), True, None, "NVML error 18", True),
        (FakeNvml(), True, None, "but no GPU", True),
        (FakeNvml(), True, "", "but no GPU", True),
        (FakeNvml(("GPU-1?",)), True, None, "no GPU can be used: GPU 0 does not answer", True),
        # Somebody wants no GPU; somebody wants one that is not there.
        (FakeNvml(("GPU-1",)), True, "", "hides the GPU", False),
        (FakeNvml(("GPU-1", "GPU-2")), True, "-1", "hides all 2 GPUs", False),
        (FakeNvml(("GPU-1",)), True, "NoDevFiles", "hides the GPU", False),
        (FakeNvml(("GPU-1",)), True, "7", "hides the GPU", True),
        (FakeNvml(("GPU-1",)), True, "0", None, False),
        (FakeNvml(("GPU-1", "GPU-2?")), True, None, None, False),
    ],
)
def test_a_driver_that_does_not_work_is_a_fault_and_a_machine_without_a_gpu_is_not(
    nvml: ModuleType | None,
    has_driver: bool,
    mask: str | None,
    problem: str | None,
    is_fault: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(devices, "_DRIVER_FILES", (tmp_path if has_driver else tmp_path / "none",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    survey = survey_gpus()
    assert survey.is_fault == is_fault
    assert problem in str(survey.problem) if problem else survey.problem is None
    assert not (survey.problem and survey.notes), "the problem tells it all"


class FakeDriver:
    """libcuda on an imagined machine: an Orin with CUDA 12.6, `num_gpus` of them; functions in `lacks` are missing."""

    def __init__(self, num_gpus: int = 1, lacks: tuple[str, ...] = ()) -> None:
        self._lacks = lacks
        self._answers = {"cuDriverGetVersion": 12060, "cuDeviceGetCount": num_gpus}

    def __getitem__(self, name: str) -> Callable[..., int]:
        if name in self._lacks:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            elif name in self._answers:
                arguments[0]._obj.value = self._answers[name]
            return 0

        return call


@pytest.mark.parametrize(
    ("gpus", "driver", "capability", "cuda_version"),
    [
        ((JETSON,), FakeDriver(), (8, 7), (12, 6)),
        (("GPU-1",), FakeDriver(), (8, 7), (12, 6)),
        ((JETSON,), FakeDriver(lacks=("cuDeviceGetAttribute",)), None, (12, 6)),
        # CUDA is not asked for one of several: this process could not choose among them any more.
        (("GPU-1", "GPU-2"), FakeDriver(num_gpus=2), None, (12, 6)),
        ((JETSON,), FakeDriver(num_gpus=0), None, (12, 6)),
    ],
)
def test_what_nvml_does_not_tell_of_the_only_gpu_the_driver_is_asked(
    gpus: tuple[str, ...],
    driver: FakeDriver,
    capability: tuple[int, int] | None,
    cuda_version: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpus))
    monkeypatch.setattr(cuda_driver, "open_driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    survey = survey_gpus()
    assert [device.uuid for device in survey.devices] == list(gpus)
    assert {device.compute_capability for device in survey.devices} == {capability}
    assert survey.cuda_version == cuda_version


def test_without_any_driver_version_and_capability_stay_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise DeviceError("there is no driver")

    monkeypatch.setattr(cuda_driver, "open_driver", no_driver)
    assert cuda_driver.driver_cuda_version() is None
    assert cuda_driver.only_compute_capability() is None


def test_a_gpu_that_cuda_cannot_be_pointed_at_is_left_out_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(("GPU-1", JETSON)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    survey = survey_gpus()
    assert [device.uuid for device in survey.devices] == ["GPU-1"]
    assert survey.notes == (f"GPU 1 is skipped: there are others, and CUDA does not accept its UUID, {JETSON}",)


def test_a_package_that_lacks_a_function_does_not_stop_the_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(("GPU-1",))
    missing = ("nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetMigMode", "nvmlDeviceGetCudaComputeCapability")
    nvml.lacks = missing
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [device.uuid for device in survey_gpus().devices] == ["GPU-1"]


class MigNvml(FakeNvml):
    """Two GPUs of other kinds with MIG: the first has two instances in seven places, the second none."""

    def __init__(self) -> None:
        super().__init__(("GPU-1", "GPU-2"))
        self.nvmlDeviceGetMigMode = lambda gpu: (1, 1)
        self.nvmlDeviceGetMaxMigDeviceCount = lambda gpu: 7
        self.nvmlDeviceGetName = lambda handle: "NVIDIA A30" if "2" in handle else "NVIDIA H200 MIG"

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: str, place: int) -> str:  # noqa: N802
        if gpu == "GPU-1" and place in (0, 3):
            return f"MIG-{place}"
        raise self.NVMLError(6)


def test_a_gpu_with_mig_stands_for_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", MigNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    survey = survey_gpus()
    assert [(device.uuid, device.index) for device in survey.devices] == [("MIG-0", 0), ("MIG-3", 1)]
    assert survey.notes == ("GPU 1 has MIG enabled and no instance: create one with nvidia-smi mig or disable MIG",)


@pytest.mark.parametrize(
    ("mask", "order", "is_told"), [("0", None, True), ("0", "PCI_BUS_ID", False), ("GPU-1", None, False)]
)
def test_where_gpus_differ_an_index_is_told_to_be_in_the_order_of_nvidia_smi(
    mask: str, order: str | None, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(("GPU-1", "GPU-2"))
    nvml.nvmlDeviceGetName = {"GPU-1": "NVIDIA A2", "GPU-2": "NVIDIA H200"}.get
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if order is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    survey = survey_gpus()
    assert [device.uuid for device in survey.devices] == ["GPU-1"]
    assert [note.partition(" in the order")[0] for note in survey.notes] == [
        "CUDA_VISIBLE_DEVICES=0 is read here"
    ] * is_told


def test_a_driver_that_fails_while_it_is_asked_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(("GPU-1",))

    def fail() -> int:
        raise nvml.NVMLError(15)

    nvml.nvmlDeviceGetCount = fail
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    survey = survey_gpus()
    assert (survey.devices, survey.problem, survey.is_fault) == ((), "NVML: NVML error 15", True)


@pytest.mark.gpu
@pytest.mark.skipif(not survey_gpus().devices, reason="needs an NVIDIA GPU and nvidia-ml-py")
def test_libcuda_tells_the_same_as_nvml() -> None:
    survey = survey_gpus()
    assert cuda_driver.driver_cuda_version() == survey.cuda_version
    if len(survey.devices) == 1:
        # In a process of its own: whoever asks libcuda can turn to no other GPU after that.
        code = "from alexdeploy.engines.trt.cuda_driver import *; print(only_compute_capability())"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told.strip() == str(survey.devices[0].compute_capability)


@pytest.mark.gpu
@pytest.mark.skipif(not survey_gpus().devices, reason="needs an NVIDIA GPU and nvidia-ml-py")
def test_a_gpu_has_a_capability_memory_and_a_driver() -> None:
    survey = survey_gpus()
    for device in survey.devices:
        assert device.compute_capability is not None
        assert device.compute_capability >= (5, 0)
        assert device.free_bytes is not None
        assert device.total_bytes is not None
        assert 0 < device.free_bytes <= device.total_bytes
        assert device.driver == survey.driver


@pytest.mark.gpu
@pytest.mark.skipif(not survey_gpus().devices, reason="needs an NVIDIA GPU and nvidia-ml-py")
def test_a_mask_in_the_environment_hides_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    first = survey_gpus().devices[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", first.uuid)
    assert [device.uuid for device in survey_gpus().devices] == [first.uuid]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    hidden = survey_gpus()
    assert hidden.devices == ()
    assert hidden.num_hidden >= 1
    assert "CUDA_VISIBLE_DEVICES='-1' hides" in str(hidden.problem)
