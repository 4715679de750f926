"""Links of the pages, and the navigation of their site: without the tool that builds it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from blocks import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_FENCES = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def without_blocks(page: Path) -> str:
    return _FENCES.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    counts: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_blocks(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(slug if not counts[slug] else f"{slug}-{counts[slug]}")
        counts[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_heading_that_a_page_links_to_is_there(page: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", without_blocks(page))
    missing = []
    for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{link}#{anchor}")
    assert missing == []


def test_every_page_is_once_in_the_navigation_of_the_site() -> None:
    """README is overview.md there, since a README is the page of its folder to the tool, which index.md is."""
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    docs = [page.name for page in (ROOT / "docs").glob("*.md")]
    of_the_root = re.findall(r"for page in ([A-Z ]+);", (ROOT / "Makefile").read_text(encoding="utf-8"))[0].split()
    assert sorted(pages_of(site["nav"])) == sorted([*docs, "overview.md", *(f"{name}.md" for name in of_the_root)])


def pages_of(entry: Any) -> list[str]:
    """The pages of a navigation or a part of it."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in pages_of(part)]


def test_the_site_loads_nothing_from_other_hosts() -> None:
    """What `make site` writes is looked at where it was run; its settings are, always."""
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    assert site["theme"]["font"] is False
    assert site["use_directory_urls"] is False
    assert all((ROOT / "docs" / script).is_file() for script in site["extra"]["polyfills"])
    for page in (ROOT / "build" / "site").glob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert loaded == [], page.name
