"""The results of a benchmark as plain data, and how they are computed from the measurements."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alexdeploy.benchmark.processes import Start
from alexdeploy.benchmark.rounds import Measured
from alexdeploy.benchmark.statistics import (
    BatchConfiguration,
    Candidate,
    Latency,
    Limits,
    bound,
    fits,
    latency,
    median_rate,
    why_none,
)
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import Backend, Configuration, NumViews
from alexdeploy.engines.profile import LayerTime
from alexdeploy.placement.options import DeviceOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreed:
    """How many of the images get the same answer as FP32 with as many views on the backend `reference`."""

    reference: str
    num_images: int
    num_same: int

    @property
    def share(self) -> float:
        return self.num_same / self.num_images


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One configuration. Rates are medians over rounds; unknown values are None.

    With an `error`, only values measured before it are known; such a row is never picked. `error_kind` is the name of
    its class in core/errors.py, `hint` a possible fix. Without an error, a `num_rounds` of 0 marks a configuration
    that was not measured before the end.
    `images_per_second` and `views_per_second` are for the engine alone, on decoded images, all streams busy.
    `engine_rates` and `file_rates` are the rates of each round, in images/s; an interrupted round may have only one.
    `files_per_second` is the rate of `predict`: files to rows, including reading and decoding. `bound_per_second` is
    the maximum that decoding alone and the engine alone allow together (`statistics.bound`). `fraction_of_bound` is the
    reached part of it: the median over rounds, since the three rates of a round were measured closest in time.
    `gflops` are GFLOP/s of the engine alone (`roofline.num_flops`); `fraction_of_ceiling` is their ratio to the GFLOP/s
    of large matrix products in the same backend and precision.
    `peak_bytes` is for the process, which had run no larger batch, and whose compiled model came from the cache.
    """

    configuration: BatchConfiguration
    device: str | None = None
    error: str | None = None
    error_kind: str | None = None
    hint: str | None = None
    num_rounds: int = 0
    latency: Latency | None = None
    images_per_second: float | None = None
    views_per_second: float | None = None
    files_per_second: float | None = None
    engine_rates: tuple[float, ...] = ()
    file_rates: tuple[float, ...] = ()
    bound_per_second: float | None = None
    fraction_of_bound: float | None = None
    gflops: float | None = None
    fraction_of_ceiling: float | None = None
    peak_bytes: int | None = None
    start: Start | None = None
    agreed: Agreed | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """GFLOP/s of large matrix products; None with the reason."""

    backend: Backend
    precision: Precision
    gflops: float | None
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Milliseconds of each layer for a batch of `num_images`, on one core."""

    group: Configuration
    num_images: int
    layers: tuple[LayerTime, ...]

    @property
    def preprocessing_share(self) -> float:
        """The fraction of the engine's time spent before the network: from pixels to views."""
        total = sum(layer.milliseconds for layer in self.layers)
        return sum(layer.milliseconds for layer in self.layers if layer.is_preprocessing) / max(total, 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class CloseSecond:
    """A configuration whose median is slower than the pick's, but not every round."""

    configuration: BatchConfiguration
    files_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """The fastest configuration within the limits for its number of views, and the command that runs it.

    `close_seconds` are also within the limits, fastest first; with one round, none are known.
    """

    configuration: BatchConfiguration
    files_per_second: float
    file_rates: tuple[float, ...]
    p95_ms: float
    command: str
    close_seconds: tuple[CloseSecond, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """`load_start` and `load_end` are the system's load averages of the last minute, None where it has none."""

    platform: str
    processor: str
    num_processors: int
    num_threads: int
    memory_bytes: int | None
    free_bytes: int | None
    gpus: tuple[str, ...]
    load_start: float | None
    load_end: float | None
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """All results. `seconds` is the duration; `interrupted`: stopped early.

    `failure` says why nothing was picked, if limits were given that no configuration meets.
    """

    format_version: int = 1
    model: str
    name: str
    contract_sha256: str
    images: str
    num_images: int
    image_bytes: int
    seed: int
    seconds: float
    num_rounds: int
    interrupted: bool
    limits: Limits
    decode_per_second: float | None
    decode_rates: tuple[float, ...]
    ceilings: tuple[Ceiling, ...]
    rows: tuple[Row, ...]
    profiles: tuple[Profile, ...]
    picked: tuple[Picked, ...]
    failure: str | None
    notes: tuple[str, ...]
    machine: Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Milliseconds of all cores per image, from file to row. `preprocessing` None: not reported by the backend.

    `engine` then includes the preprocessing. `rest` is the time that the other parts do not explain: batches that
    fill, hand-overs, rows, and idle cores. It is negative if decoding uses cores that the engine, running alone,
    leaves idle.
    """

    decode: float
    preprocessing: float | None
    engine: float
    rest: float

    @property
    def whole(self) -> float:
        return self.decode + (self.preprocessing or 0.0) + self.engine + self.rest


def make_row(
    configuration: BatchConfiguration,
    seen: Measured,
    *,
    device: str | None,
    decode_rates: Sequence[float],
    flops: int | None,
    ceiling_gflops: float | None,
    start: Start | None,
    agreed: Agreed | None,
) -> Row:
    """The figures of one configuration. `flops` are per image, with all its views."""
    failure = seen.failure
    row = Row(
        configuration=configuration,
        device=device,
        error=seen.error,
        error_kind=None if failure is None else type(failure).__name__,
        hint=None if failure is None else failure.hint,
        start=start,
    )
    if not seen.slices:
        return row
    rate = median_rate([each.images_per_second for each in seen.slices]) or 0.0
    decode, shares = median_rate(decode_rates), _is_cpu(device)
    fractions = [
        file_rate / bound(decode_rate, each.images_per_second, share_cores=shares)
        # An interrupted round lacks some of the three.
        for decode_rate, each, file_rate in zip(decode_rates, seen.slices, seen.file_rates, strict=False)
    ]
    gflops = None if flops is None else rate * flops / 1e9
    return replace(
        row,
        num_rounds=len(seen.slices),
        latency=latency(seen.slices),
        images_per_second=rate,
        views_per_second=rate * configuration.num_views,
        files_per_second=median_rate(seen.file_rates),
        engine_rates=tuple(each.images_per_second for each in seen.slices),
        file_rates=tuple(seen.file_rates),
        bound_per_second=None if decode is None else bound(decode, rate, share_cores=shares),
        fraction_of_bound=median_rate(fractions),
        gflops=gflops,
        fraction_of_ceiling=gflops / ceiling_gflops if gflops and ceiling_gflops else None,
        peak_bytes=seen.peak_bytes,
        agreed=agreed,
    )


def measured_ceiling(backend: Backend, precision: Precision, seen: Measured, flops: int) -> Ceiling:
    """Computed from the measured rates of matrix products with `flops` per image."""
    rate = median_rate([each.images_per_second for each in seen.slices])
    return Ceiling(
        backend=backend,
        precision=precision,
        gflops=None if rate is None else rate * flops / 1e9,
        error=seen.error,
    )


def candidates(rows: Sequence[Row]) -> list[Candidate]:
    """The configurations that can be picked: they never failed, and their speed from files is known."""
    return [
        Candidate(
            configuration=row.configuration,
            images_per_second=row.files_per_second,
            p95_ms=row.latency.p95_ms,
            agreement=None if row.agreed is None else row.agreed.share,
            rates=row.file_rates,
        )
        for row in rows
        if row.error is None and row.latency is not None and row.files_per_second is not None
    ]


def why_not(candidates: Sequence[Candidate], limits: Limits) -> str:
    """If nothing meets the limits: the nearest to each limit, among those that meet the other one if any do."""
    budget, agreement = Limits(budget_ms=limits.budget_ms), Limits(min_agreement=limits.min_agreement)
    words = []
    for limit, other, among in (
        (budget, agreement, "of those that agree enough, "),
        (agreement, budget, "of those that are quick enough, "),
    ):
        if limit == Limits():
            continue
        able = [each for each in candidates if fits(each, other)]
        prefix = among if able and other != Limits() else ""
        words.append(prefix + why_none(able or candidates, limit))
    return "; ".join(dict.fromkeys(words))


def parts(row: Row, decode_per_second: float | None, preprocessing_share: float | None) -> Parts | None:
    """Where the time of one image goes; None if unknown, or if the parts run at once, as on a GPU."""
    if not (row.images_per_second and row.files_per_second and decode_per_second) or not _is_cpu(row.device):
        return None
    engine, decode = 1e3 / row.images_per_second, 1e3 / decode_per_second
    before = None if preprocessing_share is None else engine * preprocessing_share
    return Parts(
        decode=decode,
        preprocessing=before,
        engine=engine - (before or 0.0),
        rest=1e3 / row.files_per_second - engine - decode,
    )


def _is_cpu(device: str | None) -> bool:
    """Whether the engine runs on the cores that decode: on the CPU, or on CPU replicas."""
    return device is not None and "cuda" not in device


def predict_command(
    model: str,
    configuration: BatchConfiguration,
    images: Sequence[str] | None,
    where: DeviceOptions,
) -> str:
    """The `predict` command line for this configuration; without `images`, it contains IMAGES as a placeholder."""
    # A name that begins with a dash would be an option; a dash alone is a list on standard input.
    named = [f"./{name}" if name.startswith("-") and name != "-" else name for name in images or ["IMAGES"]]
    words = ["alexdeploy", "predict", *named, "--model", model]
    words += ["--backend", configuration.backend, "--precision", configuration.precision]
    words += ["--views", str(configuration.num_views), "--batch-size", str(configuration.batch_size)]
    if where.num_threads is not None:
        words += ["--threads", str(where.num_threads)]
    if where.devices is not None:
        words += ["--devices", where.devices]
    if where.replicas != 1:
        words += ["--replicas", str(where.replicas)]
    return shlex.join(words)


def ceiling_of(ceilings: Sequence[Ceiling], backend: Backend, precision: Precision) -> float | None:
    return next((each.gflops for each in ceilings if (each.backend, each.precision) == (backend, precision)), None)


def best_of(rows: Sequence[Row], group: Configuration) -> Row | None:
    """The batch of a group that is fastest from files, among those that never failed."""
    own = [row for row in rows if row.configuration.group == group and row.files_per_second and row.error is None]
    return max(own, key=lambda row: row.files_per_second or 0.0, default=None)


def views_of(rows: Sequence[Row]) -> tuple[NumViews, ...]:
    return tuple(dict.fromkeys(row.configuration.num_views for row in rows))
