"""A few photographs of an evaluation to look at: sure mistakes, mistakes of each class, and answers that changed."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from alexdeploy.core.errors import ImageError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.evaluation.scoring import Score
from alexdeploy.images.decode import decode
from alexdeploy.images.read_ahead import ReadAhead
from alexdeploy.images.sources import Source
from alexdeploy.reports.thumbnails import thumbnail

NUM_CONFIDENT = 24
NUM_CLASSES = 20
NUM_OF_A_CLASS = 6
NUM_COMPARISONS = 6
NUM_CHANGED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A configuration's answer: the index of a class, and its probability."""

    label: int
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One photograph: `index` among all, the index of its true class, and the answer of each configuration."""

    index: int
    source: str
    label: int
    answers: tuple[Given, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassExamples:
    """Photographs of the class `index` that the first configuration takes for others, the surest first."""

    index: int
    images: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangedExamples:
    """Photographs that configuration `number` answers otherwise than `base`: first what is wrong now, the surest first.

    Both count the configurations of the evaluation from 0.
    """

    number: int
    base: int
    images: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """At most NUM_CONFIDENT, NUM_CLASSES x NUM_OF_A_CLASS and NUM_COMPARISONS x NUM_CHANGED photographs.

    The classes are those with the largest error, the comparisons those with the most changed answers.
    """

    confident: tuple[Example, ...]
    by_class: tuple[ClassExamples, ...]
    changed: tuple[ChangedExamples, ...]

    @property
    def indices(self) -> frozenset[int]:
        """The indices of all of them."""
        groups = [self.confident]
        groups += [each.images for each in self.by_class]
        groups += [each.images for each in self.changed]
        return frozenset(image.index for group in groups for image in group)


class _Answer(Protocol):
    @property
    def label(self) -> int: ...
    @property
    def probability(self) -> float: ...


class Candidates:
    """The photographs to choose from, while an evaluation runs. Their number depends on the classes alone."""

    def __init__(self, bases: Sequence[int | None]) -> None:
        self._bases = tuple(bases)
        self._confident = _Best(NUM_CONFIDENT)
        self._by_class: dict[int, _Best] = {}
        self._changed = [_Best(NUM_CHANGED) for _ in bases]

    def add(self, index: int, source: str, label: int, answers: Sequence[_Answer]) -> None:
        """Consider a readable photograph, with the answer of each configuration."""
        first = answers[0]
        changes = [
            (number, base)
            for number, base in enumerate(self._bases)
            if base is not None and answers[number].label != answers[base].label
        ]
        if first.label == label and not changes:
            return
        given = tuple(Given(label=answer.label, probability=answer.probability) for answer in answers)
        example = Example(index=index, source=source, label=label, answers=given)
        if first.label != label:
            self._confident.add((first.probability,), example)
            self._by_class.setdefault(label, _Best(NUM_OF_A_CLASS)).add((first.probability,), example)
        for number, base in changes:
            sure = min(answers[number].probability, answers[base].probability)
            self._changed[number].add((answers[base].label == label, sure), example)

    def choose(self, scores: Sequence[Score]) -> Examples:
        """The examples to show with `scores`, one for each configuration."""
        classes = [row for row in scores[0].classes if row.index in self._by_class]
        classes.sort(key=lambda row: (-row.error_percent, row.name, row.index))
        changed = [number for number, best in enumerate(self._changed) if best]
        changed.sort(key=lambda number: -_num_flips(scores[number]))
        return Examples(
            confident=self._confident.sorted(),
            by_class=tuple(
                ClassExamples(index=row.index, images=self._by_class[row.index].sorted())
                for row in classes[:NUM_CLASSES]
            ),
            changed=tuple(
                ChangedExamples(number=number, base=base, images=self._changed[number].sorted())
                for number in sorted(changed[:NUM_COMPARISONS])
                if (base := self._bases[number]) is not None
            ),
        )


class _Best:
    """The `count` examples with the largest keys; of equal ones those that come first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[tuple[float, ...], int, Example]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, key: tuple[float, ...], example: Example) -> None:
        item = (key, -example.index, example)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def sorted(self) -> tuple[Example, ...]:
        return tuple(example for _, _, example in sorted(self._heap, key=lambda item: item[:2], reverse=True))


def read_thumbnails(
    sources: Iterator[Source], indices: Collection[int], spec: ModelSpec, num_threads: int
) -> dict[int, bytes]:
    """Read the images `indices` of all `sources` again: a JPEG of each as the network saw it, by its index.

    What can no longer be read is left out.
    """
    resize = spec.preprocessing.resize

    def read(source: Source) -> bytes | None:
        try:
            return thumbnail(decode(source.read(resize), resize))
        except ImageError:
            return None

    wanted = (source for index, source in enumerate(sources) if index in indices)
    with closing(ReadAhead(wanted, num_threads)) as images, ThreadPoolExecutor(num_threads, "alexdeploy-show") as pool:
        read_again = zip(sorted(indices), pool.map(read, images), strict=True)
        return {index: data for index, data in read_again if data is not None}


def _num_flips(score: Score) -> int:
    return 0 if score.versus is None else score.versus.num_flips
