"""A histogram of a tensor's |x|, accumulated batch by batch, and the thresholds chosen from it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.recipe import CalibrationMethod
from alexdeploy.graphs.onnxruntime_library import load_onnxruntime
from alexdeploy.graphs.ranges import QMAX

_NUM_BINS = 8192
_ENTROPY_BINS = 1024
_ENTROPY_LEVELS = 128
_MSE_CANDIDATES = 200


class Histogram:
    """Counts of |x| in 8,192 equal bins from 0 to a power of two, with the exact smallest and largest value.

    For a larger value, the range doubles and pairs of bins are added. This is exact in integers, so the counts do not
    depend on the order or the size of the batches.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_NUM_BINS, np.int64)
        self.limit = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    @property
    def largest(self) -> float:
        """The largest |x|; 0 if nothing was added."""
        return max(abs(self.minimum), abs(self.maximum)) if self.counts.any() else 0.0

    def add(self, values: NDArray[np.floating]) -> None:
        """Count `values` of any shape. Raises ValueError if one is not finite."""
        minimum, maximum = float(values.min()), float(values.max())
        if not (math.isfinite(minimum) and math.isfinite(maximum)):
            raise ValueError("a value is not finite")
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)
        largest = max(abs(minimum), abs(maximum))
        if self.limit == largest == 0.0:
            self.counts[0] += values.size
            return
        self._widen(largest)
        # Multiplying by a power of two is exact, so a value on the edge of two bins always falls into the upper one.
        bins = np.abs(values.ravel()) * np.float32(_NUM_BINS / self.limit)
        self.counts += np.bincount(np.minimum(bins.astype(np.int32), _NUM_BINS - 1), minlength=_NUM_BINS)

    def percentile(self, percent: float) -> float:
        """The upper edge of the bin that `percent` of all |x| do not exceed; at most the largest |x|."""
        total = int(self.counts.sum())
        index = int(np.searchsorted(np.cumsum(self.counts), math.ceil(total * percent / 100)))
        return min((index + 1) * self.limit / _NUM_BINS, self.largest)

    def threshold(self, method: CalibrationMethod, percent: float = 99.99) -> float:
        """The |x| that maps to 127; larger values saturate. 0 for a tensor that is always 0."""
        if self.largest == 0.0 or method == "minmax":
            return self.largest
        if method == "percentile":
            return self.percentile(percent)
        return self._entropy_threshold() if method == "entropy" else self._mse_threshold()

    def _widen(self, largest: float) -> None:
        needed = 2.0 ** (math.floor(math.log2(largest)) + 1) if largest > 0 else 0.0
        self.limit = self.limit or needed
        while self.limit < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(_NUM_BINS // 2, np.int64)])
            self.limit *= 2

    def _mse_threshold(self) -> float:
        """The threshold whose quantization has the smallest mean squared error over the histogram."""
        values = (np.arange(_NUM_BINS) + 0.5) * (self.limit / _NUM_BINS)
        thresholds = self.largest * np.arange(1, _MSE_CANDIDATES + 1) / _MSE_CANDIDATES
        errors = []
        for threshold in thresholds:
            scale = threshold / QMAX
            rounded = np.minimum(np.rint(values / scale), QMAX) * scale
            errors.append(float(self.counts @ (rounded - values) ** 2))
        return float(thresholds[int(np.argmin(errors))])

    def _entropy_threshold(self) -> float:
        """The threshold with the smallest Kullback-Leibler divergence, as in TensorRT's former entropy calibrator."""
        coarse = self.counts.reshape(_ENTROPY_BINS, -1).sum(axis=1)
        # The zeros of a ReLU are exact at any scale; counting them would make almost any clipping seem cheap.
        coarse[0] = coarse[1]
        # TensorRT's histogram spans -limit to limit.
        both_sides = np.concatenate([coarse[::-1], coarse])
        edges = np.linspace(-self.limit, self.limit, 2 * _ENTROPY_BINS + 1, dtype=np.float32)
        calibrate = load_onnxruntime("quantization.calibrate")
        collector = calibrate.HistogramCollector("entropy", True, 2 * _ENTROPY_BINS, _ENTROPY_LEVELS, 100, "same")
        largest = np.float32(self.largest)
        _, threshold = collector.get_entropy_threshold((both_sides, edges, -largest, largest, largest), _ENTROPY_LEVELS)
        return min(float(threshold), self.largest)
