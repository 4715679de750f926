"""The plots of a benchmark as HTML: throughput, latency, where the time of an image goes, and layers."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alexdeploy.benchmark.results import Benchmark, Parts, Profile, Row, best_of, parts, views_of
from alexdeploy.reports import page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"fp32": page.BLUE, "fp16": page.GREEN, "bf16": page.AMBER, "int8": page.ORANGE}
_STYLES = {
    "tensorrt": ("D", "-."),
    "tensorrt-rtx": ("v", "-."),
    "openvino": ("o", "-"),
    "onnxruntime": ("s", "--"),
    "torch": ("^", ":"),
}
_LEAST_SHARE = 0.01
"""Layers with a smaller share of an engine's time are drawn as one."""


def throughput(found: Benchmark, rows: Sequence[Row]) -> str:
    """Images/s against batch size, one row of panels for each number of views."""
    views = views_of(rows)
    drawn = page.new_figure(9.0, 3.0 * len(views) + 0.4)
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
        # Both panels share the axis, which must cover the lines of both.
        top = 1.08 * max(1.0, left.dataLim.ymax, right.dataLim.ymax)
        left.set_ylim(0, top)
        if found.decode_per_second is not None and found.decode_per_second < 1.5 * top:
            left.set_ylim(0, max(top, 1.15 * found.decode_per_second))
            right.axhline(found.decode_per_second, color=page.GREY, linewidth=1, linestyle=":")
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
    return page.figure(
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


def latencies(rows: Sequence[Row]) -> str:
    """The time per batch in the engine alone: a box for each row."""
    drawn = page.new_figure(9.0, 1.0 + 0.24 * len(rows))
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
    # `vert` is the parameter before matplotlib 3.10; later versions warn about it.
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
    # Within a decade, Matplotlib would label minor ticks in TeX, which SVG text shows literally.
    axes.locator_params(axis="x", subs=(1.0, 2.0, 5.0))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter("")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.grid(axis="y", visible=False)
    return page.figure(
        drawn,
        title="Latency of a batch",
        caption="A box holds the middle half of the batches, its line is the median; whiskers go from the fastest to "
        "p95, and the points are p99 and the slowest. All streams of the engine are busy meanwhile, as they are in "
        "predict, but nothing decodes beside it, as it does there. The axis is logarithmic.",
    )


def time_of_an_image(found: Benchmark) -> list[str]:
    """The time of one image from file to row, at each group's fastest batch; empty if unknown."""
    shares = {each.group: each.preprocessing_share for each in found.profiles}
    bars: list[tuple[str, Parts]] = []
    for group in dict.fromkeys(row.configuration.group for row in found.rows):
        best = best_of(found.rows, group)
        told = None if best is None else parts(best, found.decode_per_second, shares.get(group))
        if best is not None and told is not None:
            bars.append((str(best.configuration), told))
    if not bars:
        return []
    drawn = page.new_figure(9.0, 1.2 + 0.28 * len(bars))
    axes = drawn.add_subplot()
    places = range(len(bars))
    left = [0.0] * len(bars)
    for name, color in (
        ("decode", page.AMBER),
        ("preprocessing", page.GREEN),
        ("engine", page.BLUE),
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
        page.heading("Where the time of one image goes"),
        page.figure(drawn, title="Where the time of one image goes", caption=caption),
    ]


def layers(found: Profile) -> str:
    """The times of an engine's layers, in their order and summed by kind."""
    total = sum(layer.milliseconds for layer in found.layers)
    bars: list[tuple[str, float, bool]] = []
    others = 0.0
    for layer in found.layers:
        if layer.milliseconds < _LEAST_SHARE * total:
            others += layer.milliseconds
        else:
            name = f"{page.short_name(layer.name)}  ({layer.kind})"
            bars.append((name, layer.milliseconds, layer.is_preprocessing))
    bars.append(("all others", others, False))
    drawn = page.new_figure(9.0, 1.0 + 0.24 * len(bars))
    axes = drawn.add_subplot()
    colors = [page.GREEN if is_before else page.BLUE for _, _, is_before in bars]
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
    drawing = page.figure(
        drawn,
        title=f"Time of each layer: {found.group}",
        caption="As the runtime tells it, each layer by its own name there, in the order in which they run; layers "
        "that take less than 1 % are one bar. Green comes before the network: from pixels to views.",
    )
    return drawing + page.table(["kind", "layers", "ms", "share"], kinds, numbers=(1, 2, 3))
