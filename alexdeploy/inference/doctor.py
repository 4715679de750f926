"""What is wrong with this machine? Driver, GPUs, backends, memory and disk: what was found, and what would cure it."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from alexdeploy.core.artifacts import MODELS_FOLDER, cache_folder
from alexdeploy.core.packages import package_version, tensorrt_version
from alexdeploy.core.processors import available_processors
from alexdeploy.inference.gpu_errors import (
    CUDA_ERRORS,
    LEAST_DRIVERS,
    PYCUDA_CURE,
    explain_onnxruntime,
    explain_pycuda,
    explain_tensorrt,
    missing_library,
    short,
    supported_capabilities,
)
from alexdeploy.inference.probe import PROBES, Probe, run_probe
from alexdeploy.placement.devices import Device, GpuSurvey, host_memory, survey_gpus

Status = Literal["ok", "warning", "problem", "absent"]

_LEAST_DISK_BYTES = 2 << 30
"""A full-size model is 0.25 GB of weights, as much for each graph, and compiled models are cached up to 2 GiB."""

_LEAST_MEMORY_BYTES = 2 << 30
_NOT_INSTALLED = "not installed: runs models on NVIDIA GPUs"
_GPU_CURE = "pip install 'alexdeploy[gpu]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the report. `absent` is an optional thing that is not there and that nothing here asks for."""

    name: str
    status: Status
    found: str
    cure: str | None = None


def examine() -> tuple[Finding, ...]:
    """Look at everything; takes seconds, for each package that is installed is really imported. Never raises."""
    survey = survey_gpus()
    libcuda = run_probe(PROBES["libcuda"])
    # A GPU that CUDA_VISIBLE_DEVICES hides is not asked for; one whose driver fails is.
    has_gpu = bool(survey.devices) or bool(libcuda.facts.get("count"))
    has_board = has_gpu or (not survey.num_hidden and has_nvidia_board())
    packages = [name for name in PROBES if name != "libcuda" and importlib.util.find_spec(name) is not None]
    with ThreadPoolExecutor(max_workers=2) as pool:
        told = pool.map(lambda name: run_probe(PROBES[name], has_gpu=has_gpu), packages)
        probes = dict(zip(packages, told, strict=True))
    driver_cuda = survey.cuda_version or _cuda_version(libcuda.facts.get("version"))
    return (
        _python(),
        _processors(),
        _memory(),
        *_disk(),
        *_cpu_backends(probes),
        _torch(probes.get("torch"), has_gpu=has_gpu),
        _driver(survey, has_board=has_board),
        *(_gpu(device) for device in survey.devices),
        *(Finding(name="gpu", status="warning", found=note) for note in survey.notes),
        _libcuda(libcuda, has_board=has_board),
        *_gpu_backends(probes, survey, driver_cuda, has_gpu=has_gpu),
        _extra("matplotlib", "report", "charts of evaluate"),
        _extra("pyarrow", "parquet", "--format parquet"),
    )


def has_nvidia_board() -> bool:
    """Whether there is hardware by NVIDIA, with or without a driver: Linux's device files, or its list of PCI cards."""
    if glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/nvhost-gpu") or glob.glob("/dev/nvgpu/*"):
        return True
    for vendor in glob.glob("/sys/bus/pci/devices/*/vendor"):
        with suppress(OSError):
            is_display = Path(vendor).with_name("class").read_text().startswith("0x03")
            if is_display and Path(vendor).read_text().strip() == "0x10de":
                return True
    return False


def _python() -> Finding:
    version = platform.python_version()
    return Finding(name="python", status="ok", found=f"{version}, {platform.system()} {platform.machine()}")


def _processors() -> Finding:
    here, usable = os.cpu_count() or 1, available_processors()
    bound = "" if usable >= here else f" of {here} (affinity or a container's quota)"
    flags = _cpu_flags()
    kinds = {
        "AMX": {"amx_int8", "amx_tile"},
        "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
        "VNNI": {"avx512_vnni", "avx_vnni"},
        "dot products": {"asimddp"},
        "i8mm": {"i8mm"},
        "AVX-512": {"avx512f"},
        "AVX2": {"avx2"},
    }
    able = [name for name, words in kinds.items() if words & flags]
    return Finding(
        name="processors", status="ok", found=f"{usable}{bound}; {', '.join(able) or 'no vector extensions'}"
    )


def _cpu_flags() -> set[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            # x86 says flags, ARM says Features.
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    return set()


def _memory() -> Finding:
    free, total = host_memory()
    if free is None or total is None:
        return Finding(name="memory", status="ok", found="unknown on this system")
    found = f"{_gb(free)} available of {_gb(total)}"
    if free < _LEAST_MEMORY_BYTES:
        return Finding(name="memory", status="warning", found=found, cure="Use a small --batch-size, or end programs.")
    return Finding(name="memory", status="ok", found=found)


def _disk() -> list[Finding]:
    cache = cache_folder("")
    if cache is None:
        missing = Finding(
            name="disk cache",
            status="warning",
            found="no folder that can be written: models are compiled anew at every start",
            cure="Name one: export ALEXDEPLOY_CACHE=FOLDER",
        )
        return [_disk_of("disk models", MODELS_FOLDER), missing]
    return [_disk_of("disk models", MODELS_FOLDER), _disk_of("disk cache", cache)]


def _disk_of(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError as exc:
        return Finding(name=name, status="warning", found=f"{folder}: {exc.strerror}")
    found = f"{_gb(free)} free for {folder.absolute()}"
    if not os.access(there, os.W_OK):
        return Finding(name=name, status="warning", found=f"{there} cannot be written", cure="Work in another folder.")
    if free < _LEAST_DISK_BYTES:
        return Finding(name=name, status="warning", found=found, cure="Free some space: a full-size model takes 1 GB.")
    return Finding(name=name, status="ok", found=found)


def _cpu_backends(probes: Mapping[str, Probe]) -> list[Finding]:
    """OpenVINO, and ONNX Runtime as a CPU engine: one of them there must be."""
    findings = []
    works = [name for name in ("openvino", "onnxruntime") if name in probes and "version" in probes[name].facts]
    for name in ("openvino", "onnxruntime"):
        probe = probes.get(name)
        if probe is None:
            status: Status = "absent" if works else "problem"
            cure = "pip install 'alexdeploy[cpu]'"
            findings.append(Finding(name=name, status=status, found="not installed", cure=cure))
            continue
        if "version" not in probe.facts:
            cure = f"pip install --force-reinstall {name}"
            findings.append(Finding(name=name, status="problem", found=short(probe.error or ""), cure=cure))
            continue
        version = probe.facts["version"].partition("-")[0]
        types = [each for each in ("FP32", "FP16", "BF16", "INT8") if each in probe.facts.get("capabilities", ())]
        providers = [each.removesuffix("ExecutionProvider") for each in probe.facts.get("providers", ())]
        findings.append(Finding(name=name, status="ok", found=f"{version}; {', '.join(types or providers)}"))
    return findings


def _torch(probe: Probe | None, *, has_gpu: bool) -> Finding:
    cure = "pip install 'alexdeploy[train]'"
    if probe is None:
        return Finding(name="torch", status="absent", found="not installed: needed to train and to export", cure=cure)
    if probe.error is not None:
        return Finding(
            name="torch", status="problem", found=short(probe.error), cure="pip install --force-reinstall torch"
        )
    cuda = probe.facts["cuda"]
    found = f"{probe.facts['version']}, {'without CUDA' if cuda is None else f'for CUDA {cuda}'}"
    if has_gpu and not probe.facts["is_available"]:
        cure = "Training will not use the GPU: install a build for CUDA, see pytorch.org"
        if cuda is not None:
            cure = f"Training will not use the GPU. {_update_driver(int(cuda.split('.')[0]))}."
        return Finding(name="torch", status="warning", found=found, cure=cure)
    return Finding(name="torch", status="ok", found=found)


def _driver(survey: GpuSurvey, *, has_board: bool) -> Finding:
    if survey.driver is not None:
        cuda = "" if survey.cuda_version is None else f", runs CUDA up to {_dotted(survey.cuda_version)}"
        hidden = f"; CUDA_VISIBLE_DEVICES hides {survey.num_hidden}" if survey.num_hidden else ""
        hidden = f"; {survey.problem}" if survey.problem else hidden
        status: Status = "warning" if survey.problem else "ok"
        return Finding(name="driver", status=status, found=f"{survey.driver}{cuda}{hidden}", cure=survey.cure)
    if has_board:
        problem = survey.problem or "its driver tells no version"
        return Finding(
            name="driver", status="problem", found=f"there is an NVIDIA GPU, but {problem}", cure=survey.cure
        )
    return Finding(name="driver", status="absent", found="no NVIDIA GPU here")


def _gpu(device: Device) -> Finding:
    capability = "unknown" if device.compute_capability is None else _dotted(device.compute_capability)
    memory = "memory unknown"
    if device.free_bytes is not None and device.total_bytes is not None:
        memory = f"{_gb(device.free_bytes)} free of {_gb(device.total_bytes)}"
    found = f"{device.name}, compute capability {capability}, {memory}, {device.uuid}"
    if device.free_bytes is not None and device.free_bytes < _LEAST_MEMORY_BYTES:
        return Finding(name=str(device), status="warning", found=found, cure="End what else runs there: nvidia-smi")
    return Finding(name=str(device), status="ok", found=found)


def _libcuda(probe: Probe, *, has_board: bool) -> Finding:
    missing: Status = "problem" if has_board else "absent"
    if "init" not in probe.facts:
        cure = "Install NVIDIA's driver. In a container: docker run --gpus all ..." if has_board else None
        library = missing_library(probe.error or "")
        found = f"{library} is not found" if library else short(probe.error or "")
        return Finding(name="libcuda", status=missing, found=found, cure=cure)
    version = _cuda_version(probe.facts.get("version"))
    found = "" if version is None else f"CUDA {_dotted(version)}, "
    code = probe.facts["init"]
    if code != 0:
        meaning, cure = CUDA_ERRORS.get(code, ("see CUresult in CUDA's documentation", None))
        # No GPU is what it should say where there is none.
        status = missing if code == 100 else "problem"
        return Finding(name="libcuda", status=status, found=f"{found}cuInit gives error {code}: {meaning}", cure=cure)
    count = probe.facts.get("count", 0)
    return Finding(name="libcuda", status="ok", found=f"{found}{count} GPU{'' if count == 1 else 's'}")


def _gpu_backends(
    probes: Mapping[str, Probe], survey: GpuSurvey, driver_cuda: tuple[int, int] | None, *, has_gpu: bool
) -> list[Finding]:
    """TensorRT with pycuda, and ONNX Runtime's CUDA provider. Where a GPU is, one of the two must work."""
    tensorrt = _tensorrt(probes.get("tensorrt"), survey, driver_cuda, has_gpu=has_gpu)
    pycuda = _pycuda(probes.get("pycuda"), has_gpu=has_gpu)
    ort = _onnxruntime_cuda(probes.get("onnxruntime"), driver_cuda, has_gpu=has_gpu)
    findings = [tensorrt, pycuda, ort]
    if "ok" in (ort.status, tensorrt.status if pycuda.status == "ok" else None):
        # The other way is not needed: what is not installed for it is no problem.
        findings = [
            replace(each, status="warning") if each.status == "problem" and each.found == _NOT_INSTALLED else each
            for each in findings
        ]
    return [*findings, *_both_onnxruntimes(probes.get("onnxruntime"), has_gpu=has_gpu)]


def _tensorrt(probe: Probe | None, survey: GpuSurvey, driver_cuda: tuple[int, int] | None, *, has_gpu: bool) -> Finding:
    bad: Status = "problem" if has_gpu else "warning"
    if probe is None:
        cure = _GPU_CURE if has_gpu else None
        return Finding(name="tensorrt", status="problem" if has_gpu else "absent", found=_NOT_INSTALLED, cure=cure)
    version = probe.facts.get("version") or tensorrt_version() or "unknown version"
    needed = _tensorrt_cuda()
    if has_gpu and needed and driver_cuda and driver_cuda[0] < needed:
        found = f"{version} is for CUDA {needed}, the driver runs CUDA up to {_dotted(driver_cuda)}"
        # For CUDA 11 there is none that works with a numpy of today.
        older = f", or: pip install tensorrt-cu{driver_cuda[0]}" if driver_cuda[0] >= 12 else ""
        cure = f"{_update_driver(needed)}{older}"
        return Finding(name="tensorrt", status=bad, found=found, cure=cure)
    if probe.error is not None:
        found, cure = explain_tensorrt(probe.error, probe.log)
        return Finding(name="tensorrt", status=bad, found=f"{version}: {found}", cure=cure)
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
        cure = "Install a version for these GPUs, or leave them to onnxruntime-gpu."
        is_none_left = len(outside) == len(survey.devices)
        return Finding(name="tensorrt", status=bad if is_none_left else "warning", found=found, cure=cure)
    return Finding(name="tensorrt", status="ok", found=version if has_gpu else f"{version}, no GPU to use it on")


def _tensorrt_cuda() -> int | None:
    """The major version of CUDA that the installed TensorRT is for, as the names of its packages say."""
    for distribution in importlib.metadata.distributions():
        match = re.fullmatch(r"tensorrt[-_.]cu(\d+)([-_.](libs|bindings))?", distribution.metadata["Name"] or "")
        if match:
            return int(match.group(1))
    return None


def _update_driver(cuda: int) -> str:
    return f"Install driver {LEAST_DRIVERS[cuda]} or newer" if cuda in LEAST_DRIVERS else "Install a newer driver"


def _pycuda(probe: Probe | None, *, has_gpu: bool) -> Finding:
    if probe is None:
        status: Status = "problem" if has_gpu else "absent"
        return Finding(name="pycuda", status=status, found=_NOT_INSTALLED, cure=PYCUDA_CURE if has_gpu else None)
    version = probe.facts.get("version") or package_version("pycuda") or "unknown version"
    if probe.error is not None:
        found, cure = explain_pycuda(probe.error)
        bad: Status = "problem" if has_gpu else "warning"
        return Finding(name="pycuda", status=bad, found=f"{version}: {found}", cure=cure)
    return Finding(name="pycuda", status="ok", found=version)


def _onnxruntime_cuda(probe: Probe | None, driver_cuda: tuple[int, int] | None, *, has_gpu: bool) -> Finding:
    name = "onnxruntime-gpu"
    bad: Status = "problem" if has_gpu else "absent"
    if probe is None or "CUDAExecutionProvider" not in probe.facts.get("providers", ()):
        # Beside the CPU's build it cannot be: both are the one folder onnxruntime.
        cure = "pip uninstall -y onnxruntime; pip install onnxruntime-gpu" if has_gpu else None
        return Finding(name=name, status=bad, found=_NOT_INSTALLED, cure=cure)
    built = str(probe.facts.get("cuda") or "")
    version = f"{probe.facts['version']} for CUDA {built or 'unknown'}"
    if not has_gpu:
        return Finding(name=name, status="ok", found=f"{version}, no GPU to use it on")
    needed = int(built.split(".")[0]) if built[:1].isdigit() else None
    if needed and driver_cuda and driver_cuda[0] < needed:
        found = f"{version}: the driver runs CUDA up to {_dotted(driver_cuda)}"
        cure = f"{_update_driver(needed)}, or an older onnxruntime-gpu."
        return Finding(name=name, status=bad, found=found, cure=cure)
    cudnn = probe.facts.get("cudnn")
    if "CUDAExecutionProvider" not in probe.facts.get("used", ()):
        found, cure = explain_onnxruntime(probe.error, probe.log)
        loaded = f"; cuDNN {_cudnn_version(cudnn)} is there" if cudnn else ""
        return Finding(name=name, status=bad, found=f"{version}: {found}{loaded}", cure=cure)
    return Finding(name=name, status="ok", found=f"{version}, cuDNN {_cudnn_version(cudnn) if cudnn else 'unknown'}")


def _both_onnxruntimes(probe: Probe | None, *, has_gpu: bool) -> list[Finding]:
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
            cure=f"pip uninstall -y {' '.join(names)}; pip install {kept}",
        )
    ]


def _extra(package: str, extra: str, purpose: str) -> Finding:
    version = package_version(package)
    if version is None:
        cure = f"pip install 'alexdeploy[{extra}]'"
        return Finding(name=package, status="absent", found=f"not installed: for {purpose}", cure=cure)
    return Finding(name=package, status="ok", found=version)


def _cuda_version(number: int | None) -> tuple[int, int] | None:
    return None if number is None else (number // 1000, number % 1000 // 10)


def _cudnn_version(number: int) -> str:
    # 8907 is 8.9.7; from 9 on, 90100 is 9.1.0.
    base = 10_000 if number >= 10_000 else 1_000
    return f"{number // base}.{number % base // 100}.{number % 100}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _gb(number: int) -> str:
    return f"{number / 1e9:.1f} GB"
