"""Self-contained HTML pages: no other files, no network, figures as inline SVG.

External text, such as names of classes and files, is escaped here: in figures by matplotlib with math parsing off,
everywhere else by `text`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.util
import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import atomic_write, check_output
from alexdeploy.core.packages import missing_package
from alexdeploy.core.printable import escape

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BLUE, ORANGE, AMBER, GREEN, GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#767676"
"""Colours that colour-blind readers can distinguish (Okabe and Ito 2008), and grey for secondary data."""

_FIGURE_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "figure.labelsize": 9,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    # A name may contain dollar signs.
    "text.parse_math": False,
    "text.usetex": False,
    # As text: small, searchable, copyable, and in the reader's fonts where ours lack a script.
    "svg.fonttype": "none",
}
_PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 110rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
figure { margin: 1rem 0; }
svg { max-width: 100%; height: auto; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 33rem), 1fr)); gap: 0 2.5rem;
  align-items: start; }
.columns > * { min-width: 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem .8rem; }
.gallery > div { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; min-width: 0; }
.gallery img { display: block; margin-bottom: .2rem; border-radius: 3px; }
.gallery .none { width: 128px; height: 128px; border: 1px dashed #999; border-radius: 3px; margin-bottom: .2rem; }
.file { color: #555; font-size: .9em; }
figcaption, .note { color: #444; max-width: 48rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #e8e8e8; vertical-align: top; }
table.sortable th { cursor: pointer; }
table.sortable th[aria-sort=ascending]::after { content: " \\25B2"; }
table.sortable th[aria-sort=descending]::after { content: " \\25BC"; }
img { max-width: 100%; height: auto; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  /* A plot is scrolled rather than shrunk until nobody can read it; names break between letters only on wide pages. */
  .scroll > svg { max-width: 34rem; }
  td { overflow-wrap: break-word; min-width: 4.5rem; }
}
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #16181b; }
  h2, th, td { border-color: #3a3d42; }
  figcaption, .note, .file { color: #b4b8be; }
  /* Black ink becomes white and hues stay. Pictures in a figure keep their colours, on white paper. */
  .plot svg { filter: invert(1) hue-rotate(180deg); }
  figure:not(.plot) svg { background: #fff; border-radius: 6px; }
}
"""
# Columns are sorted by the attribute data-value of a cell or by its text, numerically where all of them are numbers. A
# second click sorts the other way.
_SORT_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const body = table.tBodies[0];
      const keyed = [...body.rows].map(row => {
        const cell = row.cells[column];
        return [cell.dataset.value ?? cell.textContent.trim(), row];
      });
      const numeric = keyed.every(([key]) => key !== "" && !isNaN(key));
      keyed.sort(([a], [b]) => (numeric ? a - b : a.localeCompare(b)) * (down ? -1 : 1));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...keyed.map(([, row]) => row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""
_MAX_NAME = 32
_PLOTS: ContextVar[Path | None] = ContextVar("_PLOTS", default=None)


class Markup(str):
    """HTML already: a cell of a table that is not escaped."""


def check_page_path(path: Path, option: str = "--html", *, has_figures: bool = True) -> None:
    """Raise UsageError if no page, with figures or without, could be written to `path`, the value of `option`.

    Call it before any costly work.
    """
    if has_figures:
        _check_matplotlib("an HTML report")
    check_output(path)
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; expected a file")


def check_plots_folder(path: Path, option: str = "--plots") -> None:
    """Raise UsageError if no plots could be written to the folder `path`, the value of `option`."""
    _check_matplotlib("plots")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{option} {path} is a file; expected a folder")
    check_output(path / "x.png")


def _check_matplotlib(purpose: str) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise missing_package("matplotlib", purpose, "report")


def write_page(path: Path, title: str, parts: Sequence[str], *, style: str = "", script: str = "") -> None:
    """Write one HTML file of `parts`, which are HTML already, with CSS and JavaScript of its own. Raises OutputError.

    The page may load nothing, and run no script but its own: its content security policy says so to the browser.
    """
    body = "\n".join(parts)
    if 'class="sortable"' in body:
        script = _SORT_SCRIPT + script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_PAGE_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{body}\n{f'<script>{script}</script>' if script else ''}\n</body>\n</html>\n"
    )
    with atomic_write(path) as file:
        file.write(page.encode())


def text(value: object) -> str:
    """`value` as HTML text or a quoted attribute; unprintable characters become visible."""
    return html.escape(escape(str(value)))


def lines(words: str) -> Markup:
    """`words` of our own as HTML text, their line ends kept. For names use `text`, which makes line ends visible."""
    return Markup("<br>".join(map(text, words.split("\n"))))


def heading(title: str, level: int = 2) -> str:
    return f"<h{level}>{text(title)}</h{level}>"


def paragraph(words: str) -> str:
    return f'<p class="note">{lines(words)}</p>'


def columns(*parts: str) -> str:
    """Parts of a page side by side where it is wide enough."""
    return '<div class="columns">' + "\n".join(f"<div>{part}</div>" for part in parts) + "</div>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[int] = (), is_sortable: bool = False
) -> str:
    """A table of text or Markup; the columns `numbers` are aligned to the right.

    A click on the head of a column of a sortable one sorts it.
    """

    def line(cells: Sequence[object], tag: str) -> str:
        marks = [' class="number"' if column in numbers else "" for column in range(len(cells))]
        inner = "".join(f"<{tag}{mark}>{_cell(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
        return f"<tr>{inner}</tr>"

    head = f"<thead>{line(header, 'th')}</thead>\n" if header else ""
    body = "\n".join(line(row, "td") for row in rows)
    kind = ' class="sortable"' if is_sortable else ""
    return f'<div class="scroll"><table{kind}>\n{head}<tbody>\n{body}\n</tbody>\n</table></div>'


def _cell(value: object) -> str:
    return value if isinstance(value, Markup) else text(value)


@contextmanager
def drawing(plots: Path | None = None) -> Iterator[None]:
    """Give figures that are made and rendered inside this block a common style. Not thread-safe.

    With a folder `plots`, `figure` also writes each of them there, as PNG and SVG.
    """
    # matplotlib reads it once, at import, and would otherwise create its own folders for its font list.
    folder = cache_folder("matplotlib")
    if folder is not None:
        os.environ.setdefault("MPLCONFIGDIR", str(folder))
    import matplotlib

    # Neither a thousand font names nor one warning per letter that our fonts lack is useful.
    with matplotlib.rc_context(_FIGURE_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        outer = _PLOTS.set(plots)
        try:
            yield
        finally:
            _PLOTS.reset(outer)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def blues() -> Colormap:
    """White to dark blue in steps of 5 %: so few that matplotlib draws a colour bar as shapes, not as a picture."""
    import matplotlib

    return matplotlib.colormaps["Blues"].resampled(20)


def figure(drawn: Figure, *, title: str, caption: str) -> str:
    """A figure with `title` as its text alternative and a caption that explains how to read it. Raises OutputError."""
    # First: the layout of a figure depends on what it was drawn for before.
    svg = _to_svg(drawn, salt=title)
    folder = _PLOTS.get()
    if folder is not None:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80] or "figure"
        for suffix in (".svg", ".png"):
            save_figure(drawn, folder / (stem + suffix), title=title)
    kind = "paper" if "<image" in svg else "plot"
    return (
        f'<figure role="img" aria-label="{text(title)}" class="{kind}">\n<div class="scroll">{svg}</div>'
        f"<figcaption>{text(caption)}</figcaption>\n</figure>"
    )


def framed(content: str, *, caption: str) -> str:
    """A figure of `content`, which is HTML already and has a text alternative of its own, with a caption."""
    return f"<figure>\n{content}<figcaption>{text(caption)}</figcaption>\n</figure>"


def save_figure(drawn: Figure, path: Path, *, title: str) -> None:
    """Write a figure to a file, SVG, or PNG with 150 pixels an inch, by its suffix. Raises OutputError."""
    with atomic_write(path) as file:
        if path.suffix == ".svg":
            svg = _to_svg(drawn, salt=title, paper="white")
            file.write(b'<?xml version="1.0" encoding="utf-8"?>\n' + svg.encode())
        else:
            drawn.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})


def short_name(name: str) -> str:
    """A name as written on an axis: printable and not too long."""
    shown = escape(name)
    return shown if len(shown) <= _MAX_NAME else shown[: _MAX_NAME - 3] + "..."


def _to_svg(drawn: Figure, *, salt: str, paper: str = "none") -> str:
    import matplotlib

    file = io.StringIO()
    # No date, and clip-path names that depend on the content: the same figures give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        drawn.savefig(
            file, format="svg", facecolor=paper, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # Group names would repeat from figure to figure, and nothing refers to them.
    return re.sub(r'<g id="[^"]*">', "<g>", svg)
