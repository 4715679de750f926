"""Precision, recall, F1 and their curves, by hand and in NumPy from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from alexdeploy.engines.base import Configuration
from alexdeploy.evaluation.precision_recall import MIN_PROBABILITY, NUM_LEVELS, PrecisionRecall, levels_of
from alexdeploy.evaluation.scoring import Score, Tally

CONFIGURATION = Configuration(backend="openvino", precision="fp32", num_views=1)


def score_of(labels: list[int], probabilities: list[list[float]], num_broken: int = 0) -> Score:
    """The score of images of three classes, and of `num_broken` unreadable ones of class 0."""
    tally = Tally(3)
    for label, row in zip(labels, probabilities, strict=True):
        tally.add(label, np.array(row, np.float32), None)
    for _ in range(num_broken):
        tally.add_broken(0)
    return tally.score(CONFIGURATION, artifact="c0", names=("a", "b", "c"), seconds=1.0, base=None)


def by_hand(scores: NDArray[np.floating], is_class: NDArray[np.bool_]) -> tuple[float, list[tuple[float, float]]]:
    """Average precision and all points (recall, precision), image by image; equal scores count together."""
    points = []
    for threshold in sorted(set(scores.tolist()), reverse=True):
        if threshold < MIN_PROBABILITY:
            break
        shown = scores >= threshold
        points.append((float(is_class[shown].sum() / is_class.sum()), float(is_class[shown].mean())))
    recalls = [0.0, *(recall for recall, _ in points)]
    gains = np.diff(recalls)
    return float(sum(gain * precision for gain, (_, precision) in zip(gains, points, strict=True))), points


def drawn(num_images: int, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
    """Labels, probabilities [N, C], and these rounded as they are recorded (0 where they are not)."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, num_classes, num_images)
    logits = 3 * rng.normal(size=(num_images, num_classes))
    logits[np.arange(num_images), labels] += 2
    powers = np.exp(logits)
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    rounded = np.zeros_like(probabilities, np.float64)
    for number, row in enumerate(probabilities):
        entries = np.frombuffer(levels_of(row), "<u4")
        # Any increasing function of the level does: curves depend on the order alone.
        rounded[number, entries // NUM_LEVELS] = 0.01 + entries % NUM_LEVELS
    return labels, probabilities, rounded


def test_precision_recall_and_f1_are_those_by_hand() -> None:
    # Answers: a a b b c; two a are unreadable.
    rows = [[0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.4, 0.6, 0.0], [0.1, 0.1, 0.8]]
    score = score_of([0, 1, 1, 1, 0], rows, num_broken=2)
    first, second = score.classes
    assert (first.num_images, first.num_errors, first.num_answers) == (4, 3, 2)
    assert (first.precision, first.recall) == (1 / 2, 1 / 4)
    assert first.f1 == pytest.approx(2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4))
    assert (second.precision, second.recall, second.f1) == (1.0, 2 / 3, pytest.approx(0.8))
    # a by probability: 0.6 is one, 0.5 and 0.4 and 0.2 are none, 0.1 is one: 1/4 x 1 + 1/4 x 2/5.
    assert first.average_precision == pytest.approx(1 / 4 + 1 / 4 * 2 / 5)
    assert second.average_precision == pytest.approx((1 + 1) / 3 + 1 / 3 * 3 / 4)
    assert score.averages is not None
    assert score.averages.f1 == pytest.approx((first.f1 + 0.8) / 2)
    assert score.averages.average_precision == pytest.approx((0.35 + 11 / 12) / 2)


def test_a_class_that_is_never_the_answer_has_no_precision_and_counts_as_0() -> None:
    score = score_of([0, 1], [[0.9, 0.1, 0.0], [0.8, 0.1, 0.1]])
    assert [row.precision for row in score.classes] == [0.5, None]
    assert score.classes[1].f1 == 0
    assert score.averages is not None
    assert score.averages.precision == 0.25


def test_without_readable_images_there_are_no_averages_and_no_curves() -> None:
    score = score_of([], [], num_broken=3)
    assert (score.averages, score.curves) == (None, ())


def test_curves_are_those_of_thresholds_tried_one_by_one() -> None:
    labels, probabilities, rounded = drawn(300, 5)
    counts = PrecisionRecall(5)
    for label, row in zip(labels.tolist(), probabilities, strict=True):
        counts.add(label, levels_of(row))
    num_images = np.bincount(labels, minlength=5)
    expected = [by_hand(rounded[:, index], labels == index) for index in range(5)]
    assert counts.average_precisions(num_images) == pytest.approx([each for each, _ in expected], abs=1e-12)
    for index, (average, points) in enumerate(expected):
        curve = counts.curve(index, str(index), int(num_images[index]))
        assert curve.average_precision == pytest.approx(average, abs=1e-12)
        rounded_points = {(round(recall, 6), round(precision, 6)) for recall, precision in points}
        found = list(zip(curve.recall, curve.precision, strict=True))
        assert set(found) <= rounded_points
        assert len(found) > 20
        assert (found[-1][0], found[0][1]) == (round(points[-1][0], 6), round(points[0][1], 6))
    micro, macro = counts.averages(num_images)
    pairs = np.arange(5) == labels[:, None]
    assert micro.average_precision == pytest.approx(by_hand(rounded.ravel(), pairs.ravel())[0], abs=1e-12)
    assert macro.average_precision == pytest.approx(np.mean([each for each, _ in expected]), abs=1e-12)
    for recall, precision in zip(macro.recall, macro.precision, strict=True):
        at = [next((p for r, p in points if r >= recall - 1e-9), 0.0) for _, points in expected]
        assert precision == pytest.approx(np.mean(at), abs=1e-6)


def test_rounding_to_levels_moves_an_average_precision_by_less_than_a_hundredth() -> None:
    labels, probabilities, _ = drawn(300, 5)
    counts = PrecisionRecall(5)
    for label, row in zip(labels.tolist(), probabilities, strict=True):
        counts.add(label, levels_of(row))
    exact = [by_hand(probabilities[:, index], labels == index)[0] for index in range(5)]
    assert counts.average_precisions(np.bincount(labels, minlength=5)) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("value", [1.0, 1.0000001, np.nextafter(np.float32(1), np.float32(0)), MIN_PROBABILITY])
def test_levels_are_in_bounds_at_both_ends(value: float) -> None:
    (entry,) = np.frombuffer(levels_of(np.array([0.0, value], np.float32)), "<u4")
    assert divmod(int(entry), NUM_LEVELS) == (1, 0 if value == MIN_PROBABILITY else NUM_LEVELS - 1)


def test_a_class_without_images_has_no_average_precision_and_takes_no_part_in_the_averages() -> None:
    counts = PrecisionRecall(3)
    for label, row in ((0, [0.6, 0.3, 0.1]), (2, [0.7, 0.1, 0.2]), (2, [0.1, 0.1, 0.8])):
        counts.add(label, levels_of(np.array(row, np.float32)))
    num_images = np.array([1, 0, 2])
    first, none, third = counts.average_precisions(num_images)
    # The image of class 0 comes second by its probability of class 0; both images of class 2 come first.
    assert (first, third) == (0.5, 1.0)
    assert np.isnan(none)
    micro, macro = counts.averages(num_images)
    assert (micro.name, micro.index, macro.name, macro.index) == ("micro", None, "macro", None)
    assert macro.average_precision == 0.75
    assert set(macro.precision) == {0.75}
    assert macro.recall == tuple(number / 100 for number in range(1, 101))


def test_without_images_the_averages_are_0() -> None:
    micro, macro = PrecisionRecall(2).averages(np.array([0, 0]))
    assert (micro.average_precision, micro.recall, micro.precision) == (0.0, (), ())
    assert (macro.average_precision, set(macro.precision)) == (0.0, {0.0})


def test_a_curve_has_points_at_least_a_hundredth_of_recall_apart_and_its_end() -> None:
    counts = PrecisionRecall(1)
    for probability in np.linspace(0.01, 0.99, 1000):
        counts.add(0, levels_of(np.array([probability], np.float32)))
    curve = counts.curve(0, "only", 1000)
    assert (curve.name, curve.index) == ("only", 0)
    gaps = np.diff(curve.recall)
    assert min(gaps[:-1]) >= 0.01 - 1e-9
    # No two levels are a hundredth of the images apart here.
    assert max(gaps) < 0.02
    assert curve.recall[-1] == 1.0
    assert set(curve.precision) == {1.0}
