"""The costs of a cluster, the simulation beside what was measured, and what it says of larger clusters, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cluster_fit import Comparison, int8_image_seconds
from benchmarks.cluster_scenario import Costs, Outcome, Scenario
from benchmarks.cluster_simulation import simulate

CORES = 16
NODES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_TABLE_JOBS = (1_000_000, 100_000_000)
_TABLE_NODES = (10, 100, 1000)

S3_REQUESTS = 5500
"""GET requests that S3 answers in a second under one prefix, as Amazon publishes it."""

_LATENCY_SECONDS = 0.05
_DAY = 86_400.0

LISTED = Scenario(num_images=0, cores=CORES, latency_seconds=_LATENCY_SECONDS)
"""Photographs in a bucket, their names from a list, rows in a folder that all nodes share."""

STORED = replace(LISTED, page_seconds=_LATENCY_SECONDS, check_seconds=_LATENCY_SECONDS)
"""The bucket is listed, and gets the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Outcomes by the number of nodes."""

    name: str
    num_images: int
    outcomes: dict[int, Outcome]

    def efficiency(self, num_nodes: int, costs: Costs) -> float:
        """The share of the cores' time that the images took."""
        outcome = self.outcomes[num_nodes]
        return outcome.num_images * costs.image_seconds / (outcome.seconds * num_nodes * CORES)


def extrapolate(costs: Costs) -> list[Curve]:
    """Ten million photographs by listing and by a list, and of the latter: fewer, with failures, under one prefix."""
    worse = replace(LISTED, slow_share=0.02, slow_factor=2.0, failure_seconds=_DAY)
    cases = (
        ("10 million, the bucket listed, rows in it", 10_000_000, STORED),
        ("10 million, names from a list, rows in a folder", 10_000_000, LISTED),
        ("the same, 1 million", 1_000_000, LISTED),
        ("the same, 10 million, nodes fail after 24 h, 2 % are slow", 10_000_000, worse),
        ("the same, 10 million under one prefix of S3", 10_000_000, replace(LISTED, requests_per_second=S3_REQUESTS)),
    )
    return [
        Curve(
            name=name,
            num_images=job,
            outcomes={
                num_nodes: simulate(replace(case, num_images=job, num_nodes=num_nodes), costs) for num_nodes in NODES
            },
        )
        for name, job, case in cases
    ]


def cost_tables(found: Mapping[str, Any], costs: Costs, compared: Sequence[Comparison]) -> Iterator[str]:
    runs, driver = found["runs"], found["driver"]
    yield (
        f"Costs that the simulation has, fitted to the runs on one node ({runs['model']}, one view, FP32, one core a "
        f"node, rounds: {runs['num_rounds']}; Ray {runs['ray']}) and measured of the driver (processor time):"
    )
    yield from ("", "| | |", "|---|---|")
    yield f"| an image, FP32 | {1e3 * costs.image_seconds:.2f} ms of a core |"
    yield f"| an image, INT8 | {1e3 * int8_image_seconds(found, costs):.2f} ms of a core |"
    yield f"| a chunk | {1e3 * costs.chunk_seconds:.0f} ms of a core; its time varies by {costs.chunk_spread:.1%} |"
    yield f"| before the actors start: the model is read, hashed and sent | {costs.begin_seconds:.1f} s |"
    yield f"| an actor on a new node, with the model compiled there | {costs.start_seconds:.1f} s |"
    yield f"| an actor that replaces one on its node | {costs.restart_seconds:.1f} s |"
    yield f"| driver, a name of a local listing | {1e6 * costs.name_seconds:.0f} µs |"
    yield (
        f"| driver, a chunk of {driver['names_per_part']:,} names given, its part known "
        f"| {1e3 * costs.part_seconds:.1f} ms, and {1e6 * costs.wait_seconds:.1f} µs for each chunk under way |"
    )
    yield (
        f"| driver, a part in the manifest | {1e6 * costs.manifest_seconds:.1f} µs each time that it is written, "
        f"{driver['manifest_bytes']:.0f} bytes, {driver['memory_bytes']:.0f} bytes of memory |"
    )
    yield ""
    yield "Seconds of `classify`, median and range, and simulated ones; work: from the first chunk to the last part."
    yield from ("", "| run | fitted to | measured | simulated | | work measured | simulated | |")
    yield "|---|---|---|---|---|---|---|---|"
    for each in compared:
        cells = [
            each.name,
            "yes" if each.is_fitted else "no",
            _spread(each.measured),
            f"{each.simulated[0]:.1f}",
            f"{each.simulated[0] / each.measured[0] - 1:+.0%}",
            _spread(each.measured_work),
            f"{each.simulated_work[0]:.1f}",
            f"{each.simulated_work[0] / each.measured_work[0] - 1:+.0%}",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


def scale_table(costs: Costs) -> Iterator[str]:
    """Of clusters that were not measured. Takes half a minute."""
    yield (
        f"Simulated: nodes of {CORES} cores, parts of up to 1,024 rows, photographs in a store that answers after "
        f"{1e3 * _LATENCY_SECONDS:.0f} ms, nothing fails. Efficiency is the share of the cores' time that images took."
    )
    yield from ("", "| photographs | names, rows | nodes | time | images/s | efficiency | core hours | driver busy |")
    yield "|---|---|---|---|---|---|---|---|"
    for job in _TABLE_JOBS:
        for name, case in (("bucket listed, bucket", STORED), ("list, shared folder", LISTED)):
            for num_nodes in _TABLE_NODES:
                outcome = simulate(replace(case, num_images=job, num_nodes=num_nodes), costs)
                hours = outcome.seconds * num_nodes * CORES / 3600
                cells = [
                    _short(job),
                    name,
                    f"{num_nodes:,}",
                    _duration(outcome.seconds),
                    f"{outcome.images_per_second:,.0f}",
                    f"{job * costs.image_seconds / 3600 / hours:.0%}",
                    f"{hours:,.0f}",
                    f"{outcome.driver_share:.0%}",
                ]
                yield f"| {' | '.join(cells)} |"
    yield ""


def _spread(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.1f} ({found[1]:.1f} to {found[2]:.1f})"


def _short(count: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count:,}"


def _duration(seconds: float) -> str:
    for unit, name in ((_DAY, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
