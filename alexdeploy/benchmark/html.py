"""The HTML page of a benchmark: its tables, and the plots of plots.py."""

from __future__ import annotations

from pathlib import Path

from alexdeploy.benchmark import plots
from alexdeploy.benchmark.format import confidence_note, errors_of, hints_of, number, percent, rate, spread
from alexdeploy.benchmark.results import Benchmark
from alexdeploy.reports import page


def write_report(found: Benchmark, path: Path | None, plots_folder: Path | None = None) -> None:
    """Write the page to `path`, if it is given; the same benchmark gives the same bytes. Raises OutputError.

    Its plots also go into `plots_folder`, as PNG and SVG.
    """
    with page.drawing(plots_folder):
        parts_of_page = [
            page.paragraph(_summary(found)),
            *map(page.paragraph, found.notes),
            *_picked(found),
            page.heading("All configurations"),
            _rows(found),
            *map(page.paragraph, errors_of([row for row in found.rows if row.latency is not None])),
            *map(page.paragraph, hints_of(found.rows)),
            page.paragraph(
                "Engine: images/s on decoded images with every stream busy. Files: images/s as predict does it, from "
                "files to rows. Bound: files over the most that decoding alone and the engine alone allow; on a CPU "
                "they share the cores, and an engine that leaves cores idle while it is alone can be above 100 %. "
                "Latency is of a batch in the engine alone, nothing decoding beside it. Ceiling: the engine's GFLOP/s "
                "over those of large matrix products in the same backend and precision. Same: answers that are those "
                "of FP32 with as many views."
            ),
            *_rounds(found),
        ]
        measured = [row for row in found.rows if row.latency is not None]
        if measured:
            parts_of_page += [
                page.heading("Throughput against batch"),
                plots.throughput(found, measured),
                page.heading("Latency of a batch"),
                plots.latencies(measured),
            ]
            parts_of_page += plots.time_of_an_image(found)
        for each in found.profiles:
            parts_of_page += [page.heading(f"Layers: {each.group}"), plots.layers(each)]
    parts_of_page += [page.heading("Start-up and matrix products"), _starts(found), _ceilings(found)]
    parts_of_page += [page.heading("What was measured, and on what"), _facts(found)]
    if path is None:
        return
    page.write_page(path, f"{found.name}: speed on this machine", parts_of_page)


def _summary(found: Benchmark) -> str:
    rounds = f"{found.num_rounds} round{'' if found.num_rounds == 1 else 's'}"
    words = f"{len(found.rows)} configurations, {rounds} in {found.seconds:.0f} s. Images: "
    words += f"{found.images}, {found.image_bytes / max(found.num_images, 1) / 1e3:,.0f} kB each. "
    words += "Every round measures each configuration for a short while, in an order of its own; rates are medians "
    words += "over rounds. Each backend, precision and number of views has a process of its own, and so has each batch "
    words += "on GPUs and in OpenVINO."
    return words + (" It was ended before its time." if found.interrupted else "")


def _picked(found: Benchmark) -> list[str]:
    if found.failure is not None:
        return [page.heading("Nothing keeps the limits"), page.paragraph(f"{found.limits}: {found.failure}")]
    if not found.picked:
        return []
    rows = [
        (str(each.configuration), rate(each.files_per_second), f"{each.p95_ms:,.1f}", each.command)
        for each in found.picked
    ]
    notes = [f"{each.configuration}: {words}." for each in found.picked if (words := confidence_note(each)) is not None]
    title = f"Fastest with {found.limits}" if str(found.limits) != "no limits" else "Fastest"
    return [
        page.heading(title),
        page.table(["configuration", "images/s from files", "p95 ms", "command"], rows, numbers=(1, 2)),
        *map(page.paragraph, notes),
    ]


def _rows(found: Benchmark) -> str:
    header = ["backend", "precision", "views", "batch", "engine", "views/s", "files", "bound", "p50 ms", "p95 ms"]
    header += ["p99 ms", "batches", "GFLOP/s", "ceiling", "MB", "same"]
    lines = []
    for row in found.rows:
        named = row.configuration
        cells: list[object] = [named.backend, named.precision, named.num_views, named.batch_size]
        if row.latency is None:
            words = "not measured" if row.error is None else f"error: {row.error}"
            lines.append([*cells, words, *[""] * (len(header) - 5)])
            continue
        cells += [rate(row.images_per_second), number(row.views_per_second, ",.0f")]
        cells += [rate(row.files_per_second), percent(row.fraction_of_bound)]
        cells += [f"{value:,.1f}" for value in (row.latency.p50_ms, row.latency.p95_ms, row.latency.p99_ms)]
        cells += [f"{row.latency.num_batches:,}", number(row.gflops, ",.0f"), percent(row.fraction_of_ceiling)]
        cells.append(number(None if row.peak_bytes is None else row.peak_bytes / 1e6, ",.0f"))
        cells.append("" if row.agreed is None else f"{row.agreed.num_same}/{row.agreed.num_images}")
        lines.append(cells)
    return page.table(header, lines, numbers=range(2, len(header)))


def _rounds(found: Benchmark) -> list[str]:
    """Variation between rounds; empty with one round."""
    lines = [
        (
            str(row.configuration),
            *(rate(row.images_per_second), spread(row.engine_rates)),
            *(rate(row.files_per_second), spread(row.file_rates)),
        )
        for row in found.rows
        if len(row.file_rates) > 1
    ]
    if not lines:
        return []
    header = ["configuration", "engine", "least-most", "files", "least-most"]
    words = (
        "Images/s: the median, and the slowest and the fastest round. Where they overlap, the order may be by chance."
    )
    return [
        page.heading("How far the rounds are apart"),
        page.table(header, lines, numbers=(1, 2, 3, 4)),
        page.paragraph(words),
    ]


def _starts(found: Benchmark) -> str:
    rows = []
    for group in dict.fromkeys(row.configuration.group for row in found.rows):
        start = next((row.start for row in found.rows if row.configuration.group == group), None)
        if start is not None:
            times = (start.load_seconds, start.open_seconds, start.first_row_seconds)
            rows.append((str(group), *(f"{seconds:.2f}" for seconds in times)))
    header = ["process", "load s", "engine open after s", "first row after s"]
    return page.table(header, rows, numbers=(1, 2, 3)) + page.paragraph(
        "From the start of a process. Load is importing the backend and opening the engine, with its compiled model "
        "from the cache: what had to be compiled was compiled in a process before this one."
    )


def _ceilings(found: Benchmark) -> str:
    rows = [
        (each.backend, each.precision, number(each.gflops, ",.0f") or (each.error or "not measured"))
        for each in found.ceilings
    ]
    return page.table(["backend", "precision", "GFLOP/s of matrix products"], rows, numbers=(2,))


def _facts(found: Benchmark) -> str:
    machine = found.machine
    loads = [f"{each:.1f}" for each in (machine.load_start, machine.load_end) if each is not None]
    rows: list[tuple[str, object]] = [
        ("model", found.model),
        ("contract", found.contract_sha256),
        ("images", found.images),
        ("decoding alone", f"{number(found.decode_per_second, ',.0f')} images/s"),
        ("processor", machine.processor),
        ("processors that may be used", machine.num_processors),
        ("threads", machine.num_threads),
        *([("GPUs", ", ".join(machine.gpus))] if machine.gpus else []),
        *([("memory", f"{machine.memory_bytes / 1e9:.1f} GB")] if machine.memory_bytes else []),
        *([("load before and after", ", ".join(loads))] if loads else []),
        ("platform", machine.platform),
        ("seed", found.seed),
        *machine.versions.items(),
    ]
    return page.table([], rows)
