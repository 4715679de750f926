"""The number of processors that this process may use, which is the default number of threads."""

from __future__ import annotations

import os
from pathlib import Path

from alexdeploy.core.cgroups import PROC, ControlGroup, group_limits


def available_processors(proc: Path = PROC) -> int:
    """The affinity mask's processors, or fewer where a container's quota is less; at group_limits 1.

    A quota of 2.5 processors counts as 3. `proc` is where Linux's files are.
    """
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min((mask, *group_limits("cpu", _quota, proc))))


def _quota(group: ControlGroup) -> int:
    """Processors, rounded up. Raises ValueError for a group that has no quota."""
    if group.version == 2:
        # Quota and period in microseconds.
        quota, period = (int(word) for word in group.read("cpu.max").split())
    else:
        quota, period = int(group.read("cpu.cfs_quota_us")), int(group.read("cpu.cfs_period_us"))
    if quota < 0 or period <= 0:
        raise ValueError(f"a quota of {quota} in {period}")
    return -(-quota // period)
