"""Each image of a verification: the reference's answer, every engine's, and where their probabilities differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_CHANGED = 48
"""Photographs with another answer that a page shows, those with the largest difference of a probability first."""

NUM_DIFFERENT = 16
"""Photographs with the same answers everywhere and the largest differences of a probability that a page shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageAnswer:
    """A class by name and index, with its probability."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineAnswer:
    """An engine's answer, and the class `label` whose probability is furthest from the reference's: by `difference`."""

    answer: ImageAnswer
    label: str
    difference: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One image. `answers` are those of the engines in their order, None where one is not finite."""

    source: str
    expected: ImageAnswer
    answers: tuple[EngineAnswer | None, ...]

    @property
    def is_changed(self) -> bool:
        """Whether an engine's answer is not the reference's."""
        return any(each is not None and each.answer.index != self.expected.index for each in self.answers)

    @property
    def max_difference(self) -> float:
        """The largest difference of a probability, of any engine; 0 without engines."""
        return max((abs(each.difference) for each in self.answers if each is not None), default=0.0)


def best_answers(classes: Sequence[str], scores: NDArray[np.floating]) -> list[ImageAnswer]:
    """The best class of each row of probabilities [N, C]."""
    best = scores.argmax(axis=1).tolist()
    return [
        ImageAnswer(label=classes[index], index=index, probability=float(row[index]))
        for index, row in zip(best, scores, strict=True)
    ]


def engine_answers(
    classes: Sequence[str], expected: NDArray[np.floating], actual: NDArray[np.floating]
) -> list[EngineAnswer | None]:
    """An engine's answers from probabilities [N, C] of the reference and of the engine."""
    found: list[EngineAnswer | None] = []
    for answer, theirs, ours in zip(best_answers(classes, actual), expected, actual, strict=True):
        if not np.isfinite(ours).all():
            found.append(None)
            continue
        differences = np.subtract(ours, theirs, dtype=np.float64)
        index = int(np.abs(differences).argmax())
        found.append(EngineAnswer(answer=answer, label=classes[index], difference=float(differences[index])))
    return found


def image_rows(
    names: Sequence[str], expected: Sequence[ImageAnswer], answers: Sequence[Sequence[EngineAnswer | None]]
) -> tuple[ImageRow, ...]:
    """A row for each image; `answers` has those of each engine, in the order of the images."""
    return tuple(
        ImageRow(source=name, expected=answer, answers=tuple(engine[number] for engine in answers))
        for number, (name, answer) in enumerate(zip(names, expected, strict=True))
    )


def shown_rows(rows: Sequence[ImageRow]) -> tuple[list[int], list[int]]:
    """The places in `rows` of those to show: with changed answers, and of the others those that differ most."""
    order = sorted(range(len(rows)), key=lambda number: (-rows[number].max_difference, number))
    changed = [number for number in order if rows[number].is_changed]
    same = [number for number in order if not rows[number].is_changed and rows[number].max_difference > 0]
    return changed[:NUM_CHANGED], same[:NUM_DIFFERENT]
