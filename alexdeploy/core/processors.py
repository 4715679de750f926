"""How many processors this process may use: what the number of threads follows."""

from __future__ import annotations

import os
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_processors(cpu_max: Path = _CPU_MAX) -> int:
    """The affinity mask's processors, or fewer where a container's quota is less; at least 1.

    `cpu_max` is the control group's file (Linux, cgroup v2): quota and period in microseconds, or "max" for no quota.
    A quota of 2.5 processors counts as 3.
    """
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cpu_max)
    return mask if quota is None else max(1, min(mask, quota))


def _quota(cpu_max: Path) -> int | None:
    try:
        quota, period = (int(word) for word in cpu_max.read_text().split())
    except (OSError, ValueError):
        return None
    return -(-quota // period) if period > 0 else None
