from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alexdeploy.export.quantize.histogram import Histogram


def _histogram(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch.astype(np.float32))
    return histogram


def _squared_error(values: np.ndarray, threshold: float) -> float:
    scale = threshold / 127
    return float(np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_counts_do_not_depend_on_the_order_or_size_of_batches(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.laplace(0, 10 ** rng.uniform(-3, 3), 400).astype(np.float32)
    whole, parts = _histogram(values), _histogram(*np.array_split(rng.permutation(values), cut))
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert (whole.limit, whole.minimum, whole.maximum) == (parts.limit, parts.minimum, parts.maximum)
    assert whole.counts.sum() == 400


def test_a_batch_of_zeros_first_does_not_coarsen_the_bins() -> None:
    values = np.random.default_rng(0).uniform(0, 1e-3, 1000)
    late = _histogram(np.zeros(10), values)
    assert late.limit == _histogram(values).limit < 2e-3
    assert late.counts[0] >= 10


def test_percentiles_are_those_of_numpy_within_a_bin() -> None:
    values = np.random.default_rng(0).normal(0, 3, 100_000)
    histogram = _histogram(values)
    bin_width = histogram.limit / len(histogram.counts)
    for percent in (50.0003, 99.0003, 99.9003):
        exact = np.percentile(np.abs(values), percent, method="inverted_cdf")
        assert exact <= histogram.percentile(percent) <= exact + 1.01 * bin_width


def test_minmax_reaches_exactly_the_largest_magnitude() -> None:
    assert _histogram(np.array([-5.5, 1.0]), np.array([3.25])).threshold("minmax") == 5.5


def test_the_threshold_of_least_squared_error_is_as_good_as_a_search_over_the_values_themselves() -> None:
    values = np.random.default_rng(1).laplace(0, 1, 50_000)
    found = _histogram(values).threshold("mse")
    best = min(_squared_error(values, t) for t in np.linspace(1, np.abs(values).max(), 400))
    assert _squared_error(values, found) <= 1.02 * best
    assert _squared_error(values, found) < 0.9 * _squared_error(values, float(np.abs(values).max()))


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_a_single_outlier_only_moves_minmax(method: str) -> None:
    values = np.abs(np.random.default_rng(2).normal(0, 1, 200_000))
    values[: len(values) // 2] = 0
    threshold = _histogram(values, np.array([40.0])).threshold(method)  # type: ignore[arg-type]
    assert threshold == 40.0 if method == "minmax" else 1.5 < threshold < 30


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_a_tensor_of_zeros_has_no_threshold(method: str) -> None:
    assert _histogram(np.zeros(100)).threshold(method) == 0.0  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        _histogram(np.array([1.0, value]))


def test_percentiles_by_hand() -> None:
    # From 0 to 8 in bins of 8/8192; the four values are the first of their bins.
    histogram = _histogram(np.array([0.25, -0.5, 1.0, 4.0]))
    assert (histogram.limit, histogram.minimum, histogram.maximum, histogram.largest) == (8.0, -0.5, 4.0, 4.0)
    assert np.flatnonzero(histogram.counts).tolist() == [256, 512, 1024, 4096]
    assert [histogram.percentile(percent) for percent in (25, 50, 50.1, 75)] == [
        257 / 1024,
        513 / 1024,
        1025 / 1024,
        1025 / 1024,
    ]
    assert histogram.percentile(75.1) == histogram.percentile(100) == 4.0
    assert histogram.threshold("percentile", 50) == 513 / 1024


@pytest.mark.parametrize(("num_large", "expected"), [(2, 1 + 32 / 8192), (3, 30.0)])
def test_one_value_of_ten_thousand_saturates_unless_told_otherwise(num_large: int, expected: float) -> None:
    values = np.full(20_000, -1.0)
    values[:num_large] = 30
    assert _histogram(values).threshold("percentile") == expected


def test_nothing_added_is_nothing_measured() -> None:
    assert (Histogram().largest, Histogram().threshold("minmax")) == (0.0, 0.0)


def test_the_threshold_of_least_squared_error_is_the_best_of_200_over_the_middles_of_the_bins() -> None:
    histogram = _histogram(np.random.default_rng(4).standard_t(3, 20_000))
    there = np.flatnonzero(histogram.counts)
    middles = (there + 0.5) * histogram.limit / 8192
    errors = []
    for part in range(1, 201):
        scale = histogram.largest * part / 200 / 127
        steps = np.array([min(round(value / scale), 127) for value in middles])
        errors.append((histogram.counts[there] * (steps * scale - middles) ** 2).sum())
    assert histogram.threshold("mse") == pytest.approx(histogram.largest * (1 + int(np.argmin(errors))) / 200)


def _divergence(counts: np.ndarray, used: int) -> float:
    """Kullback-Leibler divergence of a histogram, clipped to its first bins, from itself in 128 levels.

    As Migacz 2017, "8-bit inference with TensorRT": what is clipped counts in the last bin of the one and not in the
    other, and a level is spread over those of its bins that are not empty.
    """
    clipped = counts[:used].astype(np.float64)
    in_levels = np.zeros(used)
    for level in np.array_split(np.arange(used), 128):
        there = level[clipped[level] > 0]
        in_levels[there] = clipped[level].sum() / max(len(there), 1)
    clipped[-1] += counts[used:].sum()
    p, q = clipped / clipped.sum(), np.maximum(in_levels / in_levels.sum(), 1e-4 / used)
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("kind", ["laplace", "heavy", "relu"])
def test_the_entropy_threshold_loses_hardly_more_information_than_the_best(kind: str) -> None:
    rng = np.random.default_rng(5)
    values = {
        "laplace": rng.laplace(0, 1, 200_000),
        "heavy": rng.standard_t(3, 200_000),
        "relu": np.maximum(rng.normal(0, 1, 200_000), 0),
    }[kind]
    histogram = _histogram(values)
    counts = histogram.counts.reshape(1024, 8).sum(axis=1)
    # Zeros are exact at any scale.
    counts[0] = counts[1]
    last = int(np.flatnonzero(counts)[-1]) + 1
    found = histogram.threshold("entropy")
    lost = _divergence(counts, min(round(found / histogram.limit * 1024), last))
    # The minimum is flat: here 1.03 to 1.6 times it, as ONNX Runtime smooths empty bins in another way.
    assert lost <= 2 * min(_divergence(counts, used) for used in range(128, last + 1, 4))
    if kind == "heavy":
        assert lost < 0.25 * _divergence(counts, last)
        assert found < 0.5 * histogram.largest
