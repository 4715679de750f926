"""How well two runs of a network agree: answers, score errors, and the layer where an error begins.

Everything is computed from arrays; `verify` runs the graphs and engines that produce them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ParityError
from alexdeploy.core.metrics import top_k, wilson_interval
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.evaluation.answers import ImageRow
from alexdeploy.graphs.freshness import ensemble_command

FLOORS: dict[Precision, float] = {"fp32": 1e-5, "fp16": 2e-3, "int8": 2e-2}
"""Relative RMS error of a layer that rounding at the graph's precision can explain."""

JUMP = 3.0
"""A layer's error jumps if it exceeds the largest error before it by this factor: rounding alone grows more slowly."""

_NUM_TOP = 5

_MANY_IMAGES = 2000
"""Images that a hint asks for at most: they are held decoded, 0.2 MB each."""

Reference = Literal["torch", "onnxruntime"]
REFERENCE_NAMES: dict[Reference, str] = {"torch": "PyTorch", "onnxruntime": "model.onnx in ONNX Runtime"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Rows of scores against the reference's. Rows that are not finite are counted, and excluded from other figures.

    `flip_rate` and `top5_overlap` are fractions; the overlap is the mean share of the reference's top five classes
    that are among these top five. A flip's margin is the reference's probability of its own answer minus that of
    the other answer: near 0 it was a coin toss. Errors are absolute; `relative_error` is the largest error over the
    largest magnitude of the reference's scores. Figures without rows to compute them from are None. So is the overlap
    with five classes or fewer, which are always all in the top five.
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
    """One layer over all images: RMS error over RMS of the reference, and the largest error over its largest value.

    Both are infinite if a value is not finite.
    """

    name: str
    rms_error: float
    max_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkReport:
    """A graph on disk, run as the plain network: a row of logits for each view. `jump`: see `first_jump`."""

    artifact: str
    precision: Precision
    sha256: str
    agreement: Agreement
    layers: tuple[LayerError, ...]
    jump: str | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """An artifact as deployed on a backend: a row of probabilities per image. `jump` is that of its graph."""

    artifact: str
    precision: Precision
    backend: str
    sha256: str
    agreement: Agreement
    jump: str | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderReport:
    """Images decoded by `decoder`, against the one decoder. `num_left` others are left to that one, file by file.

    `num_identical` images are equal in every pixel of their 256 x 256. Differences are of the values of a colour, 0 to
    255, over all images. `agreement` is that of the answers in FP32.
    """

    decoder: str
    num_images: int
    num_left: int
    num_identical: int
    mean_difference: float
    max_difference: int
    agreement: Agreement
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenImage:
    """An input that could not be read; excluded from all figures."""

    source: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """All comparisons. `images` names the images' origin; `num_found` counts them before sampling.

    `max_flips` is the limit in percent. `rows` are the images that could be read, with the answers of `engines`, if
    there are any. `thumbnails` are JPEG files of those that a page shows, by place in `rows`, if the options ask for
    them.
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
    decoders: DecoderReport | None = None
    rows: tuple[ImageRow, ...] = ()
    thumbnails: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def reports(self) -> tuple[NetworkReport | EngineReport, ...]:
        """Everything compared with the reference, networks first."""
        return (*self.networks, *self.engines)

    @property
    def num_comparisons(self) -> int:
        """The reports, and the decoders if they were compared."""
        return len(self.reports) + (self.decoders is not None)

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each failed artifact, and each failed artifact on a backend."""
        found = [_sentence(report) for report in self.reports if report.failure]
        if self.decoders is not None and self.decoders.failure:
            found.append(f"{self.decoders.decoder}: {self.decoders.failure}")
        return tuple(found)

    def document(self) -> dict[str, Any]:
        """Values for JSON: all but the thumbnails, and the failures in words."""
        values = asdict(self)
        del values["thumbnails"]
        return {**values, "failures": self.failures}

    def check(self) -> None:
        """Raise ParityError naming every failure, if there is one."""
        if self.failures:
            raise ParityError("\n".join(self.failures), hint="\n".join(_hints(self)))


def compare(
    expected: NDArray[np.floating], actual: NDArray[np.floating], probabilities: NDArray[np.floating]
) -> Agreement:
    """Compare scores [N, C] row by row; `probabilities` [N, C] are the reference's, used for the margins."""
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
    """The reason if more than `max_flips` percent of the answers differ or an output is not finite, else None."""
    num_rows, num_flips = agreement.num_rows, agreement.num_flips
    if agreement.num_non_finite:
        return f"{agreement.num_non_finite} of {num_rows} outputs are not finite"
    # Not 100 * flips > max_flips * rows: this form gives exactly 100 / images for one flip.
    percent = 100 * num_flips / num_rows
    if percent <= max_flips:
        return None
    verb, most = ("differs", "") if num_flips == 1 else ("differ", "at most ")
    margin = f"by a margin of {most}{agreement.max_margin:.2g}"
    return f"{num_flips} of {num_rows} answers {verb} ({percent:.2f} %) {margin}, allowed: {max_flips:.3g} %"


class ErrorSums:
    """The errors of one layer, accumulated over batches; the activations themselves are not kept."""

    def __init__(self) -> None:
        self._error = self._reference = self._max_error = self._max_reference = 0.0

    def add(self, expected: NDArray[np.floating], actual: NDArray[np.floating]) -> None:
        """Add the corresponding values of both, in any shape."""
        # Infinity minus infinity is NaN, which counts as an infinite error.
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
    """The first layer whose RMS error is above `floor` and above JUMP times every earlier error; None if there is none.

    The floor keeps rounding, which differs between layers, from looking like a fault. The factor keeps an error that
    merely accumulates from being blamed on the layer that happens to cross the floor.
    """
    largest = 0.0
    for layer in layers:
        # Not "error > limit": NaN counts as a jump too.
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
    """How to fix the failures: export again where the network itself differs, else use another backend."""
    failed = [report for report in found.reports if report.failure]
    differing = {report.precision for report in found.networks if report.failure or report.agreement.num_flips}
    options = {"fp32": "", "fp16": " --fp16"}
    precisions = {report.precision for report in failed}
    ensemble = ensemble_command(ModelFolder(Path(found.model)))
    for precision in sorted(precisions & differing):
        named = shlex.quote(found.model) if ensemble is None else "MEMBER"
        if precision == "int8":
            yield from _int8_hints(found, named)
        else:
            yield f"Make {precision} again: alexdeploy export {named}{options[precision]}"
    if precisions & differing and ensemble is not None:
        yield f"After its members, make the ensemble again: {ensemble}"
    if precisions - differing:
        yield "If only an engine differs, its graph is correct: use another --backend or --precision."
    fewest = min((report.agreement.num_rows for report in failed), default=1)
    if failed and 0 < found.max_flips < 100 / fewest:
        yield f"One answer of {fewest} is more than {found.max_flips:g} %: --num-images takes more of them."


def _int8_hints(found: Verification, named: str) -> Iterator[str]:
    """What changes the verdict on an INT8 graph that was within its budget on the images that it was exported with.

    The same export would write the same file: `verify` ran the graph, so that it belongs to the weights and the ranges.
    """
    failed = [each.agreement for each in found.reports if each.failure and each.precision == "int8"]
    fewest = min(failed, key=lambda each: each.num_rows)
    if fewest.num_flips and found.num_images < found.num_found:
        interval = wilson_interval(fewest.num_flips, fewest.num_rows)
        low, high = 100 * interval.low, 100 * interval.high
        if low <= found.max_flips:
            yield (
                f"{fewest.num_flips} of {fewest.num_rows} may be {low:.2g} to {high:.2g} % of all (95 % interval): "
                f"count on more: --num-images {min(found.num_found, _MANY_IMAGES)}"
            )
    yield f"Make int8 from more images, or others: alexdeploy export {named} --int8 --calibrate IMAGES"
    yield f"Or with the worst layers in FP32 (verify --layers): alexdeploy export {named} --int8 --keep LAYERS"
    if not any(each.num_non_finite for each in failed):
        yield "Or allow more where the margins are small: --max-flips PERCENT"
