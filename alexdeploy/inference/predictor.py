"""Classify photographs: a model opened on one backend, which turns inputs into rows."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import itertools
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from alexdeploy.core.arguments import Positive, check_argument
from alexdeploy.core.errors import DeadlineError, UsageError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import EngineInfo
from alexdeploy.images.from_memory import Input, list_inputs
from alexdeploy.images.sources import Source, iter_sources
from alexdeploy.inference.answer import make_row
from alexdeploy.inference.batcher import Batcher, BatcherOptions, Job
from alexdeploy.inference.pipeline import Outcome, Pipeline, PipelineOptions
from alexdeploy.inference.row import Row
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import place

if TYPE_CHECKING:
    from alexdeploy.inference.pictures import Pictures
    from alexdeploy.placement.replica import ReplicaReport


_TIMEOUT = Positive | None


class Rows(Iterator[Row]):
    """The rows of one `predict()`; `close()` stops work on rows that have not been read. Thread-safe."""

    def __init__(self, pipeline: Pipeline, rows: Generator[Row, None, None]) -> None:
        self._pipeline = pipeline
        self._rows = rows
        # A generator cannot be advanced by two threads at once.
        self._lock = threading.Lock()
        self._error: UsageError | None = None
        self._opened = OpenedHere(self)

    def __next__(self) -> Row:
        self._opened.check("predictor")
        with self._lock:
            if self._error is not None:
                raise self._error
            return next(self._rows)

    @property
    def is_running(self) -> bool:
        """Whether its images are being decoded and classified."""
        return self._pipeline.is_running

    def close(self) -> None:
        if not self._opened.is_fork:
            self._close(None)

    def end(self, error: UsageError) -> None:
        """Close; reading a missing row then raises `error`, instead of ending as if that had been the last row."""
        if inspect.getgeneratorstate(self._rows) != inspect.GEN_CLOSED:
            self._error = error
        self._close(error)

    def _close(self, error: UsageError | None) -> None:
        # A thread that waits for a row holds the lock.
        self._pipeline.interrupt(error)
        with self._lock:
            self._rows.close()


class Predictor:
    """A model opened for predictions: a context manager, or opened and closed with `open()` and `close()`. Thread-safe.

    `model` is a folder or anything `find_model` accepts: a path, a name under `models/`, None for the newest there.
    The fields of PredictOptions are also accepted as keywords, which override those of `options`.

        with Predictor("models/alexnet", num_views=10) as predictor:
            for row in predictor.predict(["images/"]):
                print(row.source, row.label, row.probability)
            [row] = predictor.classify(array)
    """

    def __init__(
        self,
        model: ModelFolder | str | os.PathLike[str] | None = None,
        options: PredictOptions | None = None,
        **overrides: Any,
    ) -> None:
        """Find the model and check the options. Raises UsageError, ModelError or DeviceError."""
        options = replace(check_argument("options", options or PredictOptions(), PredictOptions), **overrides)
        self._top_k: int = options.top_k
        self.folder = model if isinstance(model, ModelFolder) else find_model(model)
        spec = self.folder.spec()
        self.model_name, self.preprocessing = spec.name, spec.preprocessing
        self._placed = place(self.folder, options)
        self._engine = self._placed.engine
        self.notes = self._placed.notes
        self.num_decoders = options.num_threads or available_processors()
        self._opened: OpenedHere | None = None
        # Reentrant: the garbage collector may end an iterator in a thread that holds it.
        self._lock = threading.RLock()
        self._batcher: Batcher | None = None
        self._batchers: list[Batcher] = []
        # Weak: an iterator that its user drops ends by itself.
        self._running: weakref.WeakSet[Rows] = weakref.WeakSet()
        self._num_calls = itertools.count()

    def open(self) -> Predictor:
        """Open the engine; `close` it in the end. A predictor can be opened once."""
        self._engine.__enter__()
        self._opened = OpenedHere(self)
        # A program may end without closing: threads must not use the engine while libraries are unloaded.
        atexit.register(self.close)
        return self

    def close(self) -> None:
        """End all iterators and calls that are not finished, which raise UsageError, and close the engine.

        Does nothing if the predictor is not open.
        """
        self._close(None, None, None)

    def __enter__(self) -> Predictor:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kind, error, trace)

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened = self._opened
        # In a fork, the lock may be held by a thread that is not there.
        if opened is None or opened.is_fork:
            return
        with self._lock:
            if self._opened is None:
                return
            self._opened = None
            running, batchers = list(self._running), self._batchers
            self._running, self._batchers, self._batcher = weakref.WeakSet(), [], None
        atexit.unregister(self.close)
        try:
            # Unfinished iterators and batchers have threads that still use the engine.
            for rows in running:
                rows.end(_not_open_any_more())
            for batcher in batchers:
                batcher.close(finish=False)
        finally:
            self._engine.__exit__(kind, error, trace)

    @property
    def info(self) -> EngineInfo:
        """The engine that actually runs."""
        return self._engine.info

    @property
    def replicas(self) -> tuple[ReplicaReport, ...]:
        """The work of each replica so far; empty where one engine runs in this process."""
        if self._opened is not None:
            self._opened.check("predictor")
        pool = self._placed.pool
        return () if pool is None else pool.reports()

    @property
    def failure(self) -> str | None:
        """Why the engine will not answer any more, as all its replicas were lost; None as long as it may."""
        pool = self._placed.pool
        return None if pool is None else pool.failure

    @property
    def top_k(self) -> int:
        """Choices per row: the requested number, or all classes if there are fewer."""
        return min(self._top_k, len(self.info.classes))

    def predict(self, inputs: Iterable[str | os.PathLike[str]]) -> Rows:
        """Classify files, folders, archives, lists and globs: one row per image, in order, as they are ready.

        An image that cannot be read gives a row with its error. Raises DeviceError and ModelError from the engine,
        after the rows before it. Several iterators may be read at once, each with threads and batches of its own; the
        end of the `with` block, and `close`, end unfinished ones, which raise UsageError when their next row is read.
        """
        return self.predict_sources(iter_sources(inputs))

    def predict_sources(
        self, sources: Iterable[Source], *, first_index: int = 0, pictures: Pictures | None = None
    ) -> Rows:
        """Classify sources; `first_index` is the index of the first of them. `pictures` get each image with its row."""
        options = PipelineOptions(
            resize=self.preprocessing.resize,
            num_decoders=self.num_decoders,
            first_index=first_index,
            cancel=self._cancel,
            take=None if pictures is None else pictures.take,
            picture_bytes=0 if pictures is None else pictures.num_bytes,
        )
        self._check_open()
        with self._lock:
            self._check_open()
            pipeline = Pipeline(self._engine, iter(sources), options)
            rows = Rows(pipeline, self._rows(pipeline, pictures))
            self._running.add(rows)
        return rows

    def classify(self, images: Input | Iterable[Input], *, timeout: float | None = None) -> list[Row]:
        """Classify one image or several: one row per image, in order.

        An image is a path, the bytes of an image file, a binary file object, a Pillow image, or an array uint8
        [H, W, 3] in RGB; an array uint8 [N, 256, 256, 3] is N images. `source` of a row is the path or the name of the
        file, else "images[3]". Calls of several threads share batches. An image that cannot be read gives a row with
        its error. Raises UsageError for what is no image, DeadlineError if the rows are not there in `timeout` seconds,
        DeviceError and ModelError from the engine.
        """
        job = self._submit(images, timeout)
        # Not future.result(): Ctrl-C inside of Condition.wait can leave its lock in an inconsistent state.
        done: queue.SimpleQueue[Future[list[Outcome]]] = queue.SimpleQueue()
        job.future.add_done_callback(done.put)
        try:
            done.get(timeout=timeout)
            return self._rows_of(job.future.result())
        except queue.Empty:
            raise _too_late(timeout) from None
        except CancelledError:
            raise _not_open_any_more() from None
        finally:
            job.future.cancel()

    async def aclassify(self, images: Input | Iterable[Input], *, timeout: float | None = None) -> list[Row]:
        """`classify` for asyncio. A task that is cancelled gives up its places in the queue."""
        job = self._submit(images, timeout)
        try:
            return self._rows_of(await asyncio.wait_for(asyncio.wrap_future(job.future), timeout))
        except asyncio.TimeoutError:
            raise _too_late(timeout) from None
        except asyncio.CancelledError:
            if self._opened is None:
                raise _not_open_any_more() from None
            raise

    def batcher(
        self, options: BatcherOptions | None = None, on_batch: Callable[[int, int], None] | None = None
    ) -> Batcher:
        """A queue for images on this predictor's engine; open until it is closed, or the predictor is.

        `on_batch` is called by the engine's threads with the size of each batch that was answered, and nanoseconds.
        """
        self._check_open()
        with self._lock:
            self._check_open()
            return self._new_batcher(options or BatcherOptions(num_decoders=self.num_decoders), on_batch)

    def _submit(self, images: Input | Iterable[Input], timeout: float | None) -> Job:
        inputs = list_inputs(images)
        timeout = check_argument("timeout", timeout, _TIMEOUT)
        deadline = None if timeout is None else time.monotonic() + timeout
        self._check_open()
        with self._lock:
            self._check_open()
            if self._batcher is None:
                self._batcher = self._new_batcher(BatcherOptions(num_decoders=self.num_decoders))
            batcher = self._batcher
        # Each call is a client of its own: one of many images does not hold up the others.
        return batcher.submit(inputs, client=str(next(self._num_calls)), deadline=deadline)

    def _new_batcher(self, options: BatcherOptions, on_batch: Callable[[int, int], None] | None = None) -> Batcher:
        batcher = Batcher(self._engine, self.preprocessing.resize, options, cancel=self._cancel, on_batch=on_batch)
        self._batchers = [*(each for each in self._batchers if each.is_open), batcher]
        return batcher

    def _check_open(self) -> None:
        if self._opened is None:
            raise UsageError("the predictor is not open", hint="Use it so: with Predictor(...) as predictor:")
        self._opened.check("predictor")

    def _cancel(self) -> None:
        """Cancel running batches where nobody else waits for any."""
        with self._lock:
            is_used = any(rows.is_running for rows in self._running) or any(
                batcher.is_open and batcher.num_running for batcher in self._batchers
            )
        if not is_used:
            self._placed.cancel()

    def _rows(self, pipeline: Pipeline, pictures: Pictures | None) -> Generator[Row, None, None]:
        with closing(pipeline.run()) as outcomes:
            for outcome in outcomes:
                row = make_row(outcome, self.info, self.top_k, self.model_name)
                if pictures is not None:
                    pictures.show(row, self.info, outcome.view_classes, outcome.picture)
                yield row

    def _rows_of(self, outcomes: list[Outcome]) -> list[Row]:
        return [make_row(outcome, self.info, self.top_k, self.model_name) for outcome in outcomes]


def _not_open_any_more() -> UsageError:
    return UsageError("the predictor is not open any more", hint="Take the rows inside of the with block.")


def _too_late(timeout: float | None) -> DeadlineError:
    return DeadlineError(f"no answer within {timeout:g} s")
