"""Batches, streams and threads, with streams that count: no GPU is needed to see who waits for whom."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray
from patience import PATIENCE, wait_for

from alexdeploy.core.errors import AlexDeployError, DeviceError
from alexdeploy.engines.base import Predictions
from alexdeploy.engines.trt.stream_threads import StreamThreads


class World:
    """Keeps what is alive, and what was done in which thread."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.faults: list[str] = []
        self.threads_before = set(threading.enumerate())

    @contextmanager
    def context(self) -> Iterator[None]:
        yield
        here = f"of {threading.get_ident()}"
        self.faults += [f"{name} outlived its context" for name in self.alive if name.endswith(here)]

    def num_threads(self) -> int:
        return len(set(threading.enumerate()) - self.threads_before)


class Engine:
    def __init__(self, world: World) -> None:
        self._world, self._name = world, f"engine of {threading.get_ident()}"
        world.alive.add(self._name)

    def __del__(self) -> None:
        if self._name != f"engine of {threading.get_ident()}":
            self._world.faults.append("the engine went in another thread")
        self._world.alive.discard(self._name)


class Stream:
    """Answers with the number of its thread."""

    def __init__(self, world: World, work: Callable[[], None]) -> None:
        self._world, self._work = world, work
        self._name = f"stream of {threading.get_ident()}"

    def open(self, engine: Engine) -> None:
        self._world.alive.add(self._name)

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        assert self._name == f"stream of {threading.get_ident()}"
        self._work()
        return Predictions(images.astype(np.float32), images.astype(np.int32))

    def close(self) -> None:
        self._world.alive.discard(self._name)


def translated(exc: BaseException) -> AlexDeployError:
    return DeviceError(f"{type(exc).__name__}: {exc}")


def make_threads(
    world: World,
    *,
    work: Callable[[], None] = lambda: None,
    load: Callable[[bytes], Engine] | None = None,
    make_stream: Callable[[], Stream] | None = None,
) -> StreamThreads[Engine]:
    return StreamThreads(
        context=world.context,
        load=load or (lambda plan: Engine(world)),
        make_stream=make_stream or (lambda: Stream(world, work)),
        num_streams=2,
        translated=translated,
    )


def images(value: int) -> NDArray[np.uint8]:
    return np.full((1, 2), value, np.uint8)


def test_each_call_gets_its_own_answer_and_two_run_at_once() -> None:
    world, both = World(), threading.Barrier(2, timeout=PATIENCE)
    threads = make_threads(world, work=lambda: both.wait() and None)
    threads.start([b"plan"])
    with ThreadPoolExecutor(2) as callers:
        found = list(callers.map(lambda value: threads.run(images(value)).view_classes[0, 0], range(100)))
    assert found == list(range(100))
    assert world.num_threads() == 3
    threads.end()
    assert (world.alive, world.faults, world.num_threads()) == (set(), [], 0)


def test_the_plan_is_let_go_when_the_engine_is_there() -> None:
    world, plan = World(), bytes(range(256)) * 1000
    threads = make_threads(world)
    plans = [plan]
    num_holders = sys.getrefcount(plan)
    threads.start(plans)
    assert sys.getrefcount(plan) == num_holders - 1, "the list held it, and no thread does"
    threads.end()


def test_a_caller_that_is_waiting_when_the_engine_is_closed_is_answered() -> None:
    world, busy, go = World(), threading.Semaphore(0), threading.Event()

    def work() -> None:
        busy.release()
        go.wait(PATIENCE)

    threads = make_threads(world, work=work)
    threads.start([b"plan"])
    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(threads.run, images(value)) for value in range(4)]
        for _ in range(2):
            assert busy.acquire(timeout=PATIENCE)
        wait_for(lambda: threads._batches.qsize() == 2)
        closing = callers.submit(threads.end)
        wait_for(lambda: not threads._is_open)
        late = callers.submit(threads.run, images(9))
        with pytest.raises(DeviceError, match="is not open"):
            late.result(timeout=PATIENCE)
        go.set()
        assert [call.result(timeout=PATIENCE).view_classes[0, 0] for call in calls] == [0, 1, 2, 3]
        closing.result(timeout=PATIENCE)
    assert (world.alive, world.num_threads()) == (set(), 0)


def test_many_callers_and_a_close_at_any_moment_end_with_an_answer_or_an_error() -> None:
    for _ in range(50):
        world = World()
        threads = make_threads(world)
        threads.start([b"plan"])

        with ThreadPoolExecutor(4) as callers:
            calls = [callers.submit(_run_on, threads) for _ in range(4)]
            threads.end()
            for each in calls:
                with pytest.raises(DeviceError, match="is not open"):
                    each.result(timeout=PATIENCE)
        assert (world.alive, world.faults) == (set(), [])


def test_a_stream_is_ended_where_the_thread_of_the_next_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    world, start = World(), threading.Thread.start

    def full(thread: threading.Thread) -> None:
        if thread.name == "alexdeploy-stream-1":
            # As where the system has no more threads for this user.
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", full)
    threads = make_threads(world)
    with pytest.raises(DeviceError, match="can't start new thread"):
        threads.start([b"plan"])
    assert (world.alive, world.faults, world.num_threads()) == (set(), [], 0)


def test_what_cannot_be_loaded_or_opened_is_told_and_nothing_stays() -> None:
    world, made = World(), []

    def fail(plan: bytes) -> Engine:
        engine = Engine(world)
        raise ValueError(f"{plan!r} is no plan of {type(engine).__name__}")

    class Second(Stream):
        def open(self, engine: Engine) -> None:
            super().open(engine)
            made.append(self)
            if len(made) == 2:
                raise MemoryError("full")

    with pytest.raises(DeviceError, match="is no plan"):
        make_threads(world, load=fail).start([b"x"])
    with pytest.raises(DeviceError, match="MemoryError: full"):
        make_threads(world, make_stream=lambda: Second(world, lambda: None)).start([b"plan"])
    assert (world.alive, world.faults, world.num_threads()) == (set(), [], 0)


def test_a_batch_that_fails_is_its_callers_affair() -> None:
    world, left = World(), [1]

    def work() -> None:
        if left:
            left.clear()
            raise ValueError("this batch")

    threads = make_threads(world, work=work)
    threads.start([b"plan"])
    with pytest.raises(DeviceError, match="this batch"):
        threads.run(images(1))
    assert threads.run(images(2)).view_classes[0, 0] == 2
    threads.end()
    with pytest.raises(DeviceError, match="is not open"):
        threads.run(images(3))


def _run_on(threads: StreamThreads[Engine]) -> None:
    while True:
        threads.run(images(1))


@pytest.mark.parametrize("number", [1, 2])
def test_a_context_that_cannot_be_entered_is_told(number: int) -> None:
    world, entered = World(), []

    @contextmanager
    def context() -> Iterator[None]:
        entered.append(threading.get_ident())
        if len(entered) == number:
            raise ValueError(f"context {number}")
        yield

    threads = make_threads(world)
    threads._context = context
    with pytest.raises(DeviceError, match=f"ValueError: context {number}"):
        threads.start([b"plan"])
    assert (world.alive, world.num_threads()) == (set(), 0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_while_the_engine_is_loaded_leaves_nothing() -> None:
    world = World()

    def load(plan: bytes) -> Engine:
        wait_for(lambda: threads._owner)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return Engine(world)

    threads = make_threads(world, load=load)
    with pytest.raises(KeyboardInterrupt):
        threads.start([b"plan"])
    assert (world.alive, world.faults, world.num_threads()) == (set(), [], 0)
