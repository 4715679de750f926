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


@settings(max_examples=30, deadline=None)
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
