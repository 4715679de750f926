"""What is timed, and what figures become of it: the arithmetic of `bench`, without clocks, processes or files."""

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
"""Between processes that take turns: threads of some runtimes spin for a while after their work, on cores that the next
one needs."""

_LEAST_ROUNDS = 5
_LEAST_SLICE_SECONDS, _MOST_SLICE_SECONDS = 0.05, 1.0

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchConfiguration(Configuration):
    """A configuration with the number of images that run together."""

    batch_size: int

    @property
    def group(self) -> Configuration:
        """What one process can run where no engine is made for a batch: all batches of a configuration."""
        return Configuration(backend=self.backend, precision=self.precision, num_views=self.num_views)

    def __str__(self) -> str:
        return f"{self.group}, batch {self.batch_size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """What was seen of a configuration in one round: seconds of each batch, and the rate of all streams together."""

    batch_seconds: tuple[float, ...]
    images_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Milliseconds of a batch while every stream of the engine is busy, over all rounds.

    Percentiles are nearest ranks: the least time within which that share of the batches was done. Of fewer than 20
    batches the slowest is p95, and of fewer than 100 it is p99.
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
    """The nearest rank: the least of `values` that at least `percent` of them do not exceed."""
    if not values:
        raise ValueError("a percentile of no values is not defined")
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
    """The median over rounds: a round in which the machine was busy with other things moves it little."""
    return statistics.median(rates) if rates else None


def stream_rate(num_images: Sequence[int], seconds: Sequence[float]) -> float:
    """Images per second of streams that ran side by side, each as long as its own last batch took.

    Not all images over all the time: the streams that end first would be counted as idle until the last one ends.
    """
    return sum(images / max(took, 1e-9) for images, took in zip(num_images, seconds, strict=True))


def bound(decode: float, engine: float, *, share_cores: bool) -> float:
    """The most images/s that decoding and the engine allow together, from what each reaches alone.

    Where they share the cores, as on a CPU, an image takes 1 / decode + 1 / engine of all of them: their harmonic sum.
    It is exact where each alone keeps every core busy; an engine that leaves cores idle, as one whose threads wait for
    each other, can be a little faster beside decoding than this says. On a GPU both go on at once: the slower of the
    two.
    """
    return 1 / (1 / decode + 1 / engine) if share_cores else min(decode, engine)


def interleaved(turns: Sequence[Sequence[_Item]], seed: int) -> Iterator[tuple[int, _Item]]:
    """Rounds without end: (round, item), every turn once a round and in it each of its items, in orders drawn for each.

    So that nothing always follows the same neighbour, and no configuration has all of its time in one bad minute. A
    turn is what one process does: where memory is short, each is started once a round at most.
    """
    draw = random.Random(seed)
    number = 0
    while any(turns):
        for turn in draw.sample(turns, len(turns)):
            yield from ((number, item) for item in draw.sample(turn, len(turn)))
        number += 1


def slice_seconds(left: float, num_items: int, num_turns: int) -> float:
    """How long one item may take in one round, so that five, with their pauses, fit into what is left."""
    seconds = (left / _LEAST_ROUNDS - PAUSE_SECONDS * num_turns) / max(num_items, 1)
    return min(max(seconds, _LEAST_SLICE_SECONDS), _MOST_SLICE_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a configuration must keep to be picked. `budget_ms` is for the p95 of a batch.

    `min_agreement` is the least share of answers that are those of FP32 with as many views.
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
    """What is known of a configuration when one is picked. `rates` are of each round, `images_per_second` their median.

    `agreement` None: not known.
    """

    configuration: BatchConfiguration
    images_per_second: float
    p95_ms: float
    agreement: float | None
    rates: tuple[float, ...] = ()


def pick(candidates: Sequence[Candidate], limits: Limits) -> tuple[Candidate, ...]:
    """The fastest that keeps the limits for each number of views that has one, fewest views first.

    Not one for all: fewer views are faster and less accurate, and how accurate is for the user to say.
    """
    best: dict[int, Candidate] = {}
    for each in candidates:
        views = each.configuration.num_views
        if fits(each, limits) and (views not in best or each.images_per_second > best[views].images_per_second):
            best[views] = each
    return tuple(best[views] for views in sorted(best))


def close_seconds(best: Candidate, candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """What could have been picked for `best` in another run, fastest first: its rounds overlap those of `best`."""
    least = min(best.rates, default=math.inf)
    found = [
        each
        for each in candidates
        # Its median is no higher than that of `best`, and so its slowest round no faster than the fastest of that.
        if max(each.rates, default=0.0) >= least
        and each.configuration != best.configuration
        and each.configuration.num_views == best.configuration.num_views
        and fits(each, limits)
    ]
    return sorted(found, key=lambda each: -each.images_per_second)


def fits(candidate: Candidate, limits: Limits) -> bool:
    """Whether it keeps the limits; what is not known keeps none."""
    is_fast = limits.budget_ms is None or candidate.p95_ms <= limits.budget_ms
    if limits.min_agreement is None:
        return is_fast
    return is_fast and candidate.agreement is not None and candidate.agreement >= limits.min_agreement


def why_none(candidates: Sequence[Candidate], limits: Limits) -> str:
    """Where nothing keeps the limits: how near the nearest come."""
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
