"""Decode and infer concurrently: some threads decode, others run the engine, and outcomes keep the input order.

Decoding does not wait for the engine until it is `window` images ahead.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ImageError
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import Engine, Predictions, copied
from alexdeploy.images.decode import ResizePolicy, decode
from alexdeploy.images.read_ahead import ReadAhead
from alexdeploy.images.sources import Source
from alexdeploy.inference.window import check_memory, window_size

NO_ANSWER = "no answer: "
"""Prefix of the error of an image that was decoded and run without an answer: it took a place in a batch."""

MAX_BROKEN = 1024
"""Broken inputs that a batch waits through for its next image; then it runs partly filled, to bound memory."""

_PATIENCE_SECONDS = 1.0
"""How long batches whose results nobody waits for may keep running."""

_DECODE_PATIENCE_SECONDS = 0.25
"""How long decoding and listing whose results nobody waits for may keep running."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The result for one input: `probabilities` float32 [C] and `view_classes` int32 [V], or `error`; see `take`."""

    index: int
    source: str
    probabilities: NDArray[np.float32] | None = None
    view_classes: NDArray[np.int32] | None = None
    error: str | None = None
    picture: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineOptions:
    """`first_index` is the index of the first source, where earlier rows exist already.

    `cancel` makes running calls of the engine raise, on engines that support it. `take` is called by the threads that
    decode, with the bytes of the file and its pixels, for something of at most `picture_bytes` that the outcome keeps.
    """

    resize: ResizePolicy = "crop"
    num_decoders: int = 2
    first_index: int = 0
    cancel: Callable[[], None] = lambda: None
    take: Callable[[bytes, NDArray[np.uint8]], Any] | None = None
    picture_bytes: int = 0


def make_outcome(index: int, source: str, found: Predictions, number: int, picture: Any = None) -> Outcome:
    """The result of row `number` of a batch; its arrays are views of the batch's."""
    if number in found.errors:
        return Outcome(index=index, source=source, error=f"{NO_ANSWER}{found.errors[number]}")
    return Outcome(
        index=index,
        source=source,
        probabilities=found.probabilities[number],
        view_classes=found.view_classes[number],
        picture=picture,
    )


class BatchRule:
    """Where batches end. Depends on the order of good and broken inputs only, never on timing.

    An interrupted run and the run that resumes it therefore put the same images into the same batches, and their
    answers agree to the last bit.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.num_images = 0
        self._num_broken = 0

    def ends_after(self, *, good: bool) -> bool:
        """Count one input; true if the current batch ends with it."""
        if good:
            self.num_images += 1
        elif self.num_images:
            self._num_broken += 1
        if self.num_images < self.batch_size and self._num_broken < MAX_BROKEN:
            return False
        self.num_images = self._num_broken = 0
        return True


def run_pipeline(engine: Engine, sources: Iterable[Source], options: PipelineOptions) -> Generator[Outcome, None, None]:
    """Classify `sources` with an open engine; one outcome per source, in their order.

    One thread at a time advances the sources, at most `window_size` images (and MAX_BROKEN broken ones) ahead of
    the outcomes yielded. Errors of the engine or the iterator are raised here, after the outcomes that were ready.
    Closing the generator waits only for images and batches already being processed. After a second it cancels those
    batches, and abandons threads that are still decoding or listing.
    """
    return Pipeline(engine, iter(sources), options).run()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoded:
    index: int
    source: str
    image: NDArray[np.uint8] | None
    error: str | None
    picture: Any


class Pipeline:
    """The threads and their shared state. Everything below `_lock` is read and written under it.

    The consumer waits on a SimpleQueue and never on a condition: a KeyboardInterrupt raised inside
    Condition.wait can leave the lock in an inconsistent state.
    """

    def __init__(self, engine: Engine, sources: Iterator[Source], options: PipelineOptions) -> None:
        info = engine.info
        self._engine = engine
        self._sources = ReadAhead(sources, options.num_decoders)
        self._options = options
        self._batch_size = info.batch_size
        self._window = window_size(info.batch_size, info.num_streams, options.num_decoders)
        self._outbox: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
        # Daemons: neither a thread abandoned in a huge image or folder nor a run that nobody closed must keep the
        # process from ending.
        self._decoders = [
            threading.Thread(target=self._guard, args=(self._decode_next,), name=f"alexdeploy-decode-{n}", daemon=True)
            for n in range(options.num_decoders)
        ]
        self._runners = [
            threading.Thread(target=self._guard, args=(self._run_batches,), name=f"alexdeploy-engine-{n}", daemon=True)
            for n in range(info.num_streams)
        ]
        # The thread that advances the iterator may be reading an archive; the others must be able to run meanwhile.
        self._source_lock = threading.Lock()
        self._num_taken = options.first_index

        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._batch_ready = threading.Condition(self._lock)
        self._num_images_held = 0
        self._num_rows_held = 0
        self._decoded: dict[int, _Decoded] = {}
        self._next_to_batch = options.first_index
        self._rule = BatchRule(info.batch_size)
        self._filling: list[_Decoded] = []
        self._batches: deque[list[_Decoded]] = deque()
        self._outcomes: dict[int, Outcome] = {}
        self._next_to_send = options.first_index
        self._end: int | None = None
        self._end_error: BaseException | None = None
        self._stopped = False
        self._started = False

    @property
    def is_running(self) -> bool:
        """Whether its threads are at work and have not been told to stop."""
        return self._started and not self._stopped

    def run(self) -> Generator[Outcome, None, None]:
        """`run_pipeline`; to be called once."""
        check_memory(self._engine.info, self._options.num_decoders, self._options.picture_bytes)
        self._started = True
        try:
            for thread in (*self._decoders, *self._runners):
                thread.start()
            yield from self._received()
        finally:
            self._stop_all()

    def interrupt(self, error: BaseException | None) -> None:
        """Make the thread that waits for an outcome raise `error`, or end. From another thread."""
        self._outbox.put(error)

    def _received(self) -> Iterator[Outcome]:
        while (item := self._outbox.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            with self._lock:
                self._num_rows_held -= 1
                if item.error is None:
                    self._num_images_held -= 1
                self._room.notify()
            yield item

    def _stop_all(self) -> None:
        """Stop all threads; returns when those that use the engine have ended."""
        with self._lock:
            self._stop()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for thread in self._runners:
            while thread.is_alive():
                # Cancel again soon after the deadline: a thread that was about to run its batch has only then begun.
                thread.join(max(deadline - time.monotonic(), 0.1))
                if thread.is_alive():
                    self._options.cancel()
        deadline = time.monotonic() + _DECODE_PATIENCE_SECONDS
        for thread in self._decoders:
            thread.join(max(deadline - time.monotonic(), 0.0))
        if self._source_lock.acquire(blocking=False):
            self._sources.close()
            self._source_lock.release()

    def _stop(self) -> None:
        self._stopped = True
        self._room.notify_all()
        self._batch_ready.notify_all()

    def _guard(self, work: Callable[[], bool]) -> None:
        # BaseException: a thread that died of any error must not leave the consumer waiting.
        try:
            while work():
                pass
        except BaseException as exc:
            with self._lock:
                self._stop()
            self._outbox.put(exc)

    def _decode_next(self) -> bool:
        taken = self._take()
        if taken is None:
            return False
        index, source = taken
        image, error, picture = None, None, None
        try:
            data = source.read(self._options.resize)
            image = decode(data, self._options.resize)
            if self._options.take is not None:
                picture = self._options.take(data, image)
        except ImageError as exc:
            image, error = None, exc.text
        except MemoryError:
            image, error = None, "not enough memory"
        with self._lock:
            self._decoded[index] = _Decoded(index=index, source=source.name, image=image, error=error, picture=picture)
            if image is None:
                self._num_images_held -= 1
                self._room.notify()
            self._fill_batches()
        return True

    def _take(self) -> tuple[int, Source] | None:
        """The next source and its index, once there is room for it; None at the end."""
        with self._lock:
            self._room.wait_for(lambda: self._is_ended() or self._has_room())
            if self._is_ended():
                return None
            self._num_images_held += 1
            self._num_rows_held += 1
        with self._source_lock:
            if self._is_ended():
                return None
            error: BaseException | None = None
            try:
                source = next(self._sources)
                if self._stopped:
                    # Listing took so long that _stop_all() no longer waited to close the sources.
                    self._sources.close()
                    return None
                index = self._num_taken
                self._num_taken += 1
                return index, source
            except StopIteration:
                pass
            # Earlier outcomes are still good: they are yielded first, the error after them.
            except Exception as exc:
                error = exc
            with self._lock:
                self._end, self._end_error = self._num_taken, error
                self._room.notify_all()
                self._fill_batches()
        return None

    def _is_ended(self) -> bool:
        return self._stopped or self._end is not None

    def _has_room(self) -> bool:
        return self._num_images_held < self._window and self._num_rows_held < self._window + MAX_BROKEN

    def _fill_batches(self) -> None:
        while (item := self._decoded.pop(self._next_to_batch, None)) is not None:
            self._next_to_batch += 1
            if item.image is None:
                self._outcomes[item.index] = Outcome(index=item.index, source=item.source, error=item.error)
            else:
                self._filling.append(item)
            if self._rule.ends_after(good=item.image is not None):
                self._close_batch()
        if self._next_to_batch == self._end:
            self._close_batch()
            self._batch_ready.notify_all()
        self._send()

    def _close_batch(self) -> None:
        if self._filling:
            self._batches.append(self._filling)
            self._filling = []
            self._batch_ready.notify()

    def _send(self) -> None:
        while (outcome := self._outcomes.pop(self._next_to_send, None)) is not None:
            self._next_to_send += 1
            self._outbox.put(outcome)
        if self._next_to_send == self._end:
            self._outbox.put(self._end_error)
            # Nothing is sent after the end; only a late thread can ask again.
            self._next_to_send += 1

    def _run_batches(self) -> bool:
        buffer = np.empty((self._batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        while (batch := self._next_batch()) is not None:
            images: Any = buffer[: len(batch)]
            np.stack([item.image for item in batch if item.image is not None], out=images)
            found = copied(self._engine.run(images))
            with self._lock:
                for number, item in enumerate(batch):
                    outcome = make_outcome(item.index, item.source, found, number, item.picture)
                    self._outcomes[item.index] = outcome
                    if outcome.error is not None:
                        # Its row is an error, like that of a broken input, but without holding an image.
                        self._num_images_held -= 1
                        self._room.notify()
                self._send()
            del batch
        return False

    def _next_batch(self) -> list[_Decoded] | None:
        with self._lock:
            self._batch_ready.wait_for(lambda: self._stopped or self._batches or self._next_to_batch == self._end)
            return None if self._stopped or not self._batches else self._batches.popleft()
