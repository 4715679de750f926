"""Threads that wait for stores. They do not keep the process from ending, unlike those of concurrent.futures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")


class ReaderPool:
    """Runs calls in up to `num_threads` threads, first come, first served; a thread is started when it is needed.

    To be used by one thread at a time.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy: set[threading.Thread] = set()

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        self._waiting.put((future, call))
        if len(self._threads) < self._num_threads:
            thread = threading.Thread(target=self._work, name=f"alexdeploy-read-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self, patience_seconds: float = 0.25) -> None:
        """Cancel what has not begun, and wait for calls that run, but not longer than `patience_seconds`."""
        try:
            while (item := self._waiting.get_nowait()) is not None:
                item[0].cancel()
        except Empty:
            pass
        for _ in self._threads:
            self._waiting.put(None)
        deadline = time.monotonic() + patience_seconds
        for thread in self._threads:
            # A thread without a call ends as soon as it gets a processor.
            while thread.is_alive() and (thread not in self._busy or time.monotonic() < deadline):
                thread.join(0.02)
        self._threads.clear()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, call = item
            self._busy.add(threading.current_thread())
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as exc:
                    future.set_exception(exc)
            self._busy.discard(threading.current_thread())
            # The result belongs to whoever waits for it.
            del item, future, call
