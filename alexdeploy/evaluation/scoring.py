"""Accuracy of each configuration: counts accumulated image by image, and the final figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.metrics import Bin, Calibration, paired_difference, top_k, wilson_interval
from alexdeploy.engines.base import Configuration
from alexdeploy.evaluation.precision_recall import Curve, PrecisionRecall, levels_of

NUM_WORST = 10
_NUM_CURVES = 3
"""Classes with the lowest average precision that have a curve, and as many with the highest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The top class of one image in one configuration. `probability` is the shortest number identifying the float32.

    `is_in_top5`: the image's label is among the top five. `levels`: see `precision_recall.levels_of`.
    """

    label: int
    probability: float
    is_in_top5: bool
    levels: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorRate:
    """`low_percent` to `high_percent` is the 95 % interval of Wilson."""

    num_errors: int
    num_images: int
    percent: float
    low_percent: float
    high_percent: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """The images of one class, and how many of them were misclassified or unreadable.

    `num_answers` images, of any class, got it as the answer. `precision` is the share of these that are of the class,
    None if there are none; `recall` the share of its images with this answer; `f1` their harmonic mean.
    """

    index: int
    name: str
    num_images: int
    num_errors: int
    num_answers: int
    precision: float | None
    recall: float
    f1: float
    average_precision: float

    @property
    def error_percent(self) -> float:
        return 100 * self.num_errors / self.num_images


@dataclass(frozen=True, kw_only=True, slots=True)
class Averages:
    """Means over the classes that have images; a class that is never the answer has precision 0 in them."""

    precision: float
    recall: float
    f1: float
    average_precision: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """`count` images of the class `true` were classified as `predicted`, both indices; includes correct answers."""

    true: int
    predicted: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFlips:
    """Images of one class whose answer changed."""

    index: int
    name: str
    right_to_wrong: int
    wrong_to_right: int
    wrong_to_wrong: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Comparison with `base`: the difference in top-1 error in points, positive if this one is worse, and the flips.

    The 95 % interval is Newcombe's for paired proportions. `num_flips` is the sum of the three counts that follow;
    `wrong_to_wrong` counts changes from one wrong class to another.
    """

    base: Configuration
    difference_points: float
    low_points: float
    high_points: float
    num_flips: int
    right_to_wrong: int
    wrong_to_right: int
    wrong_to_wrong: int
    classes: tuple[ClassFlips, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The figures of one configuration.

    `calibration_error` (0 to 1), `reliability` and `confusion` cover the readable images, everything else covers all.
    `seconds` is the time in the engine alone. `artifact` is the SHA-256 of the graph or weights on disk. `averages` are
    None without readable images. `curves` of precision against recall are the averages "micro" and "macro", then the
    classes with the lowest and those with the highest average precision.
    """

    configuration: Configuration
    artifact: str
    top1: ErrorRate
    top5: ErrorRate
    calibration_error: float | None
    seconds: float
    images_per_second: float | None
    versus: Comparison | None
    worst_classes: tuple[ClassScore, ...]
    classes: tuple[ClassScore, ...]
    averages: Averages | None
    curves: tuple[Curve, ...]
    confusion: tuple[Confusion, ...]
    reliability: tuple[Bin, ...]


class Tally:
    """Counts for one configuration. Its size depends on the classes and the kinds of mistakes, not on the images."""

    def __init__(self, num_classes: int) -> None:
        self._images = np.zeros(num_classes, np.int64)
        self._rights = np.zeros(num_classes, np.int64)
        self._top5_rights = 0
        self._calibration = Calibration()
        self._precision_recall = PrecisionRecall(num_classes)
        self._confusion: Counter[tuple[int, int]] = Counter()
        # Compared with the base: images right in both, then the changes, by class.
        self._both_right = 0
        self._right_to_wrong = np.zeros(num_classes, np.int64)
        self._wrong_to_right = np.zeros(num_classes, np.int64)
        self._wrong_to_wrong = np.zeros(num_classes, np.int64)

    def add_broken(self, label: int) -> None:
        """Count an unreadable image: it is wrong, and has no answer."""
        self._images[label] += 1

    def add(self, label: int, probabilities: NDArray[np.float32], base: Answer | None) -> Answer:
        """Count one image by its probabilities [C]; `base` is the answer of the base configuration."""
        answer = answer_of(label, probabilities)
        self.count(label, answer, base)
        return answer

    def count(self, label: int, answer: Answer, base: Answer | None) -> None:
        """Count one image by its answer."""
        right = answer.label == label
        self._images[label] += 1
        self._rights[label] += right
        self._top5_rights += answer.is_in_top5
        self._calibration.add(answer.probability, right=right)
        self._precision_recall.add(label, answer.levels)
        self._confusion[label, answer.label] += 1
        if base is not None:
            self._compare(label, answer.label, base.label)

    def _compare(self, label: int, answer: int, base: int) -> None:
        if answer == base:
            self._both_right += answer == label
        elif base == label:
            self._right_to_wrong[label] += 1
        elif answer == label:
            self._wrong_to_right[label] += 1
        else:
            self._wrong_to_wrong[label] += 1

    def score(
        self,
        configuration: Configuration,
        *,
        artifact: str,
        names: Sequence[str],
        seconds: float,
        base: Configuration | None,
        num_timed: int | None = None,
    ) -> Score:
        """The figures so far. `seconds` is the time for `num_timed` images, by default all readable ones."""
        num_images, num_run = int(self._images.sum()), sum(self._confusion.values())
        classes = self._classes(names)
        worst = sorted((c for c in classes if c.num_errors), key=lambda c: (-c.error_percent, c.name, c.index))
        return Score(
            configuration=configuration,
            artifact=artifact,
            top1=error_rate(num_images - int(self._rights.sum()), num_images),
            top5=error_rate(num_images - self._top5_rights, num_images),
            calibration_error=self._calibration.error,
            seconds=seconds,
            images_per_second=(num_run if num_timed is None else num_timed) / seconds if num_run and seconds else None,
            versus=None if base is None else self._comparison(names, base),
            worst_classes=tuple(worst[:NUM_WORST]),
            classes=classes,
            averages=_averages(classes) if num_run else None,
            curves=self._curves(classes) if num_run else (),
            confusion=tuple(
                Confusion(true=true, predicted=predicted, count=count)
                for (true, predicted), count in sorted(self._confusion.items())
            ),
            reliability=self._calibration.bins(),
        )

    def _classes(self, names: Sequence[str]) -> tuple[ClassScore, ...]:
        answers = np.zeros(len(names), np.int64)
        for (_, predicted), count in self._confusion.items():
            answers[predicted] += count
        found = self._precision_recall.average_precisions(self._images)
        return tuple(
            ClassScore(
                index=i,
                name=names[i],
                num_images=int(self._images[i]),
                num_errors=int(self._images[i] - self._rights[i]),
                num_answers=int(answers[i]),
                precision=float(self._rights[i] / answers[i]) if answers[i] else None,
                recall=float(self._rights[i] / self._images[i]),
                f1=float(2 * self._rights[i] / (self._images[i] + answers[i])),
                average_precision=float(found[i]),
            )
            for i in np.flatnonzero(self._images).tolist()
        )

    def _curves(self, classes: Sequence[ClassScore]) -> tuple[Curve, ...]:
        ordered = sorted(classes, key=lambda row: (row.average_precision, row.index))
        shown = ordered if len(ordered) <= 2 * _NUM_CURVES else [*ordered[:_NUM_CURVES], *ordered[-_NUM_CURVES:]]
        found = self._precision_recall
        own = (found.curve(row.index, row.name, row.num_images) for row in shown)
        return (*found.averages(self._images), *own)

    def _comparison(self, names: Sequence[str], base: Configuration) -> Comparison:
        changes = (self._right_to_wrong, self._wrong_to_right, self._wrong_to_wrong)
        lost, won, other = (int(change.sum()) for change in changes)
        both_wrong = int(self._images.sum()) - self._both_right - lost - won
        # Of errors: an image that was right and is wrong now counts in the second fraction only.
        difference, interval = paired_difference(both_wrong, won, lost, self._both_right)
        return Comparison(
            base=base,
            difference_points=100 * difference,
            low_points=100 * interval.low,
            high_points=100 * interval.high,
            num_flips=lost + won + other,
            right_to_wrong=lost,
            wrong_to_right=won,
            wrong_to_wrong=other,
            classes=tuple(
                ClassFlips(
                    index=i,
                    name=names[i],
                    right_to_wrong=int(self._right_to_wrong[i]),
                    wrong_to_right=int(self._wrong_to_right[i]),
                    wrong_to_wrong=int(self._wrong_to_wrong[i]),
                )
                for i in range(len(names))
                if any(change[i] for change in changes)
            ),
        )


def _averages(classes: Sequence[ClassScore]) -> Averages:
    return Averages(
        precision=float(np.mean([row.precision or 0.0 for row in classes])),
        recall=float(np.mean([row.recall for row in classes])),
        f1=float(np.mean([row.f1 for row in classes])),
        average_precision=float(np.mean([row.average_precision for row in classes])),
    )


def answer_of(label: int, probabilities: NDArray[np.float32]) -> Answer:
    """The answer given by probabilities [C] for an image of the class `label`."""
    best = top_k(probabilities[None], 5)[0]
    # str() of a float32 is the shortest text that identifies it.
    probability = float(str(probabilities[best[0]]))
    return Answer(
        label=int(best[0]),
        probability=probability,
        is_in_top5=bool(label in best),
        levels=levels_of(probabilities),
    )


def error_rate(num_errors: int, num_images: int) -> ErrorRate:
    """An error in percent with its 95 % interval."""
    interval = wilson_interval(num_errors, num_images)
    return ErrorRate(
        num_errors=num_errors,
        num_images=num_images,
        percent=100 * num_errors / num_images,
        low_percent=100 * interval.low,
        high_percent=100 * interval.high,
    )
