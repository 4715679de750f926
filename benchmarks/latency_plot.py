"""The latencies of the server against the requests that come, as a figure for the page of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexdeploy.reports.page import BLUE, ORANGE, drawing, new_figure
from benchmarks.targets import views_name

_SALT = "serving-latency.svg"


def plot_name(machine: str) -> str:
    """The file beside the page, for the machine with this file of figures."""
    return f"serving-latency-{machine}.svg"


def draw_latencies(serving: Mapping[str, Any], path: Path) -> None:
    """A panel for each number of views: p50 and p99 in milliseconds against the share of the throughput."""
    import matplotlib

    with drawing(), matplotlib.rc_context({"svg.hashsalt": _SALT}):
        drawn = new_figure(8.0, 3.0)
        panels = drawn.subplots(1, len(serving["latencies"]), squeeze=False)[0]
        for panel, (views, latencies) in zip(panels, serving["latencies"].items(), strict=True):
            shares = [100 * float(share) for share in latencies]
            for key, name, color in (("p50_ms", "p50", BLUE), ("p99_ms", "p99", ORANGE)):
                panel.plot(shares, [found[key] for found in latencies.values()], color=color, marker="o", label=name)
            panel.set_title(views_name(views))
            panel.set_xticks(shares)
            panel.set_ylim(bottom=0)
        panels[0].set_ylabel("latency, ms")
        panels[0].legend()
        drawn.supxlabel("requests, % of the throughput")
        drawn.savefig(path, format="svg", metadata={"Date": None})
