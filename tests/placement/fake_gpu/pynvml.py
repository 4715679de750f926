"""NVML on a machine with one H100, as far as alexdeploy asks; what is not there it does not answer."""

# ruff: noqa: N802, N816

from types import SimpleNamespace


class NVMLError(Exception):
    """Never raised."""


def nvmlInit() -> None:
    """There is nothing to begin."""


nvmlShutdown = nvmlInit


def nvmlSystemGetDriverVersion() -> str:
    return "580.65.06"


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return 13000


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetUUID(gpu: int) -> str:
    return "GPU-00000000-0000-0000-0000-000000000000"


def nvmlDeviceGetName(gpu: int) -> str:
    return "NVIDIA H100"


def nvmlDeviceGetCudaComputeCapability(gpu: int) -> tuple[int, int]:
    return 9, 0


def nvmlDeviceGetMemoryInfo(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(free=80_000_000_000, total=85_000_000_000)
