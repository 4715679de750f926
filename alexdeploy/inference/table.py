"""Rows as lines of a table for people: column widths are fixed beforehand, so that rows can stream.

Names come from untrusted disks and archives. Characters in them that could move the cursor, colour the terminal,
change the text direction or end the line are shown as escapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from alexdeploy.core.printable import escape

if TYPE_CHECKING:
    from alexdeploy.inference.row import Row

_GAP = "  "
_PROBABILITY = 6
_MAX_LABEL = 28
_MIN_SOURCE = 12
_CUT = "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Widths of the columns in terminal cells; 0 leaves a column out."""

    source: int
    label: int
    following: int
    views: int

    @property
    def width(self) -> int:
        widths = (self.source, self.label, _PROBABILITY, self.following, self.views)
        return sum(width + len(_GAP) for width in widths if width) - len(_GAP)


def table_layout(classes: tuple[str, ...], top_k: int, num_views: int, width: int) -> Layout:
    """Share `width` cells among the columns. Below about 40 cells, the table is wider than `width`."""
    label = min(max((cell_len(escape(name)) for name in classes), default=0), _MAX_LABEL, width // 4)
    label = max(label, len("label"))
    views = max(len(f"{num_views}/{num_views}"), len("views")) if num_views > 1 else 0
    rest = width - label - _PROBABILITY - 2 * len(_GAP) - (views + len(_GAP) if views else 0)
    one_choice = label + 1 + _PROBABILITY
    following = 0
    if top_k > 1 and rest >= 2 * _MIN_SOURCE + one_choice:
        wanted = (top_k - 1) * one_choice + (top_k - 2) * len(", ")
        following = min(wanted, rest // 2)
    source = rest - (following + len(_GAP) if following else 0)
    return Layout(source=max(source, _MIN_SOURCE), label=label, following=following, views=views)


def table_header(layout: Layout) -> str:
    """The line above the rows, with its newline."""
    cells = [fit("source", layout.source), fit("label", layout.label), "prob".rjust(_PROBABILITY)]
    if layout.views:
        cells.append("views".rjust(layout.views))
    if layout.following:
        cells.append("next")
    return _GAP.join(cells).rstrip() + "\n"


def table_line(layout: Layout, row: Row) -> str:
    """The line of one row, with its newline."""
    source = fit(escape(row.source), layout.source, keep_end=True)
    if row.error is not None:
        room = layout.width - layout.source - len(_GAP)
        return f"{source}{_GAP}{fit(escape(f'error: {row.error}'), room)}".rstrip() + "\n"
    cells = [source, fit(escape(row.label or ""), layout.label), f"{row.probability:{_PROBABILITY}.4f}"]
    if layout.views:
        cells.append(f"{row.views_agreeing}/{row.num_views}".rjust(layout.views))
    if layout.following:
        cells.append(_following(row, layout.following))
    return _GAP.join(cells).rstrip() + "\n"


def fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """Pad or cut printable `text` to `width` cells; a path is cut at its beginning, since its end says more."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    kept = set_cell_size(text[::-1] if keep_end else text, width - len(_CUT)).rstrip()
    return set_cell_size(_CUT + kept[::-1] if keep_end else kept + _CUT, width)


def _following(row: Row, width: int) -> str:
    """The choices after the first, as many as fit completely."""
    text = ""
    for choice in row.top[1:]:
        longer = f"{text}{', ' if text else ''}{escape(choice.label)} {choice.probability:.4f}"
        if cell_len(longer) > width:
            break
        text = longer
    return text
