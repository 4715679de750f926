"""Which image ends the processes that classify it: a chunk that has ended several is halved until one image is left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from alexdeploy.cluster.chunks import Chunk
from alexdeploy.core.errors import DeviceError

MOST_LOSSES = 3
"""Actors that may end while they have the same chunk, or the same image alone."""


@dataclass(kw_only=True, slots=True)
class _Search:
    chunk: Chunk
    num_open: int = 0
    problems: dict[int, str] = field(default_factory=dict)


class Suspects:
    """What follows when an actor ends, or a chunk is done. Knows nothing of actors.

    A chunk that has ended an actor is run alone from then on. If it ends `MOST_LOSSES`, its halves are run as trials,
    whose rows are dropped; a trial that ends an actor is halved as well. An image that ends `MOST_LOSSES` as the only
    one of its trial is at fault. After the trials, the whole chunk is run with these images as errors, so its batches
    are those of a run in which they could not be read.
    """

    def __init__(self) -> None:
        self._losses: Counter[tuple[int, int, int]] = Counter()
        self._searches: dict[int, _Search] = {}
        self._has_passed = False

    def lost(self, chunk: Chunk, reason: str) -> list[Chunk]:
        """What to run in place of a chunk whose actor has ended for `reason`.

        Raises DeviceError if the images are not to blame: none of them ends an actor alone, or nothing was classified
        by any actor so far.
        """
        losses = self._count(chunk)
        is_halved = chunk.is_trial and len(chunk.sources) > 1
        if losses < MOST_LOSSES and not is_halved:
            return [replace(chunk, is_suspect=True)]
        search = self._searches.get(chunk.number)
        if search is None:
            search = self._searches[chunk.number] = _Search(chunk=chunk)
        elif chunk.is_trial:
            search.num_open -= 1
        else:
            raise _error(chunk, reason, "none of these images ends an actor by itself")
        if len(chunk.sources) == 1:
            if not self._has_passed:
                raise _error(chunk, reason, "no image was classified before")
            search.problems[chunk.first_index] = (
                f"{MOST_LOSSES} actors ended when they had only this image; the last one: {reason}"
            )
            return self._after_trials(search)
        middle = len(chunk.sources) // 2
        search.num_open += 2
        return [_piece(chunk, 0, middle), _piece(chunk, middle, len(chunk.sources))]

    def passed(self, chunk: Chunk) -> list[Chunk]:
        """What to run after a chunk that is done."""
        self._has_passed = True
        if not chunk.is_trial:
            self._forget(chunk)
            self._searches.pop(chunk.number, None)
            return []
        search = self._searches[chunk.number]
        search.num_open -= 1
        return self._after_trials(search)

    def _after_trials(self, search: _Search) -> list[Chunk]:
        if search.num_open:
            return []
        chunk = search.chunk
        self._forget(chunk)
        sources = tuple(
            replace(source, problem=search.problems.get(index, source.problem))
            for index, source in enumerate(chunk.sources, chunk.first_index)
        )
        return [replace(chunk, sources=sources, is_suspect=True)]

    def _count(self, chunk: Chunk) -> int:
        key = (chunk.number, chunk.first_index, len(chunk.sources))
        self._losses[key] += 1
        return self._losses[key]

    def _forget(self, chunk: Chunk) -> None:
        for key in [key for key in self._losses if key[0] == chunk.number]:
            del self._losses[key]


def _piece(chunk: Chunk, start: int, end: int) -> Chunk:
    sources = chunk.sources[start:end]
    return replace(chunk, first_index=chunk.first_index + start, sources=sources, is_suspect=True, is_trial=True)


def _error(chunk: Chunk, reason: str, why: str) -> DeviceError:
    last = chunk.first_index + len(chunk.sources) - 1
    which = f"the image {last}" if len(chunk.sources) == 1 else f"the images {chunk.first_index} to {last}"
    return DeviceError(
        f"{MOST_LOSSES} actors ended while they had {which}, from {chunk.sources[0].name!r} on, and {why}; "
        f"the last one: {reason}",
        hint="The memory of the node may be too small. What is complete is kept: go on with --resume.",
    )
