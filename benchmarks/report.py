"""All that was found as one text in Markdown, and the block of a page that it is put into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import outdated
from benchmarks.tables import (
    batch_table,
    endurance_table,
    input_table,
    loader_table,
    peer_tables,
    serving_tables,
    size_table,
    startup_table,
    step_table,
    triton_table,
)
from benchmarks.targets import bars_of_parts

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
"""What is between them in docs/performance.md is written by `python -m benchmarks --docs`."""


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, without the markers."""
    lines = [
        *origins(results),
        *_bar_table(results),
        *peer_tables(results.get("peers")),
        *input_table(results.get("inputs")),
        *batch_table(results.get("batches")),
        *size_table(results.get("sizes"), results.get("decisions")),
        *startup_table(results.get("startup")),
        *loader_table(results.get("loader")),
        *step_table(results.get("training")),
        *serving_tables(results.get("serving")),
        *endurance_table(results.get("endurance")),
        *triton_table(results.get("triton")),
    ]
    return "\n".join(lines).rstrip() + "\n"


def origins(results: Mapping[str, Any]) -> Iterator[str]:
    """Which parts were measured with what, when and how; those with the same machine and versions together."""
    origins: dict[str, dict[str, str]] = {}
    for name, part in results.items():
        machine = part["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
        devices = ", ".join([*machine["gpus"], machine["processor"]])
        when = f"{part['date'][:10]}, commit {part['commit']}"
        origin = f"{when}; {devices}, {machine['num_processors']} processors; {versions}"
        origins.setdefault(origin, {})[name] = part["command"]
    for origin, commands in origins.items():
        yield f"{', '.join(commands)}: {origin}."
        yield from ("", *(f"    {command}" for command in dict.fromkeys(commands.values())), "")
    old = outdated(results)
    if old:
        parts = ", ".join(f"{name} ({commit})" for name, commit in old.items())
        yield from (f"Not of the newest commit, and so perhaps no longer what the code does: {parts}.", "")


def _bar_table(results: Mapping[str, Any]) -> Iterator[str]:
    found, old = bars_of_parts(results), outdated(results)
    if not any(found.values()):
        return
    yield from ("| bar | wanted | found | |", "|---|---|---|---|")
    for part, bar in ((part, bar) for part, of_part in found.items() for bar in of_part):
        sign = "≤" if bar.at_most else "≥"
        digits = 3 if bar.wanted == 0.99 else 2
        met = "met" if bar.is_met else "missed"
        age = f", at {old[part]}" if part in old else ""
        yield f"| {bar.name} | {sign} {bar.wanted:g} | {bar.found:.{digits}f} | {met}{age} |"
    yield ""


def write_block(page: Path, text: str) -> None:
    """Put `text` between the markers of a page. Raises SystemExit if they are not there."""
    content = check_page(page)
    before, _, rest = content.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def check_page(page: Path) -> str:
    """The content of a page that has the markers. Raises SystemExit if it has not."""
    try:
        content = page.read_text(encoding="utf-8")
    except OSError as exc:
        raise SystemExit(f"{page} cannot be read: {exc.strerror}") from exc
    if content.count(BEGIN) != 1 or content.count(END) != 1 or content.index(BEGIN) > content.index(END):
        raise SystemExit(f"{page} lacks the markers {BEGIN} and {END}, once each and in this order")
    return content
