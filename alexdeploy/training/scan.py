"""The first pass over the images: finds those that cannot be decoded, and measures statistics of the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DataError
from alexdeploy.images.sources import printable_path
from alexdeploy.training.checkpoint import Checkpoint, Progress
from alexdeploy.training.data import TrainingData
from alexdeploy.training.events import Decoded, Event
from alexdeploy.training.parallel import HeldInterrupts, ProcessGroup
from alexdeploy.training.pixels import Broken, Pixels, refuse_broken
from alexdeploy.training.statistics import PixelSums, Statistics, StatisticsSum


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """`progress` has the indices of the images that cannot be decoded, `skipped` their names."""

    statistics: Statistics
    progress: Progress
    skipped: tuple[str, ...]


def scan(
    data: TrainingData,
    checkpoint: Checkpoint | None,
    *,
    skip_broken: bool,
    on_event: Callable[[Event], None],
    group: ProcessGroup,
) -> Scanned:
    """Decode every image once, each process its share. Raises DataError if one cannot be, unless `skip_broken`.

    A resumed run takes the result from its checkpoint, and decodes only to load the pixels into memory. A data set with
    known statistics has no broken images.
    """
    known = Progress() if checkpoint is None else checkpoint.progress
    if data.statistics is not None:
        return Scanned(statistics=data.statistics, progress=known, skipped=())
    # With several processes, each would keep its share in memory but later need the others' as well.
    if checkpoint is not None and not (data.in_memory and group.size == 1):
        return Scanned(statistics=checkpoint.statistics, progress=known, skipped=names_left_out(data, known))
    shares = [range(num)[group.rows(num)] for num in (data.num_train, data.num_val)]
    sums = StatisticsSum()
    watch = _watch(on_event, len(shares[0]) + len(shares[1]), group.interrupts)
    own = (
        data.train.scan(sums.add, watch, shares[0]),
        data.val.scan(lambda _image: None, lambda done: watch(len(shares[0]) + done), shares[1]),
    )
    broken_train, broken_val = (_joined(group.gather(broken)) for broken in own)
    total = data.num_train + data.num_val
    if checkpoint is not None:
        fresh = [item for index, item in broken_train.items() if index not in known.broken_train]
        fresh += [item for index, item in broken_val.items() if index not in known.broken_val]
        refuse_broken(tuple(fresh), total)
        return Scanned(statistics=checkpoint.statistics, progress=known, skipped=names_left_out(data, known))
    if not skip_broken:
        refuse_broken((*broken_train.values(), *broken_val.values()), total)
    if len(broken_train) == data.num_train or len(broken_val) == data.num_val:
        raise DataError("no training image, or no validation image, can be decoded")
    progress = Progress(broken_train=tuple(broken_train), broken_val=tuple(broken_val))
    statistics = _added(sums.result(), group).statistics()
    return Scanned(statistics=statistics, progress=progress, skipped=names_left_out(data, progress))


def _watch(on_event: Callable[[Event], None], total: int, interrupts: HeldInterrupts) -> Callable[[int], None]:
    def watch(done: int) -> None:
        interrupts.check()
        on_event(Decoded(num_done=done, num_total=total))

    return watch


def _joined(shares: Sequence[dict[int, Broken]]) -> dict[int, Broken]:
    return {index: item for share in shares for index, item in share.items()}


def _added(own: PixelSums, group: ProcessGroup) -> PixelSums:
    """The sums over all processes. They are integers, so the result does not depend on the number of processes."""
    return PixelSums(
        num_images=int(group.sum(np.array([own.num_images], np.int64))[0]),
        pixels=group.sum(own.pixels),
        products=group.sum(own.products),
    )


def names_left_out(data: TrainingData, progress: Progress) -> tuple[str, ...]:
    """Printable names of the images that could not be decoded."""
    splits: tuple[tuple[Pixels, tuple[int, ...]], ...] = (
        (data.train, progress.broken_train),
        (data.val, progress.broken_val),
    )
    return tuple(printable_path(pixels.name(index)) for pixels, indices in splits for index in indices)


def without(num: int, left_out: tuple[int, ...]) -> NDArray[np.int64]:
    """The indices below `num` that are not in `left_out`."""
    return np.setdiff1d(np.arange(num), np.array(left_out, np.int64))
