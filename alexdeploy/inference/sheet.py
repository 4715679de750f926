"""A page of photographs with their five best answers (Krizhevsky et al. 2012, Figure 4, left), for finding doubt."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.engines.base import EngineInfo
from alexdeploy.images.crops import view_boxes
from alexdeploy.inference.row import Row
from alexdeploy.inference.writers import short_artifact
from alexdeploy.reports import page
from alexdeploy.reports.thumbnails import picture, thumbnail

NUM_BARS = 5
_NUM_ERRORS = 100
_MAX_SOURCE = 200
"""Characters of a path that are shown, its last ones; a page's size is bounded."""

_MAX_ERROR = 300
_SIZE = 192
"""Sides of a photograph in the page, in pixels."""

_PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")
_CORNERS = ((1, 1), (19, 1), (1, 19), (19, 19), (10, 10))
"""Where a view is drawn, in a square of 30: the corners, then the centre, as `view_boxes` cuts them."""

_STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.4rem 1.2rem; }
.sheet figure { margin: 0; }
.sheet img { width: 100%; max-width: 16rem; }
.sheet ol { list-style: none; margin: .3rem 0; padding: 0; max-width: 16rem; }
.sheet li { display: flex; justify-content: space-between; gap: .5rem; padding: 0 .3rem; margin-bottom: 2px;
  font-size: .8rem; background: linear-gradient(#9cc7e6, #9cc7e6) 0 0 / var(--p) 100% no-repeat #eef2f5; }
.sheet li.named { background-image: linear-gradient(#f2b48a, #f2b48a); }
.sheet li span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.sheet .note { font-size: .75rem; max-width: 16rem; overflow-wrap: anywhere; }
.sheet svg { width: 1.9rem; height: 1.9rem; float: left; margin: .1rem .3rem 0 0; background: none; border-radius: 0; }
.sheet rect { fill: #E69F00; stroke: #fff; }
.sheet rect.agrees { fill: #0072B2; }
#order { font: inherit; }
@media (prefers-color-scheme: dark) {
  .sheet li { background-image: linear-gradient(#24577a, #24577a); background-color: #24282d; }
  .sheet li.named { background-image: linear-gradient(#8a4a1c, #8a4a1c); }
  .sheet svg { background: none; }
}
"""
_SCRIPT = """
const order = document.getElementById("order");
order.closest("p").hidden = false;
order.addEventListener("change", () => {
  const [key, sign] = order.value.split(" ");
  const sheet = document.querySelector(".sheet");
  sheet.append(...[...sheet.children].sort(
    (a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.index - b.dataset.index));
});
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    row: Row
    view_classes: tuple[int, ...] | None
    photograph: bytes


class Sheet:
    """Collects rows, and keeps the photographs of the `limit` most doubtful: those with the smallest margins."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # The least doubtful first, and of equals the last: it is the next to go.
        self._heap: list[tuple[float, int, _Entry]] = []
        self._errors: list[Row] = []
        self._num_rows = self._num_errors = 0
        self._num_named = self._num_as_named = 0

    def add(
        self,
        row: Row,
        classes: Sequence[str],
        view_classes: NDArray[np.int32] | None,
        square: Callable[[], NDArray[np.uint8]] | None,
    ) -> None:
        """Count a row, and keep it if it is among the most doubtful so far.

        Only then `square` is called for the pixels that the network got, uint8 [256, 256, 3]. `view_classes`
        int32 [V], or None if the answers of the views are not known any more. Rows with errors need no `square`.
        """
        self._num_rows += 1
        if row.error is not None or square is None:
            self._num_errors += 1
            if len(self._errors) < _NUM_ERRORS:
                self._errors.append(row)
            return
        named = folder_class(row.source, classes)
        self._num_named += named is not None
        self._num_as_named += named is not None and named == row.label
        rank = (-margin(row), -row.index)
        if len(self._heap) == self._limit and rank < self._heap[0][:2]:
            return
        votes = None if view_classes is None else tuple(map(int, view_classes))
        entry = _Entry(row=row, view_classes=votes, photograph=thumbnail(square(), _SIZE))
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, (*rank, entry))
        else:
            heapq.heapreplace(self._heap, (*rank, entry))

    def write(self, path: Path, model: str, info: EngineInfo) -> None:
        """Write the page. Raises OutputError."""
        entries = [entry for _, _, entry in sorted(self._heap, key=lambda item: -item[1])]
        parts = [page.paragraph(each) for each in self._summary(model, info)]
        if entries:
            parts += [_chooser(entries), '<div class="sheet">', *(_card(each, info.classes) for each in entries)]
            parts.append("</div>")
        if self._errors:
            parts.append(page.heading("Not classified"))
            if self._num_errors > len(self._errors):
                parts.append(page.paragraph(f"The first {len(self._errors)} of {self._num_errors:,}."))
            rows = [(row.index, _end(row.source, _MAX_SOURCE), (row.error or "")[:_MAX_ERROR]) for row in self._errors]
            parts.append(page.table(["index", "image", "error"], rows, numbers=[0]))
        page.write_page(path, f"{model}: answers", parts, style=_STYLE, script=_SCRIPT if entries else "")

    def _summary(self, model: str, info: EngineInfo) -> list[str]:
        views = f"{info.num_views} view{'' if info.num_views == 1 else 's'}"
        what = f"{model}, {info.backend} {info.precision}, {views}, artifact {short_artifact(info.artifact)}"
        lines = [f"{self._num_rows:,} images, {self._num_errors:,} of them not classified. {what}."]
        if num_left := self._num_rows - self._num_errors - len(self._heap):
            lines.append(
                f"The {len(self._heap):,} most doubtful are shown, by the margin between the best and the second "
                f"probability; {num_left:,} others are left out (--sheet-images)."
            )
        if self._num_named:
            lines.append(
                f"{self._num_named:,} images are in a folder with the name of a class, which is orange below; "
                f"{self._num_as_named:,} of them ({self._num_as_named / self._num_named:.1%}) were classified so."
            )
        if self._heap:
            lines.append("A photograph is the square that the network got. The bars are probabilities.")
        if info.num_views > 1 and any(entry.view_classes is not None for _, _, entry in self._heap):
            mirrored = " and on the right the mirrored ones" if info.num_views > len(_PLACES) else ""
            lines.append(
                f"The small squares are the views, where they were cut{mirrored}: blue if the view alone gives the "
                "answer, orange if it gives another class, which is named beside them."
            )
        return lines


def margin(row: Row) -> float:
    """How much more probable the best class is than the second, 0 to 1; the probability if the row has one class."""
    second = row.top[1].probability if len(row.top) > 1 else 0.0
    return row.top[0].probability - second


def folder_class(source: str, classes: Sequence[str]) -> str | None:
    """The folder that an image is in, if it is called like a class."""
    parts = re.split(r"[/\\!]", source)
    return parts[-2] if len(parts) > 1 and parts[-2] in classes else None


def _chooser(entries: Sequence[_Entry]) -> str:
    choices = [
        ("index 1", "as given"),
        ("margin 1", "smallest margin first"),
        ("probability 1", "least probable first"),
        ("probability -1", "most probable first"),
    ]
    if any(entry.row.num_views > 1 for entry in entries):
        choices.append(("views 1", "fewest views agreeing first"))
    if any("/" in entry.row.source for entry in entries):
        choices.append(("named 1", "unlike their folder first"))
    options = "".join(f'<option value="{value}">{page.text(words)}</option>' for value, words in choices)
    return f'<p hidden><label>Order: <select id="order">{options}</select></label></p>'


def _card(entry: _Entry, classes: Sequence[str]) -> str:
    row = entry.row
    named = folder_class(row.source, classes)
    # Not in a class folder: neither right nor wrong.
    rank = 1 if named is None else 2 if named == row.label else 0
    data = {
        "index": row.index,
        "margin": f"{margin(row):.6f}",
        "probability": f"{row.probability:.6f}",
        "views": row.views_agreeing,
        "named": rank,
    }
    bars = "".join(
        f'<li{" class=named" * (choice.label == named)} style="--p: {100 * choice.probability:.1f}%">'
        f'<span title="{page.text(choice.label[:_MAX_SOURCE])}">{page.text(choice.label[:_MAX_SOURCE])}</span>'
        f"<span>{choice.probability:.3f}</span></li>"
        for choice in row.top[:NUM_BARS]
    )
    source = _end(row.source, _MAX_SOURCE)
    attributes = " ".join(f'data-{name}="{value}"' for name, value in data.items())
    return (
        f"<figure {attributes}>"
        f"{picture(entry.photograph, name=source)}<ol>{bars}</ol>"
        f'<figcaption class="note">{_votes(entry, classes)}{page.text(source)}</figcaption></figure>'
    )


def _votes(entry: _Entry, classes: Sequence[str]) -> str:
    """How the views voted, and which of them voted for something else."""
    row = entry.row
    if row.num_views == 1:
        return ""
    words = f"{row.views_agreeing} of {row.num_views} views agree"
    if entry.view_classes is None:
        return f"{words}<br>"
    best = row.top[0].index
    others: dict[str, list[str]] = defaultdict(list)
    drawings = []
    for start in range(0, row.num_views, len(_PLACES)):
        squares = []
        for number, place in enumerate(_PLACES):
            voted = entry.view_classes[start + number]
            name = f"mirrored {place}" if view_boxes(row.num_views, 1)[start + number].mirror else place
            if voted != best:
                others[classes[voted]].append(name)
            x, y = _CORNERS[number]
            squares.append(
                f'<rect x="{x}" y="{y}" width="10" height="10"{" class=agrees" * (voted == best)}>'
                f"<title>{page.text(f'{name}: {classes[voted][:_MAX_SOURCE]}')}</title></rect>"
            )
        drawings.append(f'<svg viewBox="0 0 30 30" role="img">{"".join(squares)}</svg>')
    if others:
        words += "; " + "; ".join(f"{name[:_MAX_SOURCE]}: {', '.join(names)}" for name, names in others.items())
    return f"{''.join(drawings)}{page.text(words)}<br>"


def _end(name: str, length: int) -> str:
    return name if len(name) <= length else f"...{name[-length:]}"
