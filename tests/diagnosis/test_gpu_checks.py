"""What is said of packages for GPUs, on machines that are imagined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alexdeploy.diagnosis.gpu_checks import judge_driver, judge_gpu, judge_gpu_backends
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


RTX = PackageCheck(facts={"version": "1.7.1.116"})


def test_tensorrt_rtx_is_enough_for_an_rtx_card_and_not_for_another_gpu() -> None:
    probes = {"tensorrt_rtx_bindings": RTX, "pycuda": PackageCheck(facts={"version": "2026.1"})}
    card, other = (judge_gpu_backends(probes, machine(each), (13, 0), has_gpu=True) for each in ((8, 9), (9, 0)))
    assert {each.name: each.status for each in card} == {
        "tensorrt": "warning",
        "pycuda": "ok",
        "onnxruntime-gpu": "warning",
        "tensorrt-rtx": "ok",
    }
    assert [each.status for each in other] == ["problem", "ok", "problem", "ok"]
    assert other[-1].found == "1.7.1.116, builds engines for RTX cards; no such card here to run them on"


def test_with_an_older_driver_tensorrt_rtx_only_builds() -> None:
    (*_, finding) = judge_gpu_backends({"tensorrt_rtx_bindings": RTX}, machine((8, 9)), (12, 9), has_gpu=True)
    assert finding.found == "1.7.1.116 is for CUDA 13, the driver runs CUDA up to 12.9: it only builds"
    assert (finding.status, finding.hint) == ("warning", "Install driver 580 or newer.")


def test_a_tensorrt_rtx_that_does_not_load_is_a_warning_with_its_error() -> None:
    broken = PackageCheck(error="ImportError: libtensorrt_rtx.so.1: cannot open shared object file")
    (*_, finding) = judge_gpu_backends({"tensorrt_rtx_bindings": broken}, machine((8, 9)), (13, 0), has_gpu=True)
    assert finding.status == "warning"
    assert "libtensorrt_rtx.so.1" in finding.found
    assert "alexdeploy[rtx]" in str(finding.hint)


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


@pytest.mark.parametrize(
    ("free", "status", "memory"),
    [
        (None, "ok", "memory unknown"),
        (100_000_000, "warning", "0.1 GB free of 80.0 GB"),
        (7e10, "ok", "70.0 GB free of 80.0 GB"),
    ],
)
def test_a_gpu_is_described_and_one_without_free_memory_is_a_warning(
    free: float | None, status: str, memory: str
) -> None:
    gpu = Device(
        kind="cuda",
        index=1,
        uuid="GPU-1",
        name="a GPU",
        compute_capability=(9, 0),
        free_bytes=None if free is None else int(free),
        total_bytes=80_000_000_000,
    )
    found = judge_gpu(gpu)
    assert (found.name, found.status) == ("cuda:1", status)
    assert found.found == f"a GPU, compute capability 9.0, {memory}, GPU-1"
    unknown = judge_gpu(replace(gpu, compute_capability=None, free_bytes=None))
    assert unknown.found == "a GPU, compute capability unknown, memory unknown, GPU-1"
