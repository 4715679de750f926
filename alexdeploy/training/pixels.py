"""Batches of decoded images: from memory if they fit, else decoded each time, with the same result."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DataError, ImageError
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import Example
from alexdeploy.images.packed import PackedImages
from alexdeploy.images.packed_files import BYTES_PER_IMAGE
from alexdeploy.images.read_ahead import num_readers
from alexdeploy.images.sources import read_file

_SCAN_SLICE = 1024
_NUM_NAMED = 5
# Limit on the bytes of queued batches: many threads, or large batches, would fill the memory with them.
_AHEAD_BYTES = 1 << 30

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Broken(NamedTuple):
    """An image that cannot be decoded, and why."""

    path: str
    reason: str


class Pixels(Protocol):
    """The decoded images of one split, by index; broken images have an index too."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each image."""

    def name(self, index: int) -> str:
        """The image's name in messages."""

    def scan(
        self,
        on_image: Callable[[NDArray[np.uint8]], None],
        on_progress: Callable[[int], None],
        indices: Sequence[int] | None = None,
    ) -> dict[int, Broken]:
        """Decode every image of `indices` (all of them where None) once and return the broken ones by index.

        `on_image` gets each image, uint8 [256, 256, 3], in any order and from several threads; `on_progress` gets the
        number done.
        """

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """Yield uint8 [N, 256, 256, 3] for each array of N indices, in order; later batches are prefetched.

        Raises DataError for an image that can no longer be read.
        """


class FilePixels:
    """Pixels of image files. With `in_memory`, decoded images are kept, 196,608 bytes each."""

    def __init__(
        self,
        examples: tuple[Example, ...],
        *,
        resize: Literal["crop", "warp"],
        in_memory: bool,
        num_threads: int,
    ) -> None:
        self._labels = np.array([example.label for example in examples], np.int64)
        self._examples = examples
        self._resize = resize
        self._num_threads = num_readers(num_threads, (example.path for example in examples))
        self._cache: NDArray[np.uint8] | None = None
        if in_memory:
            # Pages that are never written take no memory: a process keeps only the images that it has decoded.
            self._cache = np.empty((len(examples), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self._is_cached = np.zeros(len(examples), bool)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._labels

    def name(self, index: int) -> str:
        return self._examples[index].path

    def scan(
        self,
        on_image: Callable[[NDArray[np.uint8]], None],
        on_progress: Callable[[int], None],
        indices: Sequence[int] | None = None,
    ) -> dict[int, Broken]:
        broken: dict[int, Broken] = {}
        wanted = range(len(self._examples)) if indices is None else indices

        def visit(index: int) -> None:
            try:
                image = self._image(index)
            except ImageError as exc:
                broken[index] = Broken(self._examples[index].path, exc.message)
                return
            on_image(image)

        with WorkerPool(self._num_threads) as pool:
            # A slice at a time: a million futures would take a gigabyte.
            for first in range(0, len(wanted), _SCAN_SLICE):
                part = wanted[first : first + _SCAN_SLICE]
                for done, _ in enumerate(pool.map(visit, part), start=first + 1):
                    on_progress(done)
        return dict(sorted(broken.items()))

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        # Copying from memory needs one thread; decoding uses all of them.
        num_workers = 1 if self._is_cached.all() else self._num_threads
        return read_batches(self._load, batches, num_workers)

    def _load(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._cache is not None and self._is_cached[indices].all():
            return self._cache[indices]
        try:
            return np.stack([self._image(int(index)) for index in indices])
        except ImageError as exc:
            raise DataError(
                f"an image that could be read when training began cannot be now: {exc.message}",
                hint="Restore it and resume: alexdeploy train --resume",
            ) from exc

    def _image(self, index: int) -> NDArray[np.uint8]:
        if self._cache is not None and self._is_cached[index]:
            image: NDArray[np.uint8] = self._cache[index]
            return image
        path, _, num_bytes = self._examples[index]
        try:
            image = decode(read_file(path, num_bytes=num_bytes), self._resize)
        except ImageError as exc:
            raise ImageError(f"{path}: {exc.message}") from exc
        if self._cache is not None:
            self._cache[index] = image
            self._is_cached[index] = True
        return image


class PackedPixels:
    """Pixels of a packed set."""

    def __init__(self, images: PackedImages, *, num_threads: int) -> None:
        self._images = images
        self._num_threads = num_threads

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._images.labels

    def name(self, index: int) -> str:
        return self._images.names[index]

    def scan(
        self,
        on_image: Callable[[NDArray[np.uint8]], None],
        on_progress: Callable[[int], None],
        indices: Sequence[int] | None = None,
    ) -> dict[int, Broken]:
        wanted = np.arange(len(self._images)) if indices is None else np.asarray(indices, np.int64)
        for done, images in enumerate(self.batches(wanted[:, np.newaxis]), start=1):
            on_image(images[0])
            on_progress(done)
        return {}

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        return read_batches(self._images.read, batches, self._num_threads)


def read_batches(
    load: Callable[[NDArray[np.int64]], NDArray[np.uint8]], batches: Iterable[NDArray[np.int64]], num_workers: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield `load` of each batch of indices, in order: uint8 [N, 256, 256, 3].

    As `read_ahead`, but with no more batches in flight than fit in a gigabyte, and at least two; the workers then split
    each batch.
    """
    waiting = iter(batches)
    begun = list(islice(waiting, 1))
    if not begun:
        return
    num_fitting = _AHEAD_BYTES // max(len(begun[0]) * BYTES_PER_IMAGE, 1)
    num_ahead = min(num_workers + 1, max(num_fitting, 2))
    if num_ahead == num_workers + 1:
        yield from read_ahead(load, chain(begun, waiting), num_workers)
        return
    num_parts = math.ceil(num_workers / (num_ahead - 1))
    with WorkerPool(num_workers) as pool:

        def load_shared(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
            images = np.empty((len(indices), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

            def fill(rows: slice) -> None:
                images[rows] = load(indices[rows])

            size = max(math.ceil(len(indices) / num_parts), 1)
            for _ in pool.map(fill, [slice(first, first + size) for first in range(0, len(indices), size)]):
                pass
            return images

        yield from read_ahead(load_shared, chain(begun, waiting), num_ahead - 1)


def read_ahead(load: Callable[[_Item], _Result], items: Iterable[_Item], num_workers: int) -> Iterator[_Result]:
    """Yield `load` of each item, in order; one item per worker is in progress, and one more is queued."""
    waiting = iter(items)
    under_way: deque[Future[_Result]] = deque()
    with WorkerPool(num_workers) as pool:
        for item in islice(waiting, num_workers + 1):
            under_way.append(pool.submit(load, item))
        while under_way:
            ready = under_way.popleft().result()
            for item in islice(waiting, 1):
                under_way.append(pool.submit(load, item))
            yield ready


def refuse_broken(broken: tuple[Broken, ...], num_images: int) -> None:
    """Raise DataError naming the first of `broken`, if there are any."""
    if not broken:
        return
    named = "\n".join(f"  {item.reason}" for item in broken[:_NUM_NAMED])
    more = f"\n  and {len(broken) - _NUM_NAMED:,} more" if len(broken) > _NUM_NAMED else ""
    raise DataError(
        f"{len(broken):,} of {num_images:,} images cannot be decoded:\n{named}{more}",
        hint="Replace or remove them, or leave them out: --skip-broken",
    )


class WorkerPool(ThreadPoolExecutor):
    """A thread pool that cancels its queued work when the block is left early."""

    def __exit__(self, *_exc: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)
