"""Precision against recall, for each class and on average, from the probabilities of all images.

Kept are counts, not images: probabilities are put into levels of equal steps of their logit, between which nothing
is ordered. A curve and its average precision are exactly those of the probabilities rounded down to their levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_PROBABILITY = 1e-3
"""Curves end at this threshold: a class that an image has with less probability is not in the image's record."""

NUM_LEVELS = 1024
_LOW = float(np.log(MIN_PROBABILITY / (1 - MIN_PROBABILITY)))
_MOST = 1 - 2.0**-24
"""The float32 number before 1."""
_STEP = (float(np.log(_MOST / (1 - _MOST))) - _LOW) / NUM_LEVELS
_RECALLS = np.arange(1, 101) / 100
_CURVE_STEP = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Points from the highest threshold to the lowest. `average_precision` is the sum of precision x gain of recall.

    `name` and `index` are those of a class. For the average "micro" all pairs of an image and a class are one set, for
    "macro" precision is averaged over the classes at each recall, 0 where a curve has ended; then `index` is None.
    """

    name: str
    index: int | None
    average_precision: float
    recall: tuple[float, ...]
    precision: tuple[float, ...]


def levels_of(probabilities: NDArray[np.floating]) -> bytes:
    """The record of an image with probabilities [C]: a uint32 (little-endian) for each class from MIN_PROBABILITY on.

    It is NUM_LEVELS x the class + the level of its probability.
    """
    classes = np.flatnonzero(probabilities >= MIN_PROBABILITY)
    likely = np.minimum(probabilities[classes].astype(np.float64), _MOST)
    levels = (np.log(likely) - np.log1p(-likely) - _LOW) / _STEP
    levels = np.clip(levels, 0, NUM_LEVELS - 1).astype(np.int64)
    return (classes * NUM_LEVELS + levels).astype("<u4").tobytes()


class PrecisionRecall:
    """Counts of images by class and level: 8 kB for each class, whatever the number of images."""

    def __init__(self, num_classes: int) -> None:
        self._all = np.zeros(num_classes * NUM_LEVELS, np.int32)
        self._right = np.zeros(num_classes * NUM_LEVELS, np.int32)

    def add(self, label: int, levels: bytes) -> None:
        """Count an image of the class `label` with the record `levels` of `levels_of`."""
        entries = np.frombuffer(levels, "<u4")
        self._all[entries] += 1
        self._right[entries[entries // NUM_LEVELS == label]] += 1

    def average_precisions(self, num_images: NDArray[np.integer]) -> NDArray[np.float64]:
        """float64 [C], of classes of which `num_images` [C] there are; NaN for a class without images."""
        rights, precisions = self._points()
        gains = np.diff(rights, axis=1, prepend=0)
        sums = (gains * precisions).sum(axis=1)
        found: NDArray[np.float64] = np.full(len(sums), np.nan)
        there = num_images > 0
        found[there] = sums[there] / num_images[there]
        return found

    def curve(self, index: int, name: str, num_images: int) -> Curve:
        """The curve of one class."""
        rights, shown = self._sums()
        return _curve(rights[index], shown[index], name, index, num_images)

    def averages(self, num_images: NDArray[np.integer]) -> tuple[Curve, Curve]:
        """The micro and the macro average over all classes that have images."""
        rights, shown = self._sums()
        micro = _curve(rights.sum(axis=0), shown.sum(axis=0), "micro", None, int(num_images.sum()))
        _, precisions = self._points()
        there = np.flatnonzero(num_images)
        total = np.zeros(len(_RECALLS))
        for index in there:
            # The first threshold at which so many of the class have been found.
            places = np.searchsorted(rights[index], np.ceil(_RECALLS * num_images[index] - 1e-9))
            reached = places < NUM_LEVELS
            total[reached] += precisions[index, places[reached]]
        means = total / max(len(there), 1)
        precision = float(self.average_precisions(num_images)[there].mean()) if len(there) else 0.0
        macro = Curve(
            name="macro",
            index=None,
            average_precision=precision,
            recall=_rounded(_RECALLS),
            precision=_rounded(means),
        )
        return micro, macro

    def _sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 [C, L] twice: how many images have the class with at least a level, and how many of these are of it.

        From the highest level to the lowest.
        """
        both = (self._right, self._all)
        right, shown = (counts.reshape(-1, NUM_LEVELS)[:, ::-1].cumsum(axis=1, dtype=np.int64) for counts in both)
        return right, shown

    def _points(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rights, shown = self._sums()
        return rights, rights / np.maximum(shown, 1)


def _curve(rights: NDArray[np.int64], shown: NDArray[np.int64], name: str, index: int | None, num_images: int) -> Curve:
    total = max(num_images, 1)
    recalls, precisions = rights / total, rights / np.maximum(shown, 1)
    kept: list[int] = []
    for place in np.flatnonzero(np.diff(shown, prepend=0)):
        if not kept or recalls[place] >= recalls[kept[-1]] + _CURVE_STEP:
            kept.append(int(place))
    if kept and kept[-1] != NUM_LEVELS - 1:
        kept.append(NUM_LEVELS - 1)
    return Curve(
        name=name,
        index=index,
        average_precision=float((np.diff(rights, prepend=0) * precisions).sum() / total),
        recall=_rounded(recalls[kept]),
        precision=_rounded(precisions[kept]),
    )


def _rounded(values: Sequence[float] | NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
