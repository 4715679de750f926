"""Whether docs/testing.md names every file with lines that no test runs: python tests/coverage_list.py COVERAGE.json.

`make coverage` runs it. It asks for a reason, not for a number: a file is in the table of the page, with why.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = "| not run | why |"


def named(page: str) -> list[str]:
    """The files and folders in the first column of the table, as written there."""
    rows = page.partition(TABLE)[2].partition("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([\w./]+)`", row.split("|")[1])]


def without_reason(report: dict[str, dict[str, list[int]]], names: list[str]) -> list[str]:
    """The files of the package that have lines which were not run, and that no name stands for: NAME, or its folder."""
    files = {name.removeprefix("alexdeploy/"): found for name, found in report.items()}
    return [
        f"{name}: {', '.join(map(str, found['missing_lines']))}"
        for name, found in sorted(files.items())
        if found["missing_lines"]
        and not name.startswith("/")
        and not any(name == each or (each.endswith("/") and name.startswith(each)) for each in names)
    ]


if __name__ == "__main__":
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    left = without_reason(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["files"], named(page))
    for line in left:
        print(f"docs/testing.md has no reason for what no test runs in {line}")
    sys.exit(1 if left else 0)
