"""The number and the date of a version are in three files, and are the same in all of them."""

from __future__ import annotations

import re
from pathlib import Path

import alexdeploy

ROOT = Path(__file__).parents[1]


def test_the_newest_section_of_the_changelog_and_the_citation_are_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    titles = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert titles[0] == "[Unreleased]"
    released = re.fullmatch(r"\[(\S+)\] - (\d{4}-\d\d-\d\d)", titles[1])
    assert released is not None
    assert released[1] == alexdeploy.__version__
    citation = dict(re.findall(r"^([a-z-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert (citation["version"], citation["date-released"]) == released.groups()
