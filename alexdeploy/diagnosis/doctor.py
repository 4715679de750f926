"""Diagnosis of this machine: driver, GPUs, backends, memory and disk, with a fix for each problem."""

from __future__ import annotations

import glob
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from alexdeploy.core import events
from alexdeploy.core.cache import cache_folder
from alexdeploy.core.memory import host_memory
from alexdeploy.core.model_folder import MODELS_FOLDER
from alexdeploy.core.packages import package_version
from alexdeploy.core.processors import available_processors
from alexdeploy.diagnosis.gpu_checks import (
    LEAST_MEMORY_BYTES,
    Finding,
    Status,
    gigabytes,
    judge_driver,
    judge_gpu,
    judge_gpu_backends,
    judge_libcuda,
    update_driver,
)
from alexdeploy.diagnosis.gpu_errors import short
from alexdeploy.diagnosis.package_check import PROBES, PackageCheck, run_probe
from alexdeploy.engines.trt.cuda_driver import cuda_version
from alexdeploy.placement.devices import survey_gpus

_LEAST_DISK_BYTES = 2 << 30
"""A full-size model has 0.25 GB of weights and as much per graph; compiled models are cached up to 2 GiB."""


def examine(on_event: Callable[[events.Status], None] = lambda event: None) -> tuple[Finding, ...]:
    """Check everything. Takes seconds, because each installed package is really imported. Never raises.

    `on_event` may be called from another thread.
    """
    on_event(events.Status(message="looking for GPUs"))
    survey = survey_gpus()
    libcuda = run_probe(PROBES["libcuda"])
    # A GPU hidden by CUDA_VISIBLE_DEVICES needs no backend; one whose driver fails does.
    has_gpu = bool(survey.devices) or bool(libcuda.facts.get("count"))
    has_board = has_gpu or (not survey.num_hidden and has_nvidia_board())
    packages = [name for name in PROBES if name != "libcuda" and importlib.util.find_spec(name) is not None]

    def probe(name: str) -> PackageCheck:
        on_event(events.Status(message=f"importing {name}, {packages.index(name) + 1} of {len(packages)} packages"))
        return run_probe(PROBES[name], has_gpu=has_gpu)

    with ThreadPoolExecutor(max_workers=2) as pool:
        told = pool.map(probe, packages)
        probes = dict(zip(packages, told, strict=True))
    number = libcuda.facts.get("version")
    driver_cuda = survey.cuda_version or (None if number is None else cuda_version(number))
    return (
        _python(),
        _processors(),
        _memory(),
        *_disk(),
        *_cpu_backends(probes),
        _torch(probes.get("torch"), has_gpu=has_gpu),
        judge_driver(survey, has_board=has_board),
        *(judge_gpu(device) for device in survey.devices),
        *(Finding(name="gpu", status="warning", found=note) for note in survey.notes),
        judge_libcuda(libcuda, has_board=has_board),
        *judge_gpu_backends(probes, survey, driver_cuda, has_gpu=has_gpu),
        _extra("matplotlib", "report", "evaluate --html, bench --html"),
        _extra("scipy", "matlab", "MATLAB files: import of .mat, ILSVRC's devkit"),
        _extra("h5py", "matlab", "import of MATLAB 7.3 files"),
        _extra("pyarrow", "parquet", "--format parquet"),
    )


def has_nvidia_board() -> bool:
    """Whether there is NVIDIA hardware, with or without a driver: Linux's device files, or its list of PCI cards."""
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
            # The key is "flags" on x86 and "Features" on ARM.
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    return set()


def _memory() -> Finding:
    free, total = host_memory()
    if free is None or total is None:
        return Finding(name="memory", status="ok", found="unknown on this system")
    found = f"{gigabytes(free)} available of {gigabytes(total)}"
    if free < LEAST_MEMORY_BYTES:
        return Finding(name="memory", status="warning", found=found, hint="Use a small --batch-size, or end programs.")
    return Finding(name="memory", status="ok", found=found)


def _disk() -> list[Finding]:
    cache = cache_folder("")
    if cache is None:
        missing = Finding(
            name="disk cache",
            status="warning",
            found="no folder that can be written: models are compiled again at every start",
            hint="Name one: export ALEXDEPLOY_CACHE=FOLDER",
        )
        return [_disk_of("disk models", MODELS_FOLDER), missing]
    return [_disk_of("disk models", MODELS_FOLDER), _disk_of("disk cache", cache)]


def _disk_of(name: str, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError as exc:
        return Finding(name=name, status="warning", found=f"{folder}: {exc.strerror}")
    found = f"{gigabytes(free)} free for {folder.absolute()}"
    if not os.access(there, os.W_OK):
        return Finding(name=name, status="warning", found=f"{there} cannot be written", hint="Work in another folder.")
    if free < _LEAST_DISK_BYTES:
        return Finding(name=name, status="warning", found=found, hint="Free some space: a full-size model takes 1 GB.")
    return Finding(name=name, status="ok", found=found)


def _cpu_backends(probes: Mapping[str, PackageCheck]) -> list[Finding]:
    """OpenVINO, and ONNX Runtime as a CPU engine: one of them is required."""
    findings = []
    works = [name for name in ("openvino", "onnxruntime") if name in probes and "version" in probes[name].facts]
    for name in ("openvino", "onnxruntime"):
        probe = probes.get(name)
        if probe is None:
            status: Status = "absent" if works else "problem"
            hint = "pip install 'alexdeploy[cpu]'"
            findings.append(Finding(name=name, status=status, found="not installed", hint=hint))
            continue
        if "version" not in probe.facts:
            hint = f"pip install --force-reinstall {name}"
            findings.append(Finding(name=name, status="problem", found=short(probe.error or ""), hint=hint))
            continue
        version = probe.facts["version"].partition("-")[0]
        types = [each for each in ("FP32", "FP16", "BF16", "INT8") if each in probe.facts.get("capabilities", ())]
        providers = [each.removesuffix("ExecutionProvider") for each in probe.facts.get("providers", ())]
        findings.append(Finding(name=name, status="ok", found=f"{version}; {', '.join(types or providers)}"))
    return findings


def _torch(probe: PackageCheck | None, *, has_gpu: bool) -> Finding:
    hint = "pip install 'alexdeploy[train]'"
    if probe is None:
        return Finding(name="torch", status="absent", found="not installed: needed to train and to export", hint=hint)
    if probe.error is not None:
        return Finding(
            name="torch", status="problem", found=short(probe.error), hint="pip install --force-reinstall torch"
        )
    cuda = probe.facts["cuda"]
    found = f"{probe.facts['version']}, {'without CUDA' if cuda is None else f'for CUDA {cuda}'}"
    if has_gpu and not probe.facts["is_available"]:
        hint = "Training will not use the GPU: install a build for CUDA, see pytorch.org"
        if cuda is not None:
            hint = f"Training will not use the GPU. {update_driver(int(cuda.split('.')[0]))}."
        return Finding(name="torch", status="warning", found=found, hint=hint)
    return Finding(name="torch", status="ok", found=found)


def _extra(package: str, extra: str, purpose: str) -> Finding:
    version = package_version(package)
    if version is None:
        hint = f"pip install 'alexdeploy[{extra}]'"
        return Finding(name=package, status="absent", found=f"not installed: for {purpose}", hint=hint)
    return Finding(name=package, status="ok", found=version)
