"""The costs of the simulation from measured runs on one node, and what it says of the runs that were not used for them.

Of a run on one node, with an actor that always has two chunks, the time from the first chunk to the last part is that
of all images and chunks. Two sizes of chunks tell the cost of an image from that of a chunk. What nodes and their
shared machine do to one another is in no fitted run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cluster_scenario import Costs, Scenario
from benchmarks.cluster_simulation import simulate

SMALL, LARGE, RESTARTED = "1 node, parts of 32", "1 node, parts of 128", "1 node, parts of 64, its actor killed"
"""The runs that the costs are fitted to."""

INT8 = "1 node, parts of 128, INT8"
"""The run that has the cost of an image in INT8."""

NUM_SEEDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Seconds from the call to the return, and from the first chunk to the last part; [median, least, most]."""

    name: str
    is_fitted: bool
    measured: tuple[float, float, float]
    simulated: tuple[float, float, float]
    measured_work: tuple[float, float, float]
    simulated_work: tuple[float, float, float]


def fit(found: Mapping[str, Any]) -> Costs:
    """From the parts `runs` and `driver` of a file of figures. A cost that would be negative is zero."""
    runs, driver = found["runs"]["runs"], found["driver"]
    fitted = [run for name in (SMALL, LARGE) for run in runs[name]]
    # Relative errors count, so that long runs do not outweigh short ones.
    design = np.array(
        [
            [len(run["parts"]) / seconds, run["num_images"] / seconds]
            for run in fitted
            for seconds in [_working_seconds(run)]
        ]
    )
    chunk_seconds, image_seconds = np.linalg.lstsq(design, np.ones(len(fitted)), rcond=None)[0]
    if chunk_seconds < 0:
        chunk_seconds, image_seconds = 0.0, np.mean(1 / design[:, 1])
    starts = [_opened_at(run) - run["begun_at"] for run in fitted]
    restarts = [_opened_at(run, run["killed_at"]) - run["killed_at"] for run in runs[RESTARTED]]
    under_way = [int(number) for number in driver["call_seconds"]]
    calls = np.array(list(driver["call_seconds"].values()))
    wait_seconds, part_seconds = np.polyfit(under_way, calls, 1, w=1 / calls)
    return Costs(
        image_seconds=float(image_seconds),
        chunk_seconds=float(chunk_seconds),
        chunk_spread=_spread(fitted),
        begin_seconds=statistics.median(run["begun_at"] for run in fitted),
        start_seconds=statistics.median(starts),
        start_spread=float(np.std(np.log(starts))),
        restart_seconds=statistics.median(restarts),
        name_seconds=driver["name_seconds"],
        part_seconds=max(float(part_seconds), 0.0),
        wait_seconds=max(float(wait_seconds), 0.0),
        manifest_seconds=driver["manifest_seconds"],
    )


def compare(found: Mapping[str, Any], costs: Costs) -> list[Comparison]:
    """Every run in FP32, measured and simulated."""
    compared = []
    for name, runs in found["runs"]["runs"].items():
        if name == INT8:
            continue
        simulated = [simulate(scenario_of(runs[0]), costs, seed) for seed in range(NUM_SEEDS)]
        compared.append(
            Comparison(
                name=name,
                is_fitted=name in (SMALL, LARGE, RESTARTED),
                measured=_range(run["seconds"] for run in runs),
                simulated=_range(outcome.seconds for outcome in simulated),
                measured_work=_range(map(_working_seconds, runs)),
                simulated_work=_range(outcome.arrivals[-1] - outcome.opened_at for outcome in simulated),
            )
        )
    return compared


def scenario_of(run: Mapping[str, Any]) -> Scenario:
    """What was measured, to be simulated: its nodes have one core, which those with the same processor share."""
    killed = run["killed"]
    return Scenario(
        num_images=run["num_images"],
        rows_per_part=run["rows_per_part"],
        num_nodes=len(run["hosts"]),
        hosts=tuple(run["hosts"]),
        kills=() if killed is None else ((run["killed_after"], killed, len(run["hosts"]) - 1),),
    )


def int8_image_seconds(found: Mapping[str, Any], costs: Costs) -> float:
    """The cost of an image in INT8, where a chunk costs what it costs in FP32."""
    runs = found["runs"]["runs"][INT8]
    return statistics.median(
        (_working_seconds(run) - len(run["parts"]) * costs.chunk_seconds) / int(run["num_images"]) for run in runs
    )


def _opened_at(run: Mapping[str, Any], after: float = 0.0) -> float:
    """When the first chunk after that time was begun."""
    begun = (float(arrived - seconds) for arrived, seconds in run["parts"])
    return min(time for time in begun if time > after)


def _working_seconds(run: Mapping[str, Any]) -> float:
    return float(run["parts"][-1][0]) - _opened_at(run)


def _spread(runs: Sequence[Mapping[str, Any]]) -> float:
    """The standard deviation of the logarithm of a chunk's seconds within a run.

    Two share the actor throughout, except in the last two, and the first two are begun as the actor still warms up.
    """
    settled = [run["parts"][2:-2] for run in runs]
    logarithms = [np.log([seconds for _, seconds in parts]) for parts in settled if len(parts) > 1]
    residuals = np.concatenate([each - each.mean() for each in logarithms])
    return float(np.sqrt(np.square(residuals).sum() / (len(residuals) - len(logarithms))))


def _range(values: Iterable[float]) -> tuple[float, float, float]:
    found = list(values)
    return statistics.median(found), min(found), max(found)
