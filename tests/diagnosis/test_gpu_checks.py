"""What is said of packages for GPUs, on machines that are imagined."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexdeploy.diagnosis.gpu_checks import judge_driver, judge_gpu_backends
from alexdeploy.diagnosis.gpu_errors import supported_capabilities
from alexdeploy.diagnosis.package_check import PackageCheck
from alexdeploy.placement.devices import Device, GpuSurvey


def machine(capability: tuple[int, int]) -> GpuSurvey:
    gpu = Device(kind="cuda", index=0, uuid="GPU-0", name="a GPU", compute_capability=capability)
    return GpuSurvey(devices=(gpu,), driver="580.1", cuda_version=(13, 0))


@pytest.mark.parametrize(
    ("version", "lowest", "highest"),
    [
        ("8.6.1.post1", (5, 0), (9, 0)),
        ("10.4.0", (7, 0), (9, 0)),
        ("10.5.0", (7, 5), (9, 0)),
        ("10.7.0.post1", (7, 5), (9, 0)),
        ("10.8.0.43", (7, 5), None),
        ("unknown version", (0, 0), None),
    ],
)
def test_blackwell_is_known_from_10_8_on_and_nothing_is_said_of_a_version_that_is_not_known(
    version: str, lowest: tuple[int, int], highest: tuple[int, int] | None
) -> None:
    assert supported_capabilities(version) == (lowest, highest)


@pytest.mark.parametrize(
    ("version", "capability", "status"),
    [
        ("10.7.0", (10, 0), "problem"),
        ("10.8.0.43", (10, 0), "ok"),
        ("10.8.0.43", (7, 0), "problem"),
        (None, (12, 0), "ok"),
        (None, (3, 5), "ok"),
    ],
)
def test_a_gpu_is_too_new_or_too_old_only_for_a_version_that_is_known(
    version: str | None, capability: tuple[int, int], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexdeploy.diagnosis.gpu_checks.tensorrt_version", lambda: None)
    probe = PackageCheck(facts={} if version is None else {"version": version})
    tensorrt, *_ = judge_gpu_backends({"tensorrt": probe}, machine(capability), (13, 0), has_gpu=True)
    assert tensorrt.status == status


@pytest.mark.parametrize(
    ("packages", "driver_cuda", "told"),
    [
        # An update from CUDA 12 to 13 that left the old libraries; then the other way round; then both of one version.
        ({"tensorrt_cu12_libs": "10.9.0", "tensorrt_cu13": "10.16.1"}, (12, 9), "is for CUDA 13"),
        ({"tensorrt_cu12_libs": "10.9.0", "tensorrt_cu13": "10.16.1"}, (13, 0), None),
        ({"tensorrt_cu13_libs": "10.15.0", "tensorrt_cu12_bindings": "10.16.1.post1"}, (12, 9), None),
        ({"tensorrt_cu13": "10.16.1", "tensorrt_cu12": "10.16.1"}, (12, 9), None),
        ({"tensorrt_cu13": "10.16.1", "tensorrt_cu12": "10.16.1"}, (11, 8), "is for CUDA 12"),
        ({"tensorrt_cu13": "10.15.0"}, (12, 9), "is for CUDA 13"),
        ({}, (11, 8), None),
    ],
)
def test_what_another_tensorrt_left_does_not_say_which_cuda_it_is_for(
    packages: dict[str, str],
    driver_cuda: tuple[int, int],
    told: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, version in packages.items():
        folder = tmp_path / name / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    # They are found in this order.
    monkeypatch.setattr("sys.path", [str(tmp_path / name) for name in packages])
    probe = PackageCheck(facts={"version": "10.16.1"})
    tensorrt, *_ = judge_gpu_backends({"tensorrt": probe}, machine((9, 0)), driver_cuda, has_gpu=True)
    assert tensorrt.status == ("problem" if told else "ok")
    assert (told or "10.16.1") in tensorrt.found


def test_a_gpu_whose_driver_tells_no_version_is_no_problem() -> None:
    gpu = Device(kind="cuda", index=0, uuid="54d0709b-558d-5a59-9f4c-0123456789ab", name="Orin (nvgpu)")
    finding = judge_driver(GpuSurvey(devices=(gpu,), cuda_version=(12, 6)), has_board=True)
    assert (finding.status, finding.found) == ("ok", "its version is not told, runs CUDA up to 12.6")
