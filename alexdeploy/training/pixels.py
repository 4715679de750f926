"""Decoded images by the batch: from memory where they fit, else decoded again each time, with the same result."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DataError, ImageError
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.images.decode import decode
from alexdeploy.images.folder import Example, LabelledImages
from alexdeploy.images.sources import read_file

BYTES_PER_IMAGE = IMAGE_SIZE * IMAGE_SIZE * 3
_SCAN_SLICE = 1024
_DEFAULT_CACHE_BYTES = 2 << 30
_NUM_NAMED = 5


class Broken(NamedTuple):
    """An image that cannot be decoded, and why."""

    path: str
    reason: str


class Pixels:
    """The images of one split. Examples are known by their index in `examples`, broken ones too.

    With `in_memory`, `scan` keeps what it decodes (196,608 bytes an image) and `batches` reads from there.
    """

    def __init__(
        self,
        examples: tuple[Example, ...],
        *,
        resize: Literal["crop", "warp"],
        in_memory: bool,
        num_threads: int,
    ) -> None:
        self.labels = np.array([example.label for example in examples], np.int64)
        self._examples = examples
        self._resize = resize
        self._num_threads = num_threads
        self._cache: NDArray[np.uint8] | None = None
        if in_memory:
            self._cache = np.empty((len(examples), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def scan(
        self, on_image: Callable[[NDArray[np.uint8]], None], on_progress: Callable[[int], None]
    ) -> dict[int, Broken]:
        """Decode every image once and return the broken ones by index.

        `on_image` gets each image, in any order, in the decoding threads; `on_progress` the number done.
        """
        broken: dict[int, Broken] = {}

        def visit(index: int) -> None:
            try:
                image = self._decode(index)
            except ImageError as exc:
                broken[index] = Broken(self._examples[index].path, exc.message)
                return
            if self._cache is not None:
                self._cache[index] = image
            on_image(image)

        with _Pool(self._num_threads) as pool:
            # A slice at a time: a million futures at once would be a gigabyte of them.
            for first in range(0, len(self._examples), _SCAN_SLICE):
                indices = range(first, min(first + _SCAN_SLICE, len(self._examples)))
                for done, _ in enumerate(pool.map(visit, indices), start=first + 1):
                    on_progress(done)
        return dict(sorted(broken.items()))

    def batches(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
        """Yield uint8 [N, 256, 256, 3] for each array of N indices, in order; the next ones are made meanwhile.

        Raises DataError for an image that `scan` could decode and that has gone or changed since.
        """
        num_workers = 1 if self._cache is not None else self._num_threads
        waiting = iter(batches)
        under_way: deque[Future[NDArray[np.uint8]]] = deque()
        with _Pool(num_workers) as pool:
            for indices in islice(waiting, num_workers + 1):
                under_way.append(pool.submit(self._load, indices))
            while under_way:
                ready = under_way.popleft().result()
                for indices in islice(waiting, 1):
                    under_way.append(pool.submit(self._load, indices))
                yield ready

    def _load(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._cache is not None:
            return self._cache[indices]
        try:
            return np.stack([self._decode(int(index)) for index in indices])
        except ImageError as exc:
            raise DataError(
                f"an image that could be read when training began cannot be now: {exc.message}",
                cure="Bring it back and go on: alexdeploy train --resume",
            ) from exc

    def _decode(self, index: int) -> NDArray[np.uint8]:
        path = self._examples[index].path
        try:
            return decode(read_file(path), self._resize)
        except ImageError as exc:
            raise ImageError(f"{path}: {exc.message}") from exc


def fits_in_memory(data: LabelledImages, cache_bytes: int | None) -> bool:
    """Whether all decoded images fit `cache_bytes`; None stands for half of the memory that is free."""
    budget = _half_of_free_memory() if cache_bytes is None else cache_bytes
    return (len(data.train) + len(data.val)) * BYTES_PER_IMAGE <= budget


def refuse_broken(broken: tuple[Broken, ...], num_images: int) -> None:
    """Raise DataError naming the first of `broken`, if there are any."""
    if not broken:
        return
    named = "\n".join(f"  {item.reason}" for item in broken[:_NUM_NAMED])
    more = f"\n  and {len(broken) - _NUM_NAMED:,} more" if len(broken) > _NUM_NAMED else ""
    raise DataError(
        f"{len(broken):,} of {num_images:,} images cannot be decoded:\n{named}{more}",
        cure="Replace or remove them, or leave them out: --skip-broken",
    )


def fingerprint(data: LabelledImages) -> str:
    """SHA-256 over the classes and, of every image in order, its split, relative path, label and size in bytes."""
    digest = hashlib.sha256(repr(data.classes).encode())
    folders = {os.path.dirname(os.path.abspath(example.path)) for example in (*data.train, *data.val)}
    root = os.path.commonpath(folders) if folders else ""
    for split, examples in (("train", data.train), ("val", data.val)):
        for path, label in sorted(examples):
            name = os.path.relpath(os.path.abspath(path), root).replace(os.sep, "/")
            size = -1
            with suppress(OSError):
                size = os.path.getsize(path)
            digest.update(os.fsencode(f"{split}\0{name}\0{label}\0{size}\n"))
    return digest.hexdigest()


class _Pool(ThreadPoolExecutor):
    """A thread pool that, left early, does not first finish all that was asked of it."""

    def __exit__(self, *_exc: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _half_of_free_memory() -> int:
    limits = []
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        # A container's own limit, which /proc/meminfo does not know ("max" where there is none).
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits) // 2 if limits else _DEFAULT_CACHE_BYTES
