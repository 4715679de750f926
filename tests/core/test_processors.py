from __future__ import annotations

import os
from pathlib import Path

import pytest

from alexdeploy.core.processors import available_processors

MASK = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("100000 100000\n", 1),
        ("1000 100000\n", 1),
        ("100001 100000\n", min(2, MASK)),
        ("250000 100000\n", min(3, MASK)),
        ("100000000 100000\n", MASK),
        ("max 100000\n", MASK),
        ("100000 0\n", MASK),
        ("100000\n", MASK),
        ("", MASK),
    ],
)
def test_a_quota_is_rounded_up_and_bounded_by_the_affinity_mask(tmp_path: Path, content: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert available_processors(tmp_path / "cpu.max") == expected


def test_without_a_control_group_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert available_processors(tmp_path / "cpu.max") == MASK


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs an affinity mask")
def test_the_affinity_mask_counts_below_the_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("800000 100000\n")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_processors(tmp_path / "cpu.max") == 1
    finally:
        os.sched_setaffinity(0, before)
