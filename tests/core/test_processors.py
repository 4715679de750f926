from __future__ import annotations

import os
from pathlib import Path

import pytest
from cgroup_files import write_cgroups

from alexdeploy.core.processors import available_processors

MASK = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
V1 = (("cgroup", "/", "rw,cpu,cpuacct"),)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("100000 100000", 1),
        ("1000 100000", 1),
        ("100001 100000", min(2, MASK)),
        ("250000 100000", min(3, MASK)),
        ("100000000 100000", MASK),
        ("max 100000", MASK),
        ("100000 0", MASK),
        ("100000", MASK),
        ("", MASK),
    ],
)
def test_a_quota_is_rounded_up_and_bounded_by_the_affinity_mask(tmp_path: Path, content: str, expected: int) -> None:
    assert available_processors(write_cgroups(tmp_path, files={"mount-0/cpu.max": content})) == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [
        (100000, 100000, 1),
        (1000, 100000, 1),
        (100001, 100000, min(2, MASK)),
        (-1, 100000, MASK),
        (100000, 0, MASK),
        ("", 100000, MASK),
    ],
)
def test_a_quota_of_version_1_counts_as_one_of_version_2(
    tmp_path: Path, quota: object, period: int, expected: int
) -> None:
    files = {"mount-0/cpu.cfs_quota_us": quota, "mount-0/cpu.cfs_period_us": period}
    paths = "2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n"
    assert available_processors(write_cgroups(tmp_path, files=files, paths=paths, mounts=V1)) == expected


def test_the_least_quota_of_the_groups_around_it_binds_a_process(tmp_path: Path) -> None:
    # As systemd and Kubernetes nest them: the quota is two levels up.
    for version, files, paths, mounts in (
        (2, {"a/cpu.max": "100000 100000", "a/b/cpu.max": "800000 100000", "a/b/c/cpu.max": "max 100000"}, "0::", None),
        (1, {"a/cpu.cfs_quota_us": 100000, "a/cpu.cfs_period_us": 100000, "a/b/c/cpu.cfs_quota_us": -1}, "4:cpu:", V1),
    ):
        proc = write_cgroups(
            tmp_path / str(version),
            files={f"mount-0/{name}": content for name, content in files.items()},
            paths=f"{paths}/a/b/c\n",
            mounts=mounts or (("cgroup2", "/", "rw"),),
        )
        assert available_processors(proc) == 1


@pytest.mark.parametrize("path", ["/docker/1234", "/../../docker/1234", "/elsewhere"])
def test_a_container_that_sees_its_own_group_as_the_root_has_its_quota(tmp_path: Path, path: str) -> None:
    files = {"mount-0/cpu.cfs_quota_us": 100000, "mount-0/cpu.cfs_period_us": 100000}
    mounts = (("cgroup", "/docker/1234", "rw,cpu"),)
    assert available_processors(write_cgroups(tmp_path, files=files, paths=f"4:cpu:{path}\n", mounts=mounts)) == 1


def test_with_both_versions_mounted_the_one_that_has_the_controller_counts(tmp_path: Path) -> None:
    both = (("cgroup2", "/", "rw"), ("cgroup", "/", "rw,cpu"))
    files = {
        "mount-0/cpu.max": "800000 100000",
        "mount-1/cpu.cfs_quota_us": 100000,
        "mount-1/cpu.cfs_period_us": 100000,
    }
    root = tmp_path / "with a blank"
    assert available_processors(write_cgroups(root, files=files, paths="4:cpu:/\n0::/\n", mounts=both)) == 1


def test_without_a_control_group_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert available_processors(tmp_path) == MASK
    assert available_processors(write_cgroups(tmp_path, files={}, paths="nonsense\n")) == MASK


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_the_affinity_mask_counts_below_the_quota(tmp_path: Path) -> None:
    proc = write_cgroups(tmp_path, files={"mount-0/cpu.max": "800000 100000"})
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_processors(proc) == 1
    finally:
        os.sched_setaffinity(0, before)
