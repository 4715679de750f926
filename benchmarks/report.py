"""All that was found as one text in Markdown, and the block of a page that it is put into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.latency_plot import plot_name
from benchmarks.peer_tables import answer_tables, best_peer_table, peer_tables
from benchmarks.results import outdated
from benchmarks.tables import (
    batch_table,
    endurance_table,
    input_table,
    loader_table,
    serving_tables,
    size_table,
    startup_table,
    step_table,
    storage_table,
    triton_table,
)
from benchmarks.targets import Bar, bars_of_parts, peer_parts

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
"""What is between them in docs/performance.md is written by `python -m benchmarks --docs`."""


def page(machines: Mapping[str, Mapping[str, Any]]) -> str:
    """What was found on all machines, by the names of their files: the bars side by side, then each one's tables."""
    lines = list(_bar_table(machines))
    for name, results in machines.items():
        lines += [f"### {machine_title(results)}", "", *tables(results, plot_name(name))]
    return "\n".join(lines).rstrip() + "\n"


def markdown(results: Mapping[str, Any]) -> str:
    """What was found on one machine."""
    return "\n".join([*_bar_table({"": results}), *tables(results, plot_name("machine"))]).rstrip() + "\n"


def tables(results: Mapping[str, Any], plot: str) -> Iterator[str]:
    """All of one machine but the bars; `plot` is where the figure of the latencies is."""
    yield from origins(results)
    yield from best_peer_table(results)
    for part in peer_parts(results):
        yield from peer_tables(results[part])
    yield from answer_tables(results.get("answers"))
    yield from input_table(results.get("inputs"))
    yield from batch_table(results.get("batches"))
    yield from size_table(results.get("sizes"), results.get("decisions"))
    yield from storage_table(results.get("storage"))
    yield from startup_table(results.get("startup"))
    yield from loader_table(results.get("loader"))
    yield from step_table(results.get("training"))
    yield from serving_tables(results.get("serving"), plot)
    yield from endurance_table(results.get("endurance"))
    yield from triton_table(results.get("triton"))


def machine_title(results: Mapping[str, Any]) -> str:
    """Its devices and the number of its processors, as its newest part has them."""
    machine = max(results.values(), key=lambda part: str(part["date"]))["machine"]
    return f"{', '.join([*machine['gpus'], machine['processor']])}, {machine['num_processors']} processors"


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


def _bar_table(machines: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A row for each bar, a column for each machine."""
    wanted: dict[str, str] = {}
    found: list[dict[str, str]] = []
    for results in machines.values():
        cells = {}
        old = outdated(results)
        for part, bars in bars_of_parts(results).items():
            for bar in bars:
                sign = "≤" if bar.at_most else "≥"
                wanted.setdefault(bar.name, f"{sign} {bar.wanted:g}")
                cells[bar.name] = _cell(bar, old.get(part))
        found.append(cells)
    if not wanted:
        return
    titles = ["found"] if len(machines) == 1 else [machine_title(results) for results in machines.values()]
    yield from (f"| bar | wanted | {' | '.join(titles)} |", "|---|---|" + "---|" * len(titles))
    for name, least in wanted.items():
        yield f"| {name} | {least} | {' | '.join(cells.get(name, '') for cells in found)} |"
    yield ""


def _cell(bar: Bar, commit: str | None) -> str:
    digits = 0 if isinstance(bar.found, int) else 3 if bar.wanted == 0.99 else 2
    age = "" if commit is None else f", at {commit}"
    return f"{bar.found:.{digits}f}, {'met' if bar.is_met else 'missed'}{age}"


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
