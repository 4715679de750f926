"""The costs that are fitted to runs are those that the runs had, and the page has those of the file of figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster_fit import INT8, LARGE, RESTARTED, SMALL, compare, fit
from benchmarks.cluster_scenario import Costs, Scenario
from benchmarks.cluster_simulation import simulate
from benchmarks.cluster_tables import cost_tables
from benchmarks.results import read_parts

ROOT = Path(__file__).parents[2]
TRUE = Costs(
    image_seconds=0.01,
    chunk_seconds=0.2,
    start_seconds=6.0,
    restart_seconds=2.5,
    begin_seconds=1.0,
    name_seconds=1e-5,
    part_seconds=1e-3,
    wait_seconds=1e-6,
    manifest_seconds=1e-6,
)
DRIVER = {
    "call_seconds": {"2": 1.002e-3, "2000": 3e-3},
    "name_seconds": 1e-5,
    "manifest_seconds": 1e-6,
}


def run(rows_per_part: int, killed: str | None = None) -> dict[str, Any]:
    """A simulated run on one node, told as a measured one: two chunks at once take twice as long as alone."""
    kills = () if killed is None else ((3, killed, 0),)
    scenario = Scenario(num_images=1280, rows_per_part=rows_per_part, kills=kills)
    outcome = simulate(scenario, TRUE)
    seconds = 2 * (TRUE.chunk_seconds + rows_per_part * TRUE.image_seconds)
    return {
        "hosts": [0],
        "rows_per_part": rows_per_part,
        "killed": killed,
        "killed_after": 3,
        "killed_at": outcome.arrivals[2] if killed else None,
        "begun_at": TRUE.begin_seconds,
        "parts": [(arrival, seconds) for arrival in outcome.arrivals],
        "num_images": 1280,
        "seconds": outcome.seconds,
    }


def test_a_fit_finds_the_costs_that_runs_were_simulated_with() -> None:
    runs = {SMALL: [run(32)], LARGE: [run(128)], RESTARTED: [run(64, "actor")]}
    found = {"runs": {"runs": runs}, "driver": DRIVER}
    costs = fit(found)
    # The driver's milliseconds for each part are in no chunk's time: 1 ms of 520 to 1,480.
    assert costs.image_seconds == pytest.approx(TRUE.image_seconds, rel=0.01)
    assert costs.chunk_seconds == pytest.approx(TRUE.chunk_seconds, abs=0.01)
    assert costs.start_seconds == pytest.approx(TRUE.start_seconds, abs=0.05)
    assert costs.restart_seconds == pytest.approx(TRUE.restart_seconds, abs=0.05)
    assert costs.chunk_spread == pytest.approx(0.0, abs=1e-9)
    assert (costs.part_seconds, costs.wait_seconds) == pytest.approx((TRUE.part_seconds, TRUE.wait_seconds), rel=1e-3)
    for each in compare(found, replace(costs, start_spread=0.0)):
        assert each.is_fitted
        assert each.simulated[0] == pytest.approx(each.measured[0], rel=0.01)
        assert each.simulated_work[0] == pytest.approx(each.measured_work[0], rel=0.01)


def test_the_page_has_what_the_file_of_figures_says() -> None:
    (figures,) = (ROOT / "benchmarks" / "results" / "cluster").glob("*.json")
    found = read_parts(figures)
    assert {SMALL, LARGE, RESTARTED, INT8} <= set(found["runs"]["runs"])
    costs = fit(found)
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(cost_tables(found, costs, compare(found, costs))) in page
