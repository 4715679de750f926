"""The devices of this machine: its CPU and its NVIDIA GPUs, identified by the driver's UUIDs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alexdeploy.core.errors import DeviceError, UsageError, first_line
from alexdeploy.core.memory import host_memory
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.trt.cuda_driver import cuda_version, driver_cuda_version, is_cuda_uuid, only_compute_capability

_HIDING_MASKS = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES with which users disable all GPUs."""

_NVML_NO_LIBRARY = 12
_DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"))
"""Files that exist while the driver's kernel module is loaded."""

# Keys are the codes of nvml.h, which are stable.
_NVML_HINTS = {
    4: "This user has no access to the driver: check the permissions of /dev/nvidia*.",
    9: "The driver's kernel module is not loaded: sudo modprobe nvidia. If that fails, reinstall the driver.",
    12: "Install NVIDIA's driver. In a container: docker run --gpus all ...",
    15: "The GPU has fallen off the bus: check dmesg for Xid errors and restart the machine.",
    18: "The driver was updated while the old one was running: restart the machine.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """`index` counts devices of one kind, as the driver does. A CPU has no UUID. Memory in bytes, None if unknown.

    GPUs are numbered after CUDA_VISIBLE_DEVICES is applied, as in CUDA programs. A MIG instance is a separate device.
    """

    kind: Literal["cpu", "cuda"]
    index: int
    uuid: str = ""
    name: str = ""
    compute_capability: tuple[int, int] | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    driver: str | None = None
    num_processors: int | None = None

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PhysicalGpu:
    """A GPU as numbered by NVML: one device, or with MIG enabled one per instance, possibly none."""

    uuid: str
    devices: tuple[Device, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSurvey:
    """The result of asking NVML. `problem` and `hint` say why there are no devices; `notes` are notes for the user.

    `is_fault`: the problem is neither that the machine has no GPU nor a deliberate setting. `cuda_version` is the
    newest that the driver supports. CUDA_VISIBLE_DEVICES hides `num_hidden` GPUs or MIG instances.
    """

    devices: tuple[Device, ...] = ()
    problem: str | None = None
    hint: str | None = None
    is_fault: bool = False
    driver: str | None = None
    cuda_version: tuple[int, int] | None = None
    num_hidden: int = 0
    notes: tuple[str, ...] = ()


def cpu_device() -> Device:
    """All processors that this process may use, as one device with the memory still available."""
    free, total = host_memory()
    return Device(
        kind="cpu",
        index=0,
        name=_cpu_name(),
        free_bytes=free,
        total_bytes=total,
        num_processors=available_processors(),
    )


def survey_gpus() -> GpuSurvey:
    """Query the driver's GPUs through NVML, without creating a CUDA context. Never raises."""
    try:
        import pynvml
    except ImportError:
        return GpuSurvey(
            problem="the package nvidia-ml-py, which finds GPUs, is not installed",
            hint="pip install nvidia-ml-py",
            is_fault=_has_driver(),
        )
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        return _failed(exc)
    try:
        return _survey(pynvml)
    except pynvml.NVMLError as exc:
        return _failed(exc)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _failed(error: Any) -> GpuSurvey:
    code: int = error.value
    return GpuSurvey(
        problem=f"NVML: {first_line(error).rstrip('.')}",
        hint=_NVML_HINTS.get(code),
        # NVML is part of the driver, but a container may have the driver without it.
        is_fault=code != _NVML_NO_LIBRARY or _has_driver(),
    )


def _has_driver() -> bool:
    return any(path.exists() for path in _DRIVER_FILES)


def _survey(nvml: Any) -> GpuSurvey:
    driver = _ask(nvml, "nvmlSystemGetDriverVersion")
    number = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    gpus, notes = [], []
    num_gpus = nvml.nvmlDeviceGetCount()
    for index in range(num_gpus):
        try:
            gpu = _read_gpu(nvml, index, driver)
            if not gpu.devices:
                notes.append(
                    f"GPU {index} has MIG enabled and no instance: create one with nvidia-smi mig or disable MIG"
                )
            elif num_gpus > 1 and not is_cuda_uuid(gpu.uuid):
                notes.append(f"GPU {index} is skipped: there are others, and CUDA does not accept its UUID, {gpu.uuid}")
                gpu = replace(gpu, devices=())
        except nvml.NVMLError as exc:
            gpu = PhysicalGpu(uuid="", devices=())
            notes.append(f"GPU {index} does not answer: {first_line(exc).rstrip('.')}")
        gpus.append(gpu)
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible_devices(gpus, mask)
    if num_gpus == len(devices) == 1 and devices[0].compute_capability is None:
        # With several GPUs, CUDA is not initialized: this process could not switch to another one afterwards.
        devices = (replace(devices[0], compute_capability=only_compute_capability()),)
    shown = {device.uuid for device in devices}
    num_hidden = sum(any(device.uuid not in shown for device in gpu.devices) for gpu in gpus)
    problem, hint = None, None
    if not gpus:
        problem = "a driver is installed, but no GPU was found"
    elif not devices and num_hidden:
        problem = f"CUDA_VISIBLE_DEVICES={mask!r} hides {'the GPU' if num_hidden == 1 else f'all {num_hidden} GPUs'}"
        hint = "unset CUDA_VISIBLE_DEVICES"
    elif not devices:
        problem = "no GPU can be used: " + "; ".join(notes)
        notes = []
    elif mask and _is_order_doubtful(gpus, mask):
        notes.append(
            f"CUDA_VISIBLE_DEVICES={mask} is read here in the order of nvidia-smi; other programs count the fastest "
            "GPU first. Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID"
        )
    return GpuSurvey(
        devices=devices,
        problem=problem,
        hint=hint,
        is_fault=problem is not None and not (gpus and num_hidden and mask in _HIDING_MASKS),
        driver=driver,
        cuda_version=driver_cuda_version() if number is None else cuda_version(number),
        num_hidden=num_hidden,
        notes=tuple(notes),
    )


def _ask(nvml: Any, name: str, *arguments: object) -> Any:
    # Boards, drivers and packages differ: Jetsons and unified memory report "not supported".
    try:
        return getattr(nvml, name)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


def _read_gpu(nvml: Any, index: int, driver: str | None) -> PhysicalGpu:
    """Raises NVMLError if the GPU does not report its UUID."""
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    uuid: str = nvml.nvmlDeviceGetUUID(gpu)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", gpu)
    handles = [gpu]
    if (_ask(nvml, "nvmlDeviceGetMigMode", gpu) or (0, 0))[0]:
        places = range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", gpu) or 0)
        instances = (_ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", gpu, place) for place in places)
        handles = [instance for instance in instances if instance is not None]
    devices = []
    for handle in handles:
        memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
        device = Device(
            kind="cuda",
            index=index,
            uuid=nvml.nvmlDeviceGetUUID(handle),
            name=_ask(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU",
            # An instance does not report its own.
            compute_capability=capability,
            free_bytes=None if memory is None else memory.free,
            total_bytes=None if memory is None else memory.total,
            driver=driver,
        )
        devices.append(device)
    return PhysicalGpu(uuid=uuid, devices=tuple(devices))


def _is_order_doubtful(gpus: Sequence[PhysicalGpu], mask: str) -> bool:
    """Whether an index in the mask may be another GPU for CUDA, which by default numbers the fastest first."""
    has_index = any(word.strip().isdecimal() for word in mask.split(","))
    is_mixed = len({device.name for gpu in gpus for device in gpu.devices}) > 1
    return has_index and is_mixed and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"


def environment_for(device: Device) -> dict[str, str]:
    """Environment variables for a process that should see only this GPU. They must be set before it uses CUDA.

    Empty for a Jetson's GPU, which `survey_gpus` returns only if it is the only one: CUDA does not find its UUID.
    """
    return {"CUDA_VISIBLE_DEVICES": device.uuid} if is_cuda_uuid(device.uuid) else {}


def visible_devices(gpus: Sequence[PhysicalGpu], mask: str | None) -> tuple[Device, ...]:
    """The devices visible with CUDA_VISIBLE_DEVICES=`mask`, in its order, renumbered; all if it is None.

    The mask lists GPUs by index, UUID or UUID prefix. As in CUDA, it ends before the first invalid word (CUDA
    Programming Guide, "Environment Variables"). A GPU with MIG enabled stands for all its instances.
    """
    if mask is None:
        named = [device for gpu in gpus for device in gpu.devices]
    else:
        named = []
        for word in (word.strip() for word in mask.split(",")):
            found = _named_in_mask(gpus, word)
            if not found:
                break
            named.extend(found)
    unique = dict.fromkeys(named)
    return tuple(replace(device, index=index) for index, device in enumerate(unique))


def _named_in_mask(gpus: Sequence[PhysicalGpu], word: str) -> tuple[Device, ...]:
    if word.isdecimal():
        return gpus[int(word)].devices if int(word) < len(gpus) else ()
    if not is_cuda_uuid(word):
        return ()
    whole = [gpu.devices for gpu in gpus if _begins(gpu.uuid, word)]
    single = [(device,) for gpu in gpus for device in gpu.devices if _begins(device.uuid, word)]
    found = whole or single
    return found[0] if len(found) == 1 else ()


def _begins(uuid: str, prefix: str) -> bool:
    return uuid.lower().startswith(prefix.lower())


def find_devices(
    names: str, devices: Sequence[Device], gpu_problem: str | None = None, *, is_fault: bool = False
) -> tuple[Device, ...]:
    """The devices in a list like "0,1", in its order; a device listed twice is returned twice.

    An item is `cpu`; `all`, which is all GPUs, or the CPU without GPUs; `0` or `cuda:0`; a GPU's UUID or its prefix.
    Raises UsageError, with `gpu_problem`, for a device that does not exist. Raises DeviceError for `all` if the GPUs
    cannot be used because of a fault (`is_fault`).
    """
    found: list[Device] = []
    for word in (word.strip() for word in names.split(",")):
        if is_fault and word.lower() == "all":
            raise DeviceError(
                f"--devices {names}: no GPU can be used: {gpu_problem}",
                hint="Run: alexdeploy doctor. To use the CPU: --devices cpu",
            )
        match = _find(word, devices)
        if not match:
            gpus = [f"{each.index} ({each.name}, {each.uuid})" for each in devices if each.kind == "cuda"]
            there = ", ".join(["cpu", *gpus])
            reason = f" No GPU: {gpu_problem}." if gpu_problem and not gpus else ""
            raise UsageError(
                f"--devices {names}: found {word!r}, expected all or one of: {there}.{reason}",
                hint="List them: alexdeploy devices",
            )
        found.extend(match)
    return tuple(found)


def _find(word: str, devices: Sequence[Device]) -> list[Device]:
    gpus = [device for device in devices if device.kind == "cuda"]
    if word.lower() == "all" and gpus:
        return gpus
    if word.lower() in ("cpu", "all"):
        return [device for device in devices if device.kind == "cpu"]
    number = word.lower().removeprefix("cuda:")
    if number.isdecimal():
        return [device for device in gpus if device.index == int(number)]
    if is_cuda_uuid(word):
        matches = [device for device in gpus if _begins(device.uuid, word)]
        return matches if len(matches) == 1 else []
    # A Jetson's UUID has no prefix.
    return [device for device in gpus if word and device.uuid.lower() == word.lower()]


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"
