"""The simulation against what was measured, and what it says of up to 1,000 nodes, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexdeploy.reports.page import AMBER, BLUE, GREEN, GREY, ORANGE, drawing, new_figure
from benchmarks.cluster_fit import Comparison
from benchmarks.cluster_scenario import Costs
from benchmarks.cluster_tables import CORES, NODES, Curve

PLOT = "scale.svg"
_STYLES = ((BLUE, "-"), (GREEN, "-"), (GREEN, ":"), (ORANGE, "--"), (AMBER, "-"))


def draw_scale(costs: Costs, compared: Sequence[Comparison], curves: Sequence[Curve], path: Path) -> None:
    """Four panels: seconds of runs, images/s, efficiency, and what is busy, against the number of nodes."""
    import matplotlib

    with drawing(), matplotlib.rc_context({"svg.hashsalt": PLOT}):
        drawn = new_figure(10.5, 8.2)
        (runs, rates), (efficiency, busy) = drawn.subplots(2, 2)
        _draw_runs(runs, compared)
        ideal = [num_nodes * CORES / costs.image_seconds for num_nodes in NODES]
        rates.plot(NODES, ideal, color=GREY, linestyle=":", label="images alone")
        for curve, (color, style) in zip(curves, _STYLES, strict=True):
            outcomes = list(curve.outcomes.values())
            found = [each.images_per_second for each in outcomes]
            rates.plot(NODES, found, style, color=color, marker="o", markersize=4, label=curve.name)
            shares = [100 * curve.efficiency(num_nodes, costs) for num_nodes in NODES]
            efficiency.plot(NODES, shares, style, color=color, marker="o", markersize=4)
        rates.set(title="Throughput, start to end", ylabel="images/s", xscale="log", yscale="log")
        powers = [10**power for power in range(3, 7)]
        rates.set_yticks(powers, [f"{power:,}" for power in powers])
        drawn.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        efficiency.set(title="Efficiency", ylabel="cores' time spent on images, %", xscale="log", ylim=(0, 100))
        for case, color in ((curves[0], BLUE), (curves[1], GREEN)):
            outcomes = list(case.outcomes.values())
            busy.plot(NODES, [100 * each.node_share for each in outcomes], color=color, marker="o", markersize=4)
            busy.plot(
                NODES, [100 * each.driver_share for each in outcomes], "--", color=color, marker="s", markersize=4
            )
        store = [100 * each.store_share for each in curves[-1].outcomes.values()]
        busy.plot(NODES, store, "-.", color=AMBER, marker="^", markersize=4)
        busy.set(
            title="Busy: nodes (solid), driver (dashed), store",
            ylabel="time busy, %",
            xscale="log",
            ylim=(0, 105),
        )
        for panel in (rates, efficiency, busy):
            panel.set_xticks((1, 10, 100, 1000), ("1", "10", "100", "1,000"))
            panel.set_xlabel(f"nodes of {CORES} cores")
        drawn.savefig(path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_runs(panel: Any, compared: Sequence[Comparison]) -> None:
    rows = range(len(compared))[::-1]
    for row, each in zip(rows, compared, strict=True):
        median, least, most = each.measured
        panel.plot((least, most), (row + 0.12, row + 0.12), color=BLUE)
        panel.plot(median, row + 0.12, "o", color=BLUE, label="measured" if row == 0 else None)
        median, least, most = each.simulated
        panel.plot((least, most), (row - 0.12, row - 0.12), color=ORANGE)
        panel.plot(median, row - 0.12, "s", color=ORANGE, label="simulated" if row == 0 else None)
    panel.set_yticks(rows, [f"{each.name}{'*' if each.is_fitted else ''}" for each in compared])
    panel.set(title="Runs on this machine (* fitted to)", xlabel="seconds of classify", xlim=(0, None))
    panel.legend(loc="center left")
