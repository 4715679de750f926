from __future__ import annotations

import math

import numpy as np
import pytest

from alexdeploy.core.metrics import (
    Calibration,
    frequent_confusions,
    has_top5,
    paired_difference,
    softmax,
    top_k,
    wilson_interval,
)


def test_softmax_survives_large_logits() -> None:
    found = softmax(np.array([[1000.0, 1000.0 + np.log(3)], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-12)


def test_softmax_of_float32_logits_is_computed_in_float64() -> None:
    logits = np.array([[0.1, -3.7, 12.3], [5.0, 5.5, -40.0]], np.float32)
    powers = [[math.exp(float(each) - float(row.max())) for each in row] for row in logits]
    np.testing.assert_allclose(softmax(logits), [[each / sum(row) for each in row] for row in powers], rtol=1e-14)


def test_equal_scores_go_to_the_lower_index() -> None:
    assert top_k(np.array([[0.2, 0.5, 0.5, 0.1]]), 3).tolist() == [[1, 2, 0]]


def test_more_choices_than_classes_gives_all_of_them() -> None:
    assert top_k(np.array([[0.2, 0.5]]), 5).tolist() == [[1, 0]]


def test_a_top_5_error_says_something_from_six_classes_on() -> None:
    assert [has_top5(num_classes) for num_classes in (2, 5, 6, 1000)] == [False, False, True, True]


def test_wilsons_interval_solves_its_own_equation() -> None:
    # The ends are where the score test just rejects: |k/n - p| = 1.96 sqrt(p (1 - p) / n), by bisection.
    def gap(p: float) -> float:
        return abs(0.15 - p) - 1.959964 * math.sqrt(p * (1 - p) / 20)

    def bisect(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if gap(middle) < 0 else (inside, middle)
        return inside

    interval = wilson_interval(3, 20)
    assert interval == pytest.approx((bisect(0.15, 0.0), bisect(0.15, 1.0)), abs=1e-6)
    assert interval == pytest.approx((0.0524, 0.3604), abs=1e-4)


def test_no_error_at_all_has_an_interval_from_zero() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 1.959964**2 / (10 + 1.959964**2)))
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + 1.959964**2), 1.0))


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 4), (5, 4)])
def test_what_is_no_fraction_has_no_interval(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="not a fraction"):
        wilson_interval(count, total)


@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        # Fagerland, Lydersen and Laake 2017, "Statistical Analysis of Contingency Tables", chapter 8; R package of it.
        ((1, 1, 7, 12), 0.2857, 0.0256, 0.5069),
        ((59, 6, 16, 80), 0.0621, 0.0046, 0.1186),
    ],
)
def test_paired_differences_of_the_literature(
    table: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    found, interval = paired_difference(*table)
    assert (found, *interval) == pytest.approx((difference, low, high), abs=5e-5)


def test_a_difference_over_no_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="no examples"):
        paired_difference(0, 0, 0, 0)


@pytest.mark.parametrize("table", [(3, 1, 0, 2), (0, 4, 4, 0), (5, 0, 0, 0), (0, 0, 3, 0), (40, 9, 2, 49)])
def test_a_paired_difference_is_newcombes_method_10_step_by_step(table: tuple[int, int, int, int]) -> None:
    e, f, g, h = table
    n = e + f + g + h
    (l1, u1), (l2, u2) = wilson_interval(e + f, n), wilson_interval(e + g, n)
    # Newcombe 1998, page 2639: phi of the table, with a continuity correction where it is positive.
    product = (e + f) * (g + h) * (e + g) * (f + h)
    above = e * h - f * g
    above = 0 if 0 < above <= n / 2 else above - n / 2 if above > n / 2 else above
    phi = above / math.sqrt(product) if product else 0
    p1, p2 = (e + f) / n, (e + g) / n
    d1, d2, e1, e2 = p2 - l2, u2 - p2, p1 - l1, u1 - p1
    low = p2 - p1 - math.sqrt(d1**2 - 2 * phi * d1 * e2 + e2**2)
    high = p2 - p1 + math.sqrt(d2**2 - 2 * phi * d2 * e1 + e1**2)
    found, interval = paired_difference(*table)
    assert (found, *interval) == pytest.approx((p2 - p1, low, high), abs=1e-12)


def test_a_paired_difference_turns_round_with_its_sides() -> None:
    (one, (low, high)), (other, interval) = paired_difference(30, 5, 12, 53), paired_difference(30, 12, 5, 53)
    assert (one, low, high) == pytest.approx((-other, -interval.high, -interval.low))


def test_no_change_among_400_is_no_proof_of_no_difference() -> None:
    difference, interval = paired_difference(130, 0, 0, 270)
    assert difference == 0
    assert interval.low == pytest.approx(-interval.high)
    assert 0.001 < interval.high < 0.01


def test_the_calibration_error_by_hand() -> None:
    calibration = Calibration(num_bins=5)
    # In (0.2, 0.4]: 0.3 and 0.4, one of them right. In (0.8, 1]: 0.9 and 1, both right.
    for confidence, right in ((0.3, False), (0.4, True), (0.9, True), (1.0, True)):
        calibration.add(confidence, right=right)
    assert calibration.error == pytest.approx(2 / 4 * abs(0.5 - 0.35) + 2 / 4 * abs(1 - 0.95))
    bins = calibration.bins()
    assert [entry.num_images for entry in bins] == [0, 2, 0, 0, 2]
    assert (bins[1].confidence, bins[1].accuracy) == (pytest.approx(0.35), 0.5)
    assert (bins[0].confidence, bins[0].accuracy) == (None, None)


def test_there_are_15_bins_of_equal_width_from_0_to_1() -> None:
    bins = Calibration().bins()
    assert [(entry.low, entry.high) for entry in bins] == [(number / 15, (number + 1) / 15) for number in range(15)]


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    calibration = Calibration(num_bins=4)
    for confidence in (0.0, 0.25, 0.5, 1.0, 1.0000001):
        calibration.add(confidence, right=True)
    assert [entry.num_images for entry in calibration.bins()] == [2, 1, 0, 2]


def test_no_answers_have_no_calibration_error() -> None:
    assert Calibration().error is None


def test_frequent_confusions_are_mistakes_in_order() -> None:
    counts = {(0, 0): 9, (0, 1): 2, (2, 1): 2, (1, 0): 5, (0, 2): 1}
    assert frequent_confusions(counts, 3) == [(1, 0, 5), (0, 1, 2), (2, 1, 2)]
