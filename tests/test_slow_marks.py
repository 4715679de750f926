"""Tests that `make test` leaves out are few, and CONTRIBUTING.md says why each is slow."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def _slow_tests() -> set[str]:
    """FILE::NAME of the functions that are marked, in whole or in part, and FILE where all of a file is."""
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any(_is_slow(each) for each in node.decorator_list):
                found.add(f"{path.name}::{node.name}")
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark" and _is_slow(node.value):
                found.add(path.name)
    return found


def _is_slow(node: ast.expr) -> bool:
    text = ast.unparse(node)
    return "pytest.mark.slow" in text or "slow_but_for(" in text


def test_each_slow_test_has_a_reason_in_contributing() -> None:
    rows = (TESTS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| slow test |")[2].splitlines()[2:]
    told = [row.split("`")[1] for row in rows[: rows.index("")]]
    assert sorted(told) == sorted(_slow_tests())
