"""How much memory this process may still take: the host's, or what a container leaves of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def host_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> tuple[int | None, int | None]:
    """Bytes of memory (available, in all), bounded by a container's limit; (None, None) where Linux's files are not."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError):
        return None, None
    # Version 2 of control groups, then version 1.
    names = (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    )
    for limit_name, usage_name, stat_name, cached_name in names:
        with suppress(OSError, ValueError, KeyError):
            limit = int((cgroup / limit_name).read_text())
            usage = int((cgroup / usage_name).read_text())
            stat = dict(line.split() for line in (cgroup / stat_name).read_text().splitlines())
            # Pages of files count as used, and are given up when memory is asked for.
            left = limit - (usage - int(stat.get(cached_name, 0)))
            return max(0, min(free, left)), min(total, limit)
    return free, total
