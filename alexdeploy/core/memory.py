"""The memory that this process may still allocate, the host's or the rest of a container's limit; giving it back."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

from alexdeploy.core.cgroups import PROC, ControlGroup, group_limits

# Files of a control group, by version: limit and usage in bytes; and what entries of memory.stat begin with.
_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}


def host_memory(proc: Path = PROC) -> tuple[int | None, int | None]:
    """Bytes of memory (available, total), bounded by a container's limits; (None, None) except on Linux."""
    try:
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError):
        return None, None
    for left, limit in group_limits("memory", _left_and_limit, proc):
        free, total = min(free, left), min(total, limit)
    return free, total


def is_in_memory(folder: Path, proc: Path = PROC) -> bool:
    """Whether files there take memory, as in a tmpfs, until they are deleted. False except on Linux."""
    with suppress(OSError, ValueError):
        device = folder.stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in (proc / "self/mountinfo").read_text().splitlines():
            mount, _, source = line.partition(" - ")
            if mount.split(" ")[2] == number:
                return source.split(" ")[0] in ("tmpfs", "ramfs")
    return False


def give_back_memory() -> None:
    """Return memory that was freed to the system: glibc keeps what other threads than the main one have freed."""
    if sys.platform == "linux":
        # Not every C library has it.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _left_and_limit(group: ControlGroup) -> tuple[int, int]:
    """Raises ValueError for "max", the value of a group without a limit."""
    limit_name, usage_name, prefix = _NAMES[group.version]
    limit, usage = int(group.read(limit_name)), int(group.read(usage_name))
    stat = dict(line.split() for line in group.read("memory.stat").splitlines())
    # Cached file pages count as used, but are reclaimed on demand, those that were read twice as well.
    cached = sum(int(stat.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))
    return min(limit, max(0, limit - usage + cached)), limit
