"""Threads that run batches, each with its own stream, and one thread that owns the engine.

Objects of a GPU library belong to the thread that created them, and must be freed before that thread leaves its
context. This module does not depend on a particular library.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import AlexDeployError, DeviceError
from alexdeploy.engines.base import Predictions

_EngineT = TypeVar("_EngineT")
_EngineT_contra = TypeVar("_EngineT_contra", contravariant=True)

_Opened = queue.SimpleQueue[AlexDeployError | None]
"""A thread reports here that it is ready, or why it is not."""


class BatchStream(Protocol[_EngineT_contra]):
    """Created, opened, run and closed in one thread. It is closed even if opening failed."""

    def open(self, engine: _EngineT_contra) -> None: ...

    def run(self, images: NDArray[np.uint8]) -> Predictions: ...

    def close(self) -> None: ...


class StreamThreads(Generic[_EngineT]):
    """Open from `start` to `end`. It cannot be reopened.

    Every thread enters `context` first. `load` creates the engine from a plan; `translated` converts exceptions to
    errors of this package.
    """

    def __init__(
        self,
        *,
        context: Callable[[], AbstractContextManager[None]],
        load: Callable[[bytes], _EngineT],
        make_stream: Callable[[], BatchStream[_EngineT]],
        num_streams: int,
        translated: Callable[[BaseException], AlexDeployError],
    ) -> None:
        self._context = context
        self._load = load
        self._make_stream = make_stream
        self._num_streams = num_streams
        self._translated = translated
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._is_open = False
        # Held to enqueue a batch and to end the queue, so that every batch before the end is answered.
        self._lock = threading.Lock()
        self._close = threading.Event()
        self._owner: threading.Thread | None = None

    def start(self, plans: list[bytes]) -> None:
        """Load the engine and open a stream in each thread. Raises errors as converted by `translated`.

        Removes the only plan from its list, because a thread keeps its arguments until it ends.
        """
        opened: _Opened = queue.SimpleQueue()
        owner = threading.Thread(target=self._own, args=(plans, opened), name="alexdeploy-engine", daemon=True)
        owner.start()
        self._owner = owner
        try:
            error = opened.get()
        except BaseException:
            self.end()
            raise
        if error is not None:
            self.end()
            raise error
        self._is_open = True

    def end(self) -> None:
        """Wait until every batch is answered and everything is closed."""
        with self._lock:
            self._is_open = False
        self._close.set()
        if self._owner is not None:
            self._owner.join()
            self._owner = None

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        """May be called from any thread; as many calls as there are streams run at once."""
        batch = _Batch(images)
        with self._lock:
            if not self._is_open:
                raise DeviceError("the engine is not open", hint="Open it in a with statement.")
            self._batches.put(batch)
        found = batch.answer.get()
        if isinstance(found, AlexDeployError):
            raise found
        return found

    def _own(self, plans: list[bytes], opened: _Opened) -> None:
        """Own the engine from before the first stream is created until after the last is closed."""
        engine: _EngineT | None = None
        try:
            with self._context():
                try:
                    engine = self._load(plans.pop())
                    self._serve_all(engine, opened)
                # Catch inside the context: a traceback keeps its frames' objects alive, which must be freed before it.
                except Exception as exc:
                    opened.put(self._translated(exc).with_traceback(None))
                engine = None
        except Exception as exc:
            opened.put(self._translated(exc).with_traceback(None))

    def _serve_all(self, engine: _EngineT, opened: _Opened) -> None:
        """Open the streams one after the other, wait for the end, and end them."""
        threads: list[threading.Thread] = []
        error: AlexDeployError | None = None
        try:
            for number in range(self._num_streams):
                ready: _Opened = queue.SimpleQueue()
                name = f"alexdeploy-stream-{number}"
                thread = threading.Thread(target=self._serve, args=(engine, ready), name=name, daemon=True)
                thread.start()
                threads.append(thread)
                error = ready.get()
                if error is not None:
                    break
            opened.put(error)
            if error is None:
                self._close.wait()
        finally:
            # Also if a thread could not be started: the others would wait forever.
            for _ in threads:
                self._batches.put(None)
            for thread in threads:
                thread.join()

    def _serve(self, engine: _EngineT, ready: _Opened) -> None:
        """Run batches on this thread's own stream until there are no more."""
        try:
            with self._context():
                stream = self._make_stream()
                try:
                    stream.open(engine)
                except Exception as exc:
                    ready.put(self._translated(exc).with_traceback(None))
                else:
                    ready.put(None)
                    while (batch := self._batches.get()) is not None:
                        self._answer(stream, batch)
                finally:
                    stream.close()
        except Exception as exc:
            ready.put(self._translated(exc).with_traceback(None))

    def _answer(self, stream: BatchStream[_EngineT], batch: _Batch) -> None:
        try:
            batch.answer.put(stream.run(batch.images))
        # Report the error to the caller of this batch and continue: the next may succeed.
        except Exception as exc:
            batch.answer.put(self._translated(exc).with_traceback(None))


class _Batch:
    """Images, and where their answer goes."""

    __slots__ = ("answer", "images")

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images
        self.answer: queue.SimpleQueue[Predictions | AlexDeployError] = queue.SimpleQueue()
