"""The table of what no test runs, in docs/testing.md, names files that are there."""

from __future__ import annotations

import pytest
from coverage_list import ROOT, named, without_reason


@pytest.fixture(scope="module")
def names() -> list[str]:
    return named((ROOT / "docs" / "testing.md").read_text(encoding="utf-8"))


def test_every_file_of_the_table_is_there_and_comes_once(names: list[str]) -> None:
    assert len(names) > 50
    assert sorted(set(names)) == sorted(names)
    assert [name for name in names if not (ROOT / "alexdeploy" / name).exists()] == []


def test_a_file_that_the_table_does_not_name_is_told_with_its_lines() -> None:
    report = {
        "alexdeploy/cluster/crew.py": {"missing_lines": [1]},
        "alexdeploy/core/files.py": {"missing_lines": [2]},
        "alexdeploy/core/new.py": {"missing_lines": [3, 7]},
        "alexdeploy/core/run.py": {"missing_lines": []},
        "/elsewhere/alexdeploy/core/copy.py": {"missing_lines": [1]},
    }
    assert without_reason(report, ["cluster/", "core/files.py"]) == ["core/new.py: 3, 7"]
