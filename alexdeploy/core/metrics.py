"""Softmax, top-k choices, confidence intervals of errors, and calibration of probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_CALIBRATION_BINS = 15
"""Guo et al. 2017, "On Calibration of Modern Neural Networks", section 5."""

_Z95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution, for 2.5 % on either side."""


class Interval(NamedTuple):
    """Both ends of a 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Answers whose confidence is in (low, high]; means are None for an empty bin."""

    low: float
    high: float
    num_images: int
    confidence: float | None
    accuracy: float | None


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities of logits [N, C]."""
    powers = np.exp(np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def top_k(scores: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Class indices of the `k` largest of `scores` [N, C], best first; equal scores go to the lower index."""
    k = min(k, scores.shape[1])
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def has_top5(num_classes: int) -> bool:
    """Whether a top-5 error is meaningful: with five classes or fewer, it is always 0."""
    return num_classes > 5


def wilson_interval(count: int, total: int) -> Interval:
    """The 95 % score interval of the fraction `count` / `total` (Wilson 1927): within 0 to 1, never of width 0."""
    if not 0 <= count <= total or total == 0:
        raise ValueError(f"{count} of {total} is not a fraction")
    fraction, z2 = count / total, _Z95**2
    centre = fraction + z2 / (2 * total)
    half = _Z95 * math.sqrt((fraction * (1 - fraction) + z2 / (4 * total)) / total)
    scale = 1 + z2 / total
    low = 0.0 if count == 0 else (centre - half) / scale
    high = 1.0 if count == total else (centre + half) / scale
    return Interval(low, high)


def paired_difference(both: int, first: int, second: int, neither: int) -> tuple[float, Interval]:
    """The second of two fractions minus the first, on the same examples, with its 95 % interval.

    `both` examples count in both fractions, `first` and `second` in only that one, `neither` in neither. The
    interval is method 10 of Newcombe 1998, "Improved confidence intervals for the difference between binomial
    proportions based on paired data": Wilson's intervals joined by the correlation. Unlike the simple interval,
    its width is not 0 if no example changed.
    """
    total = both + first + second + neither
    if total == 0:
        raise ValueError("a difference over no examples is not defined")
    p1, p2 = (both + first) / total, (both + second) / total
    (low1, high1), (low2, high2) = wilson_interval(both + first, total), wilson_interval(both + second, total)
    covariance: float = both * neither - first * second
    if covariance > 0:
        covariance = max(covariance - total / 2, 0.0)
    spread = math.sqrt((both + first) * (second + neither) * (both + second) * (first + neither))
    correlation = covariance / spread if spread else 0.0

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0))

    difference = p2 - p1
    interval = Interval(
        difference - reach(p2 - low2, high1 - p1),
        difference + reach(high2 - p2, p1 - low1),
    )
    return difference, interval


class Calibration:
    """The expected calibration error of answers that are added one by one (Guo et al. 2017, equation 3).

    The confidence of an answer is the probability of its best class. In bins of equal width, the mean confidence is
    compared with the share of correct answers; the error is the mean gap, weighted by the answers in the bin.
    """

    def __init__(self, num_bins: int = NUM_CALIBRATION_BINS) -> None:
        self._counts = [0] * num_bins
        self._rights = [0] * num_bins
        self._confidences = [0.0] * num_bins

    def add(self, confidence: float, *, right: bool) -> None:
        num_bins = len(self._counts)
        # (0.2, 0.4] and not [0.2, 0.4). A mean of float32 probabilities may be a little above 1.
        number = min(max(math.ceil(confidence * num_bins) - 1, 0), num_bins - 1)
        self._counts[number] += 1
        self._rights[number] += right
        self._confidences[number] += confidence

    @property
    def error(self) -> float | None:
        """From 0 to 1; None without answers."""
        total = sum(self._counts)
        gaps = (abs(right - confidence) for right, confidence in zip(self._rights, self._confidences, strict=True))
        return sum(gaps) / total if total else None

    def bins(self) -> tuple[Bin, ...]:
        num_bins = len(self._counts)
        return tuple(
            Bin(
                low=number / num_bins,
                high=(number + 1) / num_bins,
                num_images=count,
                confidence=self._confidences[number] / count if count else None,
                accuracy=self._rights[number] / count if count else None,
            )
            for number, count in enumerate(self._counts)
        )


def frequent_confusions(counts: Mapping[tuple[int, int], int], k: int) -> list[tuple[int, int, int]]:
    """The `k` most frequent mistakes, as (true, predicted, count), from counts of (true, predicted).

    Equal counts are in the order of the classes.
    """
    mistakes = [(true, predicted, count) for (true, predicted), count in counts.items() if true != predicted]
    return sorted(mistakes, key=lambda item: (-item[2], item[0], item[1]))[:k]
