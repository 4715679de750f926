"""Checks of this machine's GPUs, their driver, and the packages that use them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from alexdeploy.core.packages import backend_version, package_version, release, tensorrt_version
from alexdeploy.diagnosis.gpu_errors import (
    CUDA_ERRORS,
    LEAST_DRIVERS,
    PYCUDA_HINT,
    explain_onnxruntime,
    explain_pycuda,
    explain_tensorrt,
    missing_library,
    short,
    supported_capabilities,
)
from alexdeploy.diagnosis.package_check import PackageCheck
from alexdeploy.engines.base import Backend
from alexdeploy.engines.trt.cuda_driver import cuda_version
from alexdeploy.placement.devices import Device, GpuSurvey
from alexdeploy.placement.plan import supports

Status = Literal["ok", "warning", "problem", "absent"]

LEAST_MEMORY_BYTES = 2 << 30
"""Of the machine, and of a GPU."""

_NOT_INSTALLED = "not installed: runs models on NVIDIA GPUs"
_GPU_HINT = "pip install 'alexdeploy[gpu]'"
_RTX_CUDA = 13
"""The CUDA version of the packages of the extra `rtx`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report. `absent` is an optional item that is missing and that nothing here needs."""

    name: str
    status: Status
    found: str
    hint: str | None = None


def judge_driver(survey: GpuSurvey, *, has_board: bool) -> Finding:
    if survey.driver is not None or survey.devices:
        cuda = "" if survey.cuda_version is None else f", runs CUDA up to {_dotted(survey.cuda_version)}"
        hidden = f"; CUDA_VISIBLE_DEVICES hides {survey.num_hidden}" if survey.num_hidden else ""
        hidden = f"; {survey.problem}" if survey.problem else hidden
        status: Status = "warning" if survey.problem else "ok"
        return Finding(
            name="driver",
            status=status,
            found=f"{survey.driver or 'its version is not told'}{cuda}{hidden}",
            hint=survey.hint,
        )
    if has_board:
        problem = survey.problem or "its driver tells no version"
        return Finding(
            name="driver", status="problem", found=f"there is an NVIDIA GPU, but {problem}", hint=survey.hint
        )
    return Finding(name="driver", status="absent", found="no NVIDIA GPU here")


def judge_gpu(device: Device) -> Finding:
    capability = "unknown" if device.compute_capability is None else _dotted(device.compute_capability)
    memory = "memory unknown"
    if device.free_bytes is not None and device.total_bytes is not None:
        memory = f"{gigabytes(device.free_bytes)} free of {gigabytes(device.total_bytes)}"
    found = f"{device.name}, compute capability {capability}, {memory}, {device.uuid}"
    if device.free_bytes is not None and device.free_bytes < LEAST_MEMORY_BYTES:
        return Finding(name=str(device), status="warning", found=found, hint="End what else runs there: nvidia-smi")
    return Finding(name=str(device), status="ok", found=found)


def judge_libcuda(probe: PackageCheck, *, has_board: bool) -> Finding:
    missing: Status = "problem" if has_board else "absent"
    if "init" not in probe.facts:
        hint = "Install NVIDIA's driver. In a container: docker run --gpus all ..." if has_board else None
        library = missing_library(probe.error or "")
        found = f"{library} is not found" if library else short(probe.error or "")
        return Finding(name="libcuda", status=missing, found=found, hint=hint)
    version = probe.facts.get("version")
    found = "" if version is None else f"CUDA {_dotted(cuda_version(version))}, "
    code = probe.facts["init"]
    if code != 0:
        meaning, hint = CUDA_ERRORS.get(code, ("see CUresult in CUDA's documentation", None))
        # Without a GPU, "no GPU" is the correct answer.
        status = missing if code == 100 else "problem"
        return Finding(name="libcuda", status=status, found=f"{found}cuInit gives error {code}: {meaning}", hint=hint)
    count = probe.facts.get("count", 0)
    return Finding(name="libcuda", status="ok", found=f"{found}{count} GPU{'' if count == 1 else 's'}")


def judge_gpu_backends(
    probes: Mapping[str, PackageCheck], survey: GpuSurvey, driver_cuda: tuple[int, int] | None, *, has_gpu: bool
) -> list[Finding]:
    """TensorRT or TensorRT-RTX with pycuda, and ONNX Runtime's CUDA provider: with a GPU, one of these must work."""
    tensorrt = _tensorrt(probes.get("tensorrt"), survey, driver_cuda, has_gpu=has_gpu)
    pycuda = _pycuda(probes.get("pycuda"), has_gpu=has_gpu)
    ort = _onnxruntime_cuda(probes.get("onnxruntime"), driver_cuda, has_gpu=has_gpu)
    rtx = _tensorrt_rtx(probes.get("tensorrt_rtx_bindings"), survey, driver_cuda)
    findings = [tensorrt, pycuda, ort, rtx]
    runs_rtx = rtx.status == "ok" and any(supports("tensorrt-rtx", device) for device in survey.devices)
    if ort.status == "ok" or (pycuda.status == "ok" and (tensorrt.status == "ok" or runs_rtx)):
        # The other backend is not needed, so a package missing for it is no problem.
        findings = [
            replace(each, status="warning") if each.status == "problem" and each.found == _NOT_INSTALLED else each
            for each in findings
        ]
    return [*findings, *_both_onnxruntimes(probes.get("onnxruntime"), has_gpu=has_gpu)]


def _tensorrt(
    probe: PackageCheck | None, survey: GpuSurvey, driver_cuda: tuple[int, int] | None, *, has_gpu: bool
) -> Finding:
    bad: Status = "problem" if has_gpu else "warning"
    if probe is None:
        hint = _GPU_HINT if has_gpu else None
        return Finding(name="tensorrt", status="problem" if has_gpu else "absent", found=_NOT_INSTALLED, hint=hint)
    version = probe.facts.get("version") or tensorrt_version() or "unknown version"
    needed = _tensorrt_cuda(version)
    if has_gpu and needed and driver_cuda and driver_cuda[0] < needed:
        found = f"{version} is for CUDA {needed}, the driver runs CUDA up to {_dotted(driver_cuda)}"
        # For CUDA 11 there is no TensorRT that works with a current NumPy.
        older = f", or: pip install tensorrt-cu{driver_cuda[0]}" if driver_cuda[0] >= 12 else ""
        hint = f"{update_driver(needed)}{older}"
        return Finding(name="tensorrt", status=bad, found=found, hint=hint)
    if probe.error is not None:
        found, hint = explain_tensorrt(probe.error, probe.log)
        return Finding(name="tensorrt", status=bad, found=f"{version}: {found}", hint=hint)
    lowest, highest = supported_capabilities(version)
    outside = [
        device
        for device in survey.devices
        if device.compute_capability is not None
        and (device.compute_capability < lowest or (highest is not None and device.compute_capability > highest))
    ]
    if outside:
        capabilities = ", ".join(f"{device} is {_dotted(device.compute_capability or (0, 0))}" for device in outside)
        upto = "and newer" if highest is None else f"to {_dotted(highest)}"
        found = f"{version} runs on compute capability {_dotted(lowest)} {upto}; {capabilities}"
        hint = "Install a version for these GPUs, or leave them to onnxruntime-gpu."
        is_none_left = len(outside) == len(survey.devices)
        return Finding(name="tensorrt", status=bad if is_none_left else "warning", found=found, hint=hint)
    return Finding(name="tensorrt", status="ok", found=version if has_gpu else f"{version}, no GPU to use it on")


def _tensorrt_rtx(probe: PackageCheck | None, survey: GpuSurvey, driver_cuda: tuple[int, int] | None) -> Finding:
    name: Backend = "tensorrt-rtx"
    has_card = any(supports(name, device) for device in survey.devices)
    hint = "pip install 'alexdeploy[rtx]'"
    if probe is None:
        found = "not installed: builds engines for RTX cards, and runs them there"
        return Finding(name=name, status="absent", found=found, hint=hint if has_card else None)
    version = probe.facts.get("version") or backend_version(name)
    if probe.error is not None:
        hint = "pip install --force-reinstall 'alexdeploy[rtx]'"
        return Finding(name=name, status="warning", found=f"{version}: {short(probe.error)}", hint=hint)
    if has_card and driver_cuda and driver_cuda[0] < _RTX_CUDA:
        found = f"{version} is for CUDA {_RTX_CUDA}, the driver runs CUDA up to {_dotted(driver_cuda)}: it only builds"
        return Finding(name=name, status="warning", found=found, hint=f"{update_driver(_RTX_CUDA)}.")
    found = f"{version}, builds engines for RTX cards{'' if has_card else '; no such card here to run them on'}"
    return Finding(name=name, status="ok", found=found)


def _tensorrt_cuda(version: str) -> int | None:
    """The major CUDA version that the installed TensorRT is for, from the names of its packages.

    Packages of other TensorRT versions are leftovers of an update. If two CUDA versions remain, the lower one is
    returned: which one runs cannot be determined.
    """
    same: set[int] = set()
    others: set[int] = set()
    for distribution in importlib.metadata.distributions():
        match = re.fullmatch(r"tensorrt[-_.]cu(\d+)([-_.](libs|bindings))?", distribution.metadata["Name"] or "")
        if match:
            (same if release(distribution.version) == release(version) else others).add(int(match.group(1)))
    return min(same or others, default=None)


def update_driver(cuda: int) -> str:
    return f"Install driver {LEAST_DRIVERS[cuda]} or newer" if cuda in LEAST_DRIVERS else "Install a newer driver"


def _pycuda(probe: PackageCheck | None, *, has_gpu: bool) -> Finding:
    if probe is None:
        status: Status = "problem" if has_gpu else "absent"
        return Finding(name="pycuda", status=status, found=_NOT_INSTALLED, hint=PYCUDA_HINT if has_gpu else None)
    version = probe.facts.get("version") or package_version("pycuda") or "unknown version"
    if probe.error is not None:
        found, hint = explain_pycuda(probe.error)
        bad: Status = "problem" if has_gpu else "warning"
        return Finding(name="pycuda", status=bad, found=f"{version}: {found}", hint=hint)
    return Finding(name="pycuda", status="ok", found=version)


def _onnxruntime_cuda(probe: PackageCheck | None, driver_cuda: tuple[int, int] | None, *, has_gpu: bool) -> Finding:
    name = "onnxruntime-gpu"
    bad: Status = "problem" if has_gpu else "absent"
    if probe is None or "CUDAExecutionProvider" not in probe.facts.get("providers", ()):
        # It cannot be installed beside the CPU build: both use the folder onnxruntime.
        hint = f"pip uninstall -y onnxruntime; {_GPU_HINT}" if has_gpu else None
        return Finding(name=name, status=bad, found=_NOT_INSTALLED, hint=hint)
    built = str(probe.facts.get("cuda") or "")
    version = f"{probe.facts['version']} for CUDA {built or 'unknown'}"
    if not has_gpu:
        return Finding(name=name, status="ok", found=f"{version}, no GPU to use it on")
    needed = int(built.split(".")[0]) if built[:1].isdigit() else None
    if needed and driver_cuda and driver_cuda[0] < needed:
        found = f"{version}: the driver runs CUDA up to {_dotted(driver_cuda)}"
        hint = f"{update_driver(needed)}, or an older onnxruntime-gpu."
        return Finding(name=name, status=bad, found=found, hint=hint)
    cudnn = probe.facts.get("cudnn")
    if "CUDAExecutionProvider" not in probe.facts.get("used", ()):
        found, hint = explain_onnxruntime(probe.error, probe.log)
        loaded = f"; cuDNN {_cudnn_version(cudnn)} is there" if cudnn else ""
        return Finding(name=name, status=bad, found=f"{version}: {found}{loaded}", hint=hint)
    return Finding(name=name, status="ok", found=f"{version}, cuDNN {_cudnn_version(cudnn) if cudnn else 'unknown'}")


def _both_onnxruntimes(probe: PackageCheck | None, *, has_gpu: bool) -> list[Finding]:
    builds = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-training", "onnxruntime-directml")
    installed = [f"{build} {version}" for build in builds if (version := package_version(build)) is not None]
    if len(installed) < 2:
        return []
    names = [each.split()[0] for each in installed]
    lost = has_gpu and probe is not None and "CUDAExecutionProvider" not in probe.facts.get("providers", ())
    kept = "onnxruntime-gpu" if "onnxruntime-gpu" in names else names[-1]
    return [
        Finding(
            name="onnxruntime twice",
            status="problem" if lost else "warning",
            found=f"{' and '.join(installed)} share one folder; the one installed last is what runs",
            hint=f"pip uninstall -y {' '.join(names)}; pip install {kept}",
        )
    ]


def _cudnn_version(number: int) -> str:
    # 8907 is 8.9.7; from 9 on, 90100 is 9.1.0.
    base = 10_000 if number >= 10_000 else 1_000
    return f"{number // base}.{number % base // 100}.{number % 100}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
