"""The page of a benchmark: its table, and plots of throughput, latency, and where the time goes."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexdeploy.inference import report
from alexdeploy.inference.bench_results import (
    Benchmark,
    Parts,
    Profile,
    Row,
    best_of,
    parts,
    views_of,
)
from alexdeploy.inference.bench_words import cures_of, doubt, errors_of, number, percent, rate, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"fp32": report.BLUE, "fp16": report.GREEN, "bf16": report.AMBER, "int8": report.ORANGE}
_STYLES = {"tensorrt": ("D", "-."), "openvino": ("o", "-"), "onnxruntime": ("s", "--"), "torch": ("^", ":")}
_LEAST_SHARE = 0.01
"""Layers that take less of an engine's time are drawn as one."""


def write_report(found: Benchmark, path: Path) -> None:
    """Write the page to `path`. The same benchmark gives the same bytes. Raises OutputError."""
    with report.drawing():
        parts_of_page = [
            report.paragraph(_summary(found)),
            *map(report.paragraph, found.notes),
            *_picked(found),
            report.heading("All configurations"),
            _rows(found),
            *map(report.paragraph, errors_of([row for row in found.rows if row.latency is not None])),
            *map(report.paragraph, cures_of(found.rows)),
            report.paragraph(
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
                report.heading("Throughput against batch"),
                _throughput(found, measured),
                report.heading("Latency of a batch"),
                _latencies(measured),
            ]
            parts_of_page += _time_of_an_image(found)
        for each in found.profiles:
            parts_of_page += [report.heading(f"Layers: {each.group}"), _layers(each)]
    parts_of_page += [report.heading("Start-up and matrix products"), _starts(found), _ceilings(found)]
    parts_of_page += [report.heading("What was measured, and on what"), _facts(found)]
    report.write_page(path, f"{found.name}: speed on this machine", parts_of_page)


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
        return [report.heading("Nothing keeps the limits"), report.paragraph(f"{found.limits}: {found.failure}")]
    if not found.picked:
        return []
    rows = [
        (str(each.configuration), rate(each.files_per_second), f"{each.p95_ms:,.1f}", each.command)
        for each in found.picked
    ]
    doubts = [f"{each.configuration}: {words}." for each in found.picked if (words := doubt(each)) is not None]
    title = f"Fastest with {found.limits}" if str(found.limits) != "no limits" else "Fastest"
    return [
        report.heading(title),
        report.table(["configuration", "images/s from files", "p95 ms", "command"], rows, numbers=(1, 2)),
        *map(report.paragraph, doubts),
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
    return report.table(header, lines, numbers=range(2, len(header)))


def _rounds(found: Benchmark) -> list[str]:
    """How far the rounds are apart; nothing of one round."""
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
        report.heading("How far the rounds are apart"),
        report.table(header, lines, numbers=(1, 2, 3, 4)),
        report.paragraph(words),
    ]


def _throughput(found: Benchmark, rows: Sequence[Row]) -> str:
    views = views_of(rows)
    drawn = report.new_figure(9.0, 3.0 * len(views) + 0.4)
    panels = drawn.subplots(len(views), 2, squeeze=False, sharex=True, sharey="row")
    sizes = sorted({row.configuration.batch_size for row in rows})
    for num_views, (left, right) in zip(views, panels, strict=True):
        own = [row for row in rows if row.configuration.num_views == num_views]
        for panel, name in ((left, "engine alone"), (right, "files to rows")):
            _lines(panel, own, is_engine=panel is left)
            panel.set_title(f"{name}, {num_views} view{'' if num_views == 1 else 's'}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            panel.tick_params(labelbottom=True, labelleft=True)
        # Both share the axis, which must hold the lines of both.
        top = 1.08 * max(1.0, left.dataLim.ymax, right.dataLim.ymax)
        left.set_ylim(0, top)
        if found.decode_per_second is not None and found.decode_per_second < 1.5 * top:
            left.set_ylim(0, max(top, 1.15 * found.decode_per_second))
            right.axhline(found.decode_per_second, color=report.GREY, linewidth=1, linestyle=":")
            right.annotate("decoding alone", (sizes[0], found.decode_per_second), (0, 3), textcoords="offset points")
        left.set_ylabel("images/s")
    drawn.supxlabel("batch, images")
    handles, names = [], []
    for panel in panels.flat:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            if name not in names:
                handles.append(handle)
                names.append(name)
    drawn.legend(handles, names, loc="outside right upper")
    return report.figure(
        drawn,
        title="Throughput against batch",
        caption="Left the engine on images that are decoded already, right the whole way. Where lines end at the same "
        "height on the right and not on the left, decoding is what limits. Medians over rounds.",
    )


def _lines(panel: Axes, rows: Sequence[Row], *, is_engine: bool) -> None:
    for group in dict.fromkeys(row.configuration.group for row in rows):
        own = [row for row in rows if row.configuration.group == group]
        pairs = [
            (row.configuration.batch_size, rate)
            for row in own
            if (rate := row.images_per_second if is_engine else row.files_per_second) is not None
        ]
        marker, style = _STYLES[group.backend]
        panel.plot(
            [size for size, _ in pairs],
            [rate for _, rate in pairs],
            color=_COLORS[group.precision],
            marker=marker,
            linestyle=style,
            markersize=4,
            linewidth=1.2,
            label=f"{group.backend} {group.precision}",
        )


def _latencies(rows: Sequence[Row]) -> str:
    drawn = report.new_figure(9.0, 1.0 + 0.24 * len(rows))
    axes = drawn.add_subplot()
    boxes = [
        {
            "whislo": each.least_ms,
            "q1": each.p25_ms,
            "med": each.p50_ms,
            "q3": each.p75_ms,
            "whishi": each.p95_ms,
            "fliers": [each.p99_ms, each.most_ms],
        }
        for row in rows
        if (each := row.latency) is not None
    ]
    # `vert` is how matplotlib before 3.10 says it, and a warning from then on.
    is_new = "orientation" in inspect.signature(axes.bxp).parameters
    lying: dict[str, Any] = {"orientation": "horizontal"} if is_new else {"vert": False}
    found = axes.bxp(boxes, **lying, widths=0.6, patch_artist=True, flierprops={"markersize": 3})
    for box, row in zip(found["boxes"], rows, strict=True):
        box.set(facecolor=_COLORS[row.configuration.precision], alpha=0.55)
    for line in found["medians"]:
        line.set(color="black")
    names = [str(row.configuration) for row in rows]
    axes.set_yticks(range(1, len(rows) + 1), names)
    axes.set_xscale("log")
    # Within a decade Matplotlib would name the ticks between in TeX, which SVG text shows as it is written.
    axes.locator_params(axis="x", subs=(1.0, 2.0, 5.0))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter("")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.grid(axis="y", visible=False)
    return report.figure(
        drawn,
        title="Latency of a batch",
        caption="A box holds the middle half of the batches, its line is the median; whiskers go from the fastest to "
        "p95, and the points are p99 and the slowest. All streams of the engine are busy meanwhile, as they are in "
        "predict, but nothing decodes beside it, as it does there. The axis is logarithmic.",
    )


def _time_of_an_image(found: Benchmark) -> list[str]:
    shares = {each.group: each.preprocessing_share for each in found.profiles}
    bars: list[tuple[str, Parts]] = []
    for group in dict.fromkeys(row.configuration.group for row in found.rows):
        best = best_of(found.rows, group)
        told = None if best is None else parts(best, found.decode_per_second, shares.get(group))
        if best is not None and told is not None:
            bars.append((str(best.configuration), told))
    if not bars:
        return []
    drawn = report.new_figure(9.0, 1.2 + 0.28 * len(bars))
    axes = drawn.add_subplot()
    places = range(len(bars))
    left = [0.0] * len(bars)
    for name, color in (
        ("decode", report.AMBER),
        ("preprocessing", report.GREEN),
        ("engine", report.BLUE),
        ("rest", "#bdbdbd"),
    ):
        widths = [max(getattr(told, name) or 0.0, 0.0) for _, told in bars]
        if any(widths):
            axes.barh(places, widths, left=left, height=0.65, color=color, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    whole = [told.whole for _, told in bars]
    axes.plot(whole, places, color="black", linestyle="", marker="|", markersize=14, markeredgewidth=1.6, label="whole")
    axes.set_yticks(places, [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of all cores for one image")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    caption = (
        "One image from file to row, at the fastest batch of each. Decode and engine are what they take alone; "
        "preprocessing, from pixels to views, is told apart where the layers were timed, and is in engine elsewhere. "
        "The black mark is the whole time of an image, as measured from files to rows. Rest is what the parts do not "
        "explain of it. A mark inside its bar says that together they take less than one after the other: decoding "
        "fills cores that the engine leaves idle while it is alone."
    )
    return [
        report.heading("Where the time of one image goes"),
        report.figure(drawn, title="Where the time of one image goes", caption=caption),
    ]


def _layers(found: Profile) -> str:
    total = sum(layer.milliseconds for layer in found.layers)
    bars: list[tuple[str, float, bool]] = []
    others = 0.0
    for layer in found.layers:
        if layer.milliseconds < _LEAST_SHARE * total:
            others += layer.milliseconds
        else:
            name = f"{report.short_name(layer.name)}  ({layer.kind})"
            bars.append((name, layer.milliseconds, layer.is_preprocessing))
    bars.append(("all others", others, False))
    drawn = report.new_figure(9.0, 1.0 + 0.24 * len(bars))
    axes = drawn.add_subplot()
    colors = [report.GREEN if is_before else report.BLUE for _, _, is_before in bars]
    axes.barh(range(len(bars)), [milliseconds for _, milliseconds, _ in bars], color=colors, height=0.65)
    for place, (_, milliseconds, _) in enumerate(bars):
        words = f"{milliseconds:.2f} ms, {100 * milliseconds / max(total, 1e-9):.0f} %"
        axes.annotate(words, (milliseconds, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(right=1.2 * max(milliseconds for _, milliseconds, _ in bars))
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel(f"milliseconds on one core for {found.num_images} image{'' if found.num_images == 1 else 's'}")
    axes.grid(axis="y", visible=False)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for layer in found.layers:
        by_kind[layer.kind].append(layer.milliseconds)
    kinds = [
        (kind, len(times), f"{sum(times):.2f}", f"{100 * sum(times) / max(total, 1e-9):.1f} %")
        for kind, times in sorted(by_kind.items(), key=lambda item: -sum(item[1]))
    ]
    drawing = report.figure(
        drawn,
        title=f"Time of each layer: {found.group}",
        caption="As the runtime tells it, each layer by its own name there, in the order in which they run; layers "
        "that take less than 1 % are one bar. Green comes before the network: from pixels to views.",
    )
    return drawing + report.table(["kind", "layers", "ms", "share"], kinds, numbers=(1, 2, 3))


def _starts(found: Benchmark) -> str:
    rows = []
    for group in dict.fromkeys(row.configuration.group for row in found.rows):
        start = next((row.start for row in found.rows if row.configuration.group == group), None)
        if start is not None:
            times = (start.load_seconds, start.open_seconds, start.first_row_seconds)
            rows.append((str(group), *(f"{seconds:.2f}" for seconds in times)))
    header = ["process", "load s", "engine open after s", "first row after s"]
    return report.table(header, rows, numbers=(1, 2, 3)) + report.paragraph(
        "From the start of a process. Load is importing the backend and opening the engine, with its compiled model "
        "from the cache: what had to be compiled was compiled in a process before this one."
    )


def _ceilings(found: Benchmark) -> str:
    rows = [
        (each.backend, each.precision, number(each.gflops, ",.0f") or (each.error or "not measured"))
        for each in found.ceilings
    ]
    return report.table(["backend", "precision", "GFLOP/s of matrix products"], rows, numbers=(2,))


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
    return report.table([], rows)
