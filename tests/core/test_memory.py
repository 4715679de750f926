from __future__ import annotations

from pathlib import Path

import pytest

from alexdeploy.core.memory import host_memory

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    800 kB\nHugePages_Total:       0\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def test_memory_is_what_linux_says_is_available(meminfo: Path, tmp_path: Path) -> None:
    assert host_memory(meminfo, tmp_path / "none") == (800 * 1024, 1000 * 1024)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # 500,000 may be used, 300,000 are, 100,000 of those are cached files.
        ({"memory.max": 500_000, "memory.current": 300_000, "memory.stat": "inactive_file 100000"}, (300_000, 500_000)),
        ({"memory.max": 500_000, "memory.current": 600_000, "memory.stat": "inactive_file 0"}, (0, 500_000)),
        ({"memory.max": "max", "memory.current": 1, "memory.stat": "inactive_file 0"}, (819_200, 1_024_000)),
        ({"memory.max": 10**18, "memory.current": 1, "memory.stat": ""}, (819_200, 1_024_000)),
        ({"memory.max": 500_000}, (819_200, 1_024_000)),
        (
            {
                "memory/memory.limit_in_bytes": 400_000,
                "memory/memory.usage_in_bytes": 250_000,
                "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 50000",
            },
            (200_000, 400_000),
        ),
    ],
)
def test_a_containers_limit_bounds_the_memory(
    meminfo: Path, tmp_path: Path, files: dict[str, object], expected: tuple[int, int]
) -> None:
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    assert host_memory(meminfo, tmp_path / "cgroup") == expected


def test_memory_is_unknown_where_the_files_of_linux_are_not(tmp_path: Path) -> None:
    assert host_memory(tmp_path / "none", tmp_path) == (None, None)
