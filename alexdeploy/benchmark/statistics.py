"""The arithmetic of `bench`: figures from timings, without clocks, processes or files."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from alexdeploy.core.arguments import NotNegative, Share, check_fields
from alexdeploy.engines.base import Configuration

PAUSE_SECONDS = 0.3
"""Pause between processes that take turns: threads of some runtimes keep spinning for a while after their work, on
cores that the next process needs."""

_LEAST_ROUNDS = 5
_LEAST_SLICE_SECONDS, _MOST_SLICE_SECONDS = 0.05, 1.0

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfiguration(Configuration):
    """A configuration with its batch size in images."""

    batch_size: int

    @property
    def group(self) -> Configuration:
        """All batches of a configuration: one process runs them unless an engine is made for one batch."""
        return Configuration(backend=self.backend, precision=self.precision, num_views=self.num_views)

    def __str__(self) -> str:
        return f"{self.group}, batch {self.batch_size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Measurements of a configuration in one round: seconds per batch, and the rate of all streams together."""

    batch_seconds: tuple[float, ...]
    images_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Milliseconds per batch while every stream of the engine is busy, over all rounds.

    Percentiles are nearest ranks: the least time within which that share of the batches was done. With fewer than 20
    batches p95 is the slowest batch; with fewer than 100, p99 is.
    """

    num_batches: int
    least_ms: float
    p25_ms: float
    p50_ms: float
    p75_ms: float
    p95_ms: float
    p99_ms: float
    most_ms: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the least of `values`, of which there must be one, that `percent` of them do not exceed."""
    rank = math.ceil(percent * len(values) / 100)
    return sorted(values)[max(rank, 1) - 1]


def latency(slices: Sequence[Slice]) -> Latency:
    milliseconds = [1e3 * seconds for each in slices for seconds in each.batch_seconds]
    return Latency(
        num_batches=len(milliseconds),
        least_ms=min(milliseconds),
        p25_ms=percentile(milliseconds, 25),
        p50_ms=percentile(milliseconds, 50),
        p75_ms=percentile(milliseconds, 75),
        p95_ms=percentile(milliseconds, 95),
        p99_ms=percentile(milliseconds, 99),
        most_ms=max(milliseconds),
    )


def median_rate(rates: Sequence[float]) -> float | None:
    """The median over rounds: it hardly moves if the machine was busy with other work in one round."""
    return statistics.median(rates) if rates else None


def stream_rate(num_images: Sequence[int], seconds: Sequence[float]) -> float:
    """Images per second of concurrent streams, each timed until the end of its own last batch.

    Not total images over total time: streams that end first would count as idle until the last one ends.
    """
    return sum(images / max(took, 1e-9) for images, took in zip(num_images, seconds, strict=True))


def bound(decode: float, engine: float, *, share_cores: bool) -> float:
    """The maximum images/s that decoding and the engine allow together, from the rates that each reaches alone.

    If they share the cores, as on a CPU, an image takes 1 / decode + 1 / engine of all cores: the rates' harmonic sum.
    It is exact if each alone keeps every core busy. An engine that leaves cores idle, such as one whose threads wait
    for each other, can exceed it slightly beside decoding. On a GPU both run at once: the bound is the slower of the
    two.
    """
    return 1 / (1 / decode + 1 / engine) if share_cores else min(decode, engine)


def interleaved(turns: Sequence[Sequence[_Item]], seed: int) -> Iterator[tuple[int, _Item]]:
    """Endless rounds of (round, item): every turn once per round and in it each of its items, in random orders.

    No item always follows the same neighbour, and no configuration spends all of its time in one bad minute. A turn
    is the work of one process: if memory is short, each process is started at most once per round.
    """
    draw = random.Random(seed)
    number = 0
    while any(turns):
        for turn in draw.sample(turns, len(turns)):
            yield from ((number, item) for item in draw.sample(turn, len(turn)))
        number += 1


def slice_seconds(left: float, num_items: int, num_turns: int) -> float:
    """How long one item may take in one round, so that five rounds, with their pauses, fit into the time left."""
    seconds = (left / _LEAST_ROUNDS - PAUSE_SECONDS * num_turns) / max(num_items, 1)
    return min(max(seconds, _LEAST_SLICE_SECONDS), _MOST_SLICE_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a configuration must meet to be picked. `budget_ms` limits the p95 of a batch.

    `min_agreement` is the minimum share of answers equal to those of FP32 with as many views.
    """

    budget_ms: NotNegative | None = None
    min_agreement: Share | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        words = []
        if self.budget_ms is not None:
            words.append(f"p95 of a batch at most {self.budget_ms:g} ms")
        if self.min_agreement is not None:
            words.append(f"at least {self.min_agreement:g} of the answers those of FP32")
        return " and ".join(words) or "no limits"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """The facts about a configuration used to pick one. `rates` are per round, `images_per_second` is their median.

    `agreement` None: unknown.
    """

    configuration: BatchConfiguration
    images_per_second: float
    p95_ms: float
    agreement: float | None
    rates: tuple[float, ...] = ()


def pick(candidates: Sequence[Candidate], limits: Limits) -> tuple[Candidate, ...]:
    """The fastest candidate within the limits for each number of views that has one, fewest views first.

    Not one for all: fewer views are faster and less accurate, and the user decides how accurate it must be.
    """
    best: dict[int, Candidate] = {}
    for each in candidates:
        views = each.configuration.num_views
        if fits(each, limits) and (views not in best or each.images_per_second > best[views].images_per_second):
            best[views] = each
    return tuple(best[views] for views in sorted(best))


def close_seconds(best: Candidate, candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """Candidates that could replace `best` in another run, fastest first: their rounds overlap those of `best`."""
    least = min(best.rates, default=math.inf)
    found = [
        each
        for each in candidates
        # Its median is not above that of `best`, so its slowest round is not faster than the fastest round of `best`.
        if max(each.rates, default=0.0) >= least
        and each.configuration != best.configuration
        and each.configuration.num_views == best.configuration.num_views
        and fits(each, limits)
    ]
    return sorted(found, key=lambda each: -each.images_per_second)


def fits(candidate: Candidate, limits: Limits) -> bool:
    """Whether it meets the limits; an unknown value meets none."""
    is_fast = limits.budget_ms is None or candidate.p95_ms <= limits.budget_ms
    if limits.min_agreement is None:
        return is_fast
    return is_fast and candidate.agreement is not None and candidate.agreement >= limits.min_agreement


def why_none(candidates: Sequence[Candidate], limits: Limits) -> str:
    """If nothing meets the limits: how close the nearest candidates come."""
    if not candidates:
        return "nothing was measured"
    words = []
    if limits.budget_ms is not None:
        quickest = min(candidates, key=lambda each: each.p95_ms)
        words.append(f"the quickest batch has a p95 of {quickest.p95_ms:.3g} ms ({quickest.configuration})")
    if limits.min_agreement is not None:
        known = [each for each in candidates if each.agreement is not None]
        if known:
            closest = max(known, key=lambda each: each.agreement or 0.0)
            words.append(f"the best agreement is {closest.agreement:.4g} ({closest.configuration})")
        else:
            words.append("no agreement is known, as no FP32 answers are there to compare with")
    return "; ".join(words)
