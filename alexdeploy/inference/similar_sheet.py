"""Queries and their nearest photographs as a page, like the right half of the paper's figure 4."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from alexdeploy.core.errors import ImageError
from alexdeploy.images.decode import ResizePolicy, decode
from alexdeploy.images.sources import Source, iter_sources
from alexdeploy.inference.similar import Match
from alexdeploy.reports.page import paragraph, text, write_page
from alexdeploy.reports.thumbnails import THUMBNAIL_SIZE, picture, thumbnail

MOST_QUERIES = 100
"""Queries on a page: with six neighbours each, 700 thumbnails of about 4 kB."""

_STYLE = f"""
.match {{ display: flex; gap: .8rem; margin: 0 0 1.2rem; align-items: flex-start; overflow-x: auto; }}
.match figure {{ margin: 0; flex: 0 0 {THUMBNAIL_SIZE}px; font-size: .8rem; line-height: 1.35;
  overflow-wrap: anywhere; }}
.match figure:first-child {{ padding-right: .8rem; border-right: 2px solid #999; }}
.match img, .match .none {{ display: block; width: {THUMBNAIL_SIZE}px; height: {THUMBNAIL_SIZE}px; }}
.match .none {{ border: 1px dashed #999; box-sizing: border-box; padding: .4rem; }}
.match b {{ font-variant-numeric: tabular-nums; }}
"""


def write_sheet(path: Path, matches: Sequence[Match], title: str, words: str, resize: ResizePolicy = "crop") -> None:
    """Write one HTML file with the first MOST_QUERIES matches; a photograph that cannot be read again leaves a frame.

    Thumbnails are the squares that the network sees with `resize`. Raises OutputError.
    """
    shown = matches[:MOST_QUERIES]
    wanted = {each.source for match in shown for each in match.neighbours} | {match.query for match in shown}
    thumbnails = _thumbnails(wanted, resize)
    parts = [paragraph(words)]
    if len(matches) > len(shown):
        parts.append(paragraph(f"The first {len(shown)} of {len(matches):,} queries."))
    for match in shown:
        cells = [_cell(thumbnails, match.query, "query" if match.error is None else match.error)]
        cells += [_cell(thumbnails, each.source, f"{each.distance:#.4g}") for each in match.neighbours]
        parts.append('<div class="match">\n' + "\n".join(cells) + "\n</div>")
    write_page(path, title, parts, style=_STYLE)


def _cell(thumbnails: dict[str, bytes], name: str, words: str) -> str:
    data = thumbnails.get(name)
    image = '<div class="none">cannot be read</div>' if data is None else picture(data, name=name)
    file_name = re.split(r"[/\\!]", name)[-1]
    return f'<figure>{image}<b>{text(words)}</b><br><span title="{text(name)}">{text(file_name)}</span></figure>'


def _container(name: str) -> str:
    """The archive or packed set of an image in it, ARCHIVE!MEMBER; folders may have a "!" in their names as well."""
    containers = [name[: mark.start()] for mark in re.finditer("!", name)]
    return next(filter(os.path.exists, reversed(containers)), containers[0])


def _thumbnails(names: Iterable[str], resize: ResizePolicy) -> dict[str, bytes]:
    """The thumbnails of those sources that can be read, by name; each archive and packed set is read once."""
    found: dict[str, bytes] = {}
    inside: dict[str, set[str]] = {}
    for name in names:
        _add(found, Source(name=name, path=name), resize)
        if name not in found and "!" in name:
            inside.setdefault(_container(name), set()).add(name)
    for container, wanted in inside.items():
        for source in iter_sources([container]):
            if source.name in wanted:
                _add(found, source, resize)
                wanted.discard(source.name)
            if not wanted:
                break
    return found


def _add(found: dict[str, bytes], source: Source, resize: ResizePolicy) -> None:
    # ValueError: a name with a NUL.
    with suppress(ImageError, MemoryError, ValueError):
        found[source.name] = thumbnail(decode(source.read(resize), resize))
