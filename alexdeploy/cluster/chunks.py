"""The inputs as chunks of names, each of which becomes one part."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from alexdeploy.core.errors import UsageError
from alexdeploy.images.sources import Source

_FEWEST = 64
"""Fewer sources take so little time that beginning and ending a part is some of it."""

_SHARE = 64
"""A chunk is this part of all before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """`sources` have absolute paths, and no bytes; the first of them has the index `first_index` in the inputs.

    One that `is_suspect` has ended an actor before, and is run alone on an actor; a trial is a piece whose rows are
    dropped.
    """

    number: int
    first_index: int
    sources: tuple[Source, ...]
    is_suspect: bool = False
    is_trial: bool = False

    @property
    def digest(self) -> str:
        """The first 16 digits of the SHA-256 of the names."""
        names = "".join(f"{source.name}\0" for source in self.sources)
        return hashlib.sha256(names.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def split(sources: Iterable[Source], most: int) -> Iterator[Chunk]:
    """Chunks of at most `most` sources, as they are listed.

    They grow with the number of sources before them, so that at the end of a run the last ones are a small part of it,
    and few actors wait for others. How many there will be is not known. Raises UsageError for members of archives and
    packed sets, whose bytes would have to travel.
    """
    iterator = map(_portable, sources)
    first_index = 0
    for number in itertools.count():
        size = min(max(first_index // _SHARE, _FEWEST), most)
        if not (taken := tuple(itertools.islice(iterator, size))):
            return
        yield Chunk(number=number, first_index=first_index, sources=taken)
        first_index += len(taken)


def _portable(source: Source) -> Source:
    if source.data is not None or source.packed is not None:
        raise UsageError(
            f"{source.name} is in an archive or a packed set; a cluster takes image files",
            hint="Unpack it, or classify it on one machine: alexdeploy predict",
        )
    if source.path is None or source.is_stored:
        return source
    return replace(source, path=os.path.abspath(source.path))
