"""How well two runs of a network agree: the answers, the errors of their scores, and the layer where an error begins.

All of it is computed from arrays; `verify` runs the graphs and engines that give them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ParityError
from alexdeploy.core.metrics import top_k
from alexdeploy.core.spec import Precision

FLOORS: dict[Precision, float] = {"fp32": 1e-5, "fp16": 2e-3, "int8": 2e-2}
"""Relative RMS error of a layer up to which the rounding of a graph's precision explains it."""

JUMP = 3.0
"""A layer's error jumps if it is so many times the largest error before it: rounding alone adds up more slowly."""

_NUM_TOP = 5

Reference = Literal["torch", "onnxruntime"]
REFERENCE_NAMES: dict[Reference, str] = {"torch": "PyTorch", "onnxruntime": "model.onnx in ONNX Runtime"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Rows of scores against the reference's. Rows that are not finite are counted, and are in no other figure.

    `flip_rate` and `top5_overlap` are fractions; the overlap is the mean share of the reference's five best classes
    that are among these five best. A flip's margin is the reference's probability of its own answer minus that of
    the other answer: near 0 it was a coin toss. Errors are absolute; `relative_error` is the largest over the largest
    magnitude of the reference's scores. What has no rows to be computed from is None, and so is the overlap where there
    are no more than five classes, which are always all among the best five.
    """

    num_rows: int
    num_non_finite: int
    num_flips: int = 0
    flip_rate: float | None = None
    top5_overlap: float | None = None
    median_margin: float | None = None
    max_margin: float | None = None
    mean_error: float | None = None
    max_error: float | None = None
    relative_error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    """One layer over all images: RMS of the error over RMS of the reference, and the largest over its largest value.

    Both are infinite where a value is not finite.
    """

    name: str
    rms_error: float
    max_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkReport:
    """A graph on disk as the plain network: a row of logits for each view. `jump`: see `first_jump`."""

    artifact: str
    precision: Precision
    sha256: str
    agreement: Agreement
    layers: tuple[LayerError, ...]
    jump: str | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """An artifact as deployed on a backend: a row of probabilities for each image. `jump` is that of its graph."""

    artifact: str
    precision: Precision
    backend: str
    sha256: str
    agreement: Agreement
    jump: str | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenImage:
    """An input that could not be read, and so is in no figure."""

    source: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Everything that was compared. `images` says whose they are; `num_found` counts them before some were chosen.

    `max_flips` is what was allowed, in percent.
    """

    model: str
    reference: Reference
    images: str
    num_found: int
    num_images: int
    num_views: int
    max_flips: float
    broken: tuple[BrokenImage, ...]
    networks: tuple[NetworkReport, ...]
    engines: tuple[EngineReport, ...]

    @property
    def reports(self) -> tuple[NetworkReport | EngineReport, ...]:
        """All that was compared with the reference, networks first."""
        return (*self.networks, *self.engines)

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each artifact, and each artifact on a backend, that failed."""
        return tuple(_sentence(report) for report in self.reports if report.failure)

    def check(self) -> None:
        """Raise ParityError naming all that failed, if anything did."""
        if self.failures:
            raise ParityError("\n".join(self.failures), hint="\n".join(_hints(self)))


def compare(
    expected: NDArray[np.floating], actual: NDArray[np.floating], probabilities: NDArray[np.floating]
) -> Agreement:
    """Compare scores [N, C] row by row; `probabilities` [N, C] are the reference's, for the margins."""
    finite = np.isfinite(actual).all(axis=1)
    num_rows, num_non_finite = len(actual), int((~finite).sum())
    if num_non_finite == num_rows:
        return Agreement(num_rows=num_rows, num_non_finite=num_non_finite)
    expected, actual, probabilities = expected[finite], actual[finite], probabilities[finite]
    best, others = top_k(expected, _NUM_TOP), top_k(actual, _NUM_TOP)
    overlap = None
    if expected.shape[1] > _NUM_TOP:
        overlap = float((best[:, :, None] == others[:, None, :]).any(axis=2).mean())
    flipped = np.flatnonzero(best[:, 0] != others[:, 0])
    margins = probabilities[flipped, best[flipped, 0]] - probabilities[flipped, others[flipped, 0]]
    errors = np.abs(np.subtract(actual, expected, dtype=np.float64))
    return Agreement(
        num_rows=num_rows,
        num_non_finite=num_non_finite,
        num_flips=len(flipped),
        flip_rate=len(flipped) / len(best),
        top5_overlap=overlap,
        median_margin=float(np.median(margins)) if len(flipped) else None,
        max_margin=float(margins.max()) if len(flipped) else None,
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        relative_error=float(errors.max()) / max(float(np.abs(expected).max()), 1e-30),
    )


def failure(agreement: Agreement, max_flips: float) -> str | None:
    """What is wrong if more than `max_flips` percent of the answers differ or an output is not finite, else None."""
    num_rows, num_flips = agreement.num_rows, agreement.num_flips
    if agreement.num_non_finite:
        return f"{agreement.num_non_finite} of {num_rows} outputs are not finite"
    # This and not 100 * flips > max_flips * rows: it is exactly 100 / images for one image of so many.
    percent = 100 * num_flips / num_rows
    if percent <= max_flips:
        return None
    verb, most = ("differs", "") if num_flips == 1 else ("differ", "at most ")
    margin = f"by a margin of {most}{agreement.max_margin:.2g}"
    return f"{num_flips} of {num_rows} answers {verb} ({percent:.2f} %) {margin}, allowed: {max_flips:.3g} %"


class ErrorSums:
    """The errors of one layer, added up over batches: the activations themselves are not kept."""

    def __init__(self) -> None:
        self._error = self._reference = self._max_error = self._max_reference = 0.0

    def add(self, expected: NDArray[np.floating], actual: NDArray[np.floating]) -> None:
        """Add the same values of both, in any shape."""
        # Infinity minus infinity is a NaN, which counts as an error without bounds.
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.subtract(actual.reshape(expected.shape), expected, dtype=np.float64)
            self._error += float(np.square(difference).sum())
            self._max_error = float(np.maximum(self._max_error, np.abs(difference).max()))
        self._reference += float(np.square(expected, dtype=np.float64).sum())
        self._max_reference = max(self._max_reference, float(np.abs(expected).max()))

    def error(self, name: str) -> LayerError:
        rms = (self._error / max(self._reference, 1e-60)) ** 0.5
        largest = self._max_error / max(self._max_reference, 1e-30)
        return LayerError(
            name=name,
            rms_error=rms if np.isfinite(rms) else float("inf"),
            max_error=largest if np.isfinite(largest) else float("inf"),
        )


def first_jump(layers: Iterable[LayerError], floor: float) -> str | None:
    """The first layer whose RMS error is above `floor` and above JUMP times every error before it; None if none is.

    The floor keeps rounding, which differs from layer to layer, from looking like a fault; the factor keeps an error
    that only adds up from layer to layer from being blamed on the one that happens to cross the floor.
    """
    largest = 0.0
    for layer in layers:
        # Not "error > limit": a NaN is a jump as well.
        if not layer.rms_error <= max(floor, JUMP * largest):
            return layer.name
        largest = max(largest, layer.rms_error)
    return None


def _sentence(report: NetworkReport | EngineReport) -> str:
    where = f" on {report.backend}" if isinstance(report, EngineReport) else ""
    kind = f" as {report.precision}" if report.precision == "bf16" else ""
    jump = f"; the error jumps at {report.jump}" if report.jump else ""
    return f"{report.artifact}{kind}{where}: {report.failure}{jump}"


def _hints(found: Verification) -> Iterator[str]:
    """How to mend what failed: another graph where the network itself differs, another backend where it does not."""
    failed = [report for report in found.reports if report.failure]
    differing = {report.precision for report in found.networks if report.failure or report.agreement.num_flips}
    options = {"fp32": "", "fp16": " --fp16", "int8": " --int8 --max-drop 0.5"}
    precisions = {report.precision for report in failed}
    for precision in sorted(precisions & differing):
        yield f"Make {precision} again: alexdeploy export {shlex.quote(found.model)}{options[precision]}"
    if precisions - differing:
        yield "Where only an engine differs its graph is not at fault: use another --backend or --precision."
    fewest = min(report.agreement.num_rows for report in failed)
    if 0 < found.max_flips < 100 / fewest:
        yield f"One answer of {fewest} is more than {found.max_flips:g} %: --num-images takes more of them."
