"""Markdown and YAML around text from files, which can be hostile: such text is data everywhere, never markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alexdeploy.core.printable import escape

_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~$@&:^=]|(?<=\d)\.|\.(?=\S))")


def code(text: object) -> str:
    """A code span that shows `text` as it is: in it, nothing is a link, HTML or a formula."""
    shown = escape(str(text))
    if not shown.strip():
        return "(empty)" if not shown else "(blank)"
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " * (shown[0] in "` " or shown[-1] in "` ")
    return f"{fence}{space}{shown}{space}{fence}"


def plain(text: str) -> str:
    """`text` outside of code, on one line, with every character of Markdown and HTML escaped."""
    return _PUNCTUATION.sub(r"\\\1", escape(text))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; columns whose name ends in `:` are right-aligned."""
    names = [name.removesuffix(":") for name in header]
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    # A table is cut at every | without a backslash before it, also within code.
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (names, rule, *lines))


def fenced(lines: str, language: str = "") -> str:
    """A block of code."""
    longest = max(map(len, re.findall("`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{lines.rstrip()}\n{fence}\n"


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML block at the top of a model card."""
    return "---\n" + "".join(f"{line}\n" for line in _lines(values)) + "---\n"


def scalar(value: object) -> str:
    """A value as JSON, which is YAML too; characters that no YAML file may have are shown as escapes."""
    return json.dumps(escape(value) if isinstance(value, str) else value, ensure_ascii=False)


def _lines(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping | list):
                yield f"{key}:"
                yield from (f"  {line}" for line in _lines(inner))
            else:
                yield f"{key}: {scalar(inner)}"
        return
    for item in value:
        first, *rest = _lines(item) if isinstance(item, Mapping) else [scalar(item)]
        yield f"- {first}"
        yield from (f"  {line}" for line in rest)
