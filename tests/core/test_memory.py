from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cgroup_files import write_cgroups

from alexdeploy.core.memory import host_memory, is_in_memory

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    800 kB\nHugePages_Total:       0\n"


def write_memory(root: Path, files: Mapping[str, object], paths: str = "0::/\n", **mounts: Any) -> Path:
    return write_cgroups(root, files={"proc/meminfo": MEMINFO, **files}, paths=paths, **mounts)


def test_memory_is_what_linux_says_is_available(tmp_path: Path) -> None:
    assert host_memory(write_memory(tmp_path, {})) == (800 * 1024, 1000 * 1024)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # 500,000 may be used, 300,000 are, 100,000 of those are cached files.
        ({"memory.max": 500_000, "memory.current": 300_000, "memory.stat": "inactive_file 100000"}, (300_000, 500_000)),
        ({"memory.max": 500_000, "memory.current": 300_000, "memory.stat": "active_file 50000"}, (250_000, 500_000)),
        ({"memory.max": 500_000, "memory.current": 600_000, "memory.stat": "inactive_file 0"}, (0, 500_000)),
        ({"memory.max": "max", "memory.current": 1, "memory.stat": "inactive_file 0"}, (819_200, 1_024_000)),
        ({"memory.max": 10**18, "memory.current": 1, "memory.stat": ""}, (819_200, 1_024_000)),
        ({"memory.max": 500_000}, (819_200, 1_024_000)),
    ],
)
def test_a_containers_limit_bounds_the_memory(
    tmp_path: Path, files: dict[str, object], expected: tuple[int, int]
) -> None:
    proc = write_memory(tmp_path, {f"mount-0/{name}": content for name, content in files.items()})
    assert host_memory(proc) == expected


def test_the_least_limit_of_the_groups_around_it_binds_a_process(tmp_path: Path) -> None:
    # Of version 1: 200,000 are left in the inner group, 120,000 in the outer one, which has the larger limit.
    files = {
        "mount-0/a/b/memory.limit_in_bytes": 400_000,
        "mount-0/a/b/memory.usage_in_bytes": 250_000,
        "mount-0/a/b/memory.stat": "inactive_file 7\ntotal_inactive_file 50000",
        "mount-0/a/memory.limit_in_bytes": 600_000,
        "mount-0/a/memory.usage_in_bytes": 480_000,
        "mount-0/a/memory.stat": "total_inactive_file 0",
        "mount-0/memory.limit_in_bytes": 9223372036854771712,
        "mount-0/memory.usage_in_bytes": 700_000,
        "mount-0/memory.stat": "total_inactive_file 0",
    }
    proc = write_memory(tmp_path, files, "8:memory:/a/b\n0::/\n", mounts=(("cgroup", "/", "rw,memory"),))
    assert host_memory(proc) == (120_000, 400_000)


def test_memory_is_unknown_where_the_files_of_linux_are_not(tmp_path: Path) -> None:
    assert host_memory(tmp_path) == (None, None)


def test_which_folders_take_memory(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    (tmp_path / "self").mkdir()
    mounts = tmp_path / "self/mountinfo"
    for kind, expected in (("tmpfs", True), ("ext4", False)):
        mine = f"31 1 {os.major(device)}:{os.minor(device)} / /x rw - {kind} none rw\n"
        mounts.write_text(f"30 1 {os.major(device) + 1}:0 / /y rw shared:1 - tmpfs none rw\n{mine}")
        assert is_in_memory(tmp_path, tmp_path) is expected
    assert not is_in_memory(tmp_path / "none", tmp_path)
    assert not is_in_memory(tmp_path, tmp_path / "none")
