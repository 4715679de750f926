"""The batcher on an engine that runs when the test lets it: shares, order, limits, faults."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest
from colour import COLOURS, PICTURES, ColourEngine
from numpy.typing import NDArray
from patience import PATIENCE, wait_for

from alexdeploy.core.errors import DeadlineError, DeviceError, QueueFullError, UsageError
from alexdeploy.engines.base import EngineOptions
from alexdeploy.images.decode import ResizePolicy
from alexdeploy.inference import batcher as batcher_module
from alexdeploy.inference.batcher import Batcher, BatcherOptions, Job

MakeBatcher = Callable[..., Batcher]


def square(colour: str) -> NDArray[np.uint8]:
    """An image that needs no decoding."""
    return np.full((256, 256, 3), [255 if each == colour else 9 for each in COLOURS], np.uint8)


def labels(job: Job) -> list[str | None]:
    """The best class of each outcome, None for an error."""
    return [
        None if outcome.probabilities is None else COLOURS[int(outcome.probabilities.argmax())]
        for outcome in job.future.result(PATIENCE)
    ]


class Gate:
    """Lets batches through one by one; `entered` has the images of each that came."""

    def __init__(self) -> None:
        self.entered: list[list[str]] = []
        self._permits = threading.Semaphore(0)

    def __call__(self, images: NDArray[np.uint8]) -> None:
        self.entered.append([COLOURS[int(each.argmax())] for each in images.mean(axis=(1, 2))])
        assert self._permits.acquire(timeout=PATIENCE)

    def open(self, count: int = 10_000) -> None:
        self._permits.release(count)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def make_batcher() -> Iterator[MakeBatcher]:
    """(before_run, batch_size=4, num_streams=1, and options of the batcher) -> a batcher, closed after the test."""
    made: list[tuple[Batcher, object]] = []

    def make(
        before_run: Callable[[NDArray[np.uint8]], None] = lambda images: None,
        *,
        batch_size: int = 4,
        num_streams: int = 1,
        **options: object,
    ) -> Batcher:
        engine = ColourEngine(
            options=EngineOptions(batch_size=batch_size), num_streams=num_streams, before_run=before_run
        )
        engine.__enter__()
        batcher = Batcher(engine, "crop", BatcherOptions(**{"max_delay_ms": 0.0, **options}))
        made.append((batcher, before_run))
        return batcher

    yield make
    for batcher, before_run in made:
        if isinstance(before_run, Gate):
            before_run.open()
        batcher.close(finish=False)


def test_outcomes_are_in_the_order_of_the_images_with_errors_in_their_places(make_batcher: MakeBatcher) -> None:
    images = [PICTURES["red"], b"no picture", square("blue"), PICTURES["green"], b"", square("red")]
    job = make_batcher().submit(images)
    assert labels(job) == ["red", None, "blue", "green", None, "red"]
    outcomes = job.future.result()
    assert [outcome.index for outcome in outcomes] == list(range(6))
    assert [outcome.source for outcome in outcomes] == [f"images[{number}]" for number in range(6)]
    assert "the file is empty" in str(outcomes[4].error)


def test_no_images_are_no_outcomes(make_batcher: MakeBatcher) -> None:
    assert make_batcher().submit([]).future.result(PATIENCE) == []


def test_what_waits_while_the_engine_is_busy_runs_together(make_batcher: MakeBatcher, gate: Gate) -> None:
    batcher = make_batcher(gate)
    jobs = [batcher.submit([square("red")])]
    wait_for(lambda: batcher.num_running == 1)
    jobs += [batcher.submit([square(COLOURS[number % 3])]) for number in range(6)]
    assert batcher.num_waiting == 6
    gate.open()
    assert [labels(job) for job in jobs] == [["red"], *([COLOURS[number % 3]] for number in range(6))]
    assert [len(batch) for batch in gate.entered] == [1, 4, 2]


def test_an_error_of_the_engine_is_for_the_jobs_of_its_batch(make_batcher: MakeBatcher) -> None:
    def fail(images: NDArray[np.uint8]) -> None:
        if images[0, 0, 0, 2] == 255:
            raise DeviceError("no blue today")

    batcher = make_batcher(fail, batch_size=1)
    good, bad, later = (batcher.submit([square(colour)]) for colour in ("red", "blue", "green"))
    assert labels(good) == ["red"]
    with pytest.raises(DeviceError, match="no blue"):
        bad.future.result(PATIENCE)
    assert labels(later) == ["green"]


def test_an_error_that_nobody_foresaw_ends_its_job_and_no_memory_only_its_image(
    make_batcher: MakeBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_square(image: object, resize: ResizePolicy) -> NDArray[np.uint8]:
        if isinstance(image, bytes) and image in faults:
            raise faults[image]
        return original(image, resize)  # type: ignore[arg-type]

    original, faults = batcher_module.read_square, {b"unforeseen": KeyError("who?"), b"large": MemoryError()}
    monkeypatch.setattr(batcher_module, "read_square", read_square)
    batcher = make_batcher()
    bad = batcher.submit([square("red"), b"unforeseen"])
    little = batcher.submit([b"large", PICTURES["green"]])
    with pytest.raises(KeyError, match="who"):
        bad.future.result(PATIENCE)
    assert labels(little) == [None, "green"]
    assert little.future.result()[0].error == "not enough memory"
    assert labels(batcher.submit([PICTURES["blue"]])) == ["blue"]


def test_what_is_no_image_is_refused_by_its_number_and_nothing_waits(make_batcher: MakeBatcher, gate: Gate) -> None:
    batcher = make_batcher(gate)
    with pytest.raises(UsageError, match=r"images\[1\]"):
        batcher.submit([square("red"), 5])  # type: ignore[list-item]
    assert (batcher.num_waiting, batcher.num_running) == (0, 0)


def test_each_stream_runs_its_share_of_what_waits(make_batcher: MakeBatcher, gate: Gate) -> None:
    batcher = make_batcher(gate, num_streams=2)
    jobs = [batcher.submit([square("red")]) for _ in range(2)]
    wait_for(lambda: batcher.num_running == 2)
    jobs.append(batcher.submit([square(colour) for colour in ("red", "green", "blue")]))
    gate.open()
    assert [labels(job) for job in jobs] == [["red"], ["red"], ["red", "green", "blue"]]
    assert sorted(len(batch) for batch in gate.entered[:2]) == [1, 1]
    assert sum(len(batch) for batch in gate.entered) == 5


def test_what_is_cancelled_leaves(make_batcher: MakeBatcher, gate: Gate) -> None:
    batcher = make_batcher(gate, batch_size=1)
    first = batcher.submit([square("red")])
    wait_for(lambda: batcher.num_running == 1)
    gone, stays = batcher.submit([square("blue"), PICTURES["blue"]]), batcher.submit([square("green")])
    assert gone.future.cancel()
    assert batcher.num_waiting == 1
    gate.open()
    assert labels(first) + labels(stays) == ["red", "green"]
    assert gate.entered == [["red"], ["green"]]


def test_what_is_late_is_not_computed(make_batcher: MakeBatcher, gate: Gate) -> None:
    batcher = make_batcher(gate, batch_size=1)
    first = batcher.submit([square("red")])
    wait_for(lambda: batcher.num_running == 1)
    late = batcher.submit([square("blue"), PICTURES["blue"]], deadline=0.0)
    # While the engine is still busy.
    with pytest.raises(DeadlineError):
        late.future.result(PATIENCE)
    gate.open()
    assert labels(first) == ["red"]
    assert gate.entered == [["red"]]


class Blocked(io.BytesIO):
    """A file that is read only when the test lets it."""

    def __init__(self) -> None:
        super().__init__(PICTURES["red"])
        self.is_read, self.may_end = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.is_read.set()
        assert self.may_end.wait(PATIENCE)
        return super().read(size)


@pytest.fixture
def blocked() -> Iterator[Blocked]:
    file = Blocked()
    yield file
    file.may_end.set()


@pytest.fixture
def busy(make_batcher: MakeBatcher, gate: Gate, blocked: Blocked) -> Batcher:
    """A batcher whose engine thread will find jobs late: the one that decodes, and watches the deadlines, is busy."""
    batcher = make_batcher(gate, batch_size=1, num_decoders=1)
    cancelled = batcher.submit([blocked])
    assert blocked.is_read.wait(PATIENCE)
    cancelled.future.cancel()
    batcher.submit([square("red")])
    wait_for(lambda: batcher.num_running == 1)
    return batcher


def test_closing_does_not_wait_for_a_job_that_the_engine_thread_found_late(
    busy: Batcher, gate: Gate, blocked: Blocked
) -> None:
    deadline = time.monotonic() + 0.05
    late = busy.submit([square("blue")], deadline=deadline)
    closing = threading.Thread(target=lambda: busy.close(finish=True))
    closing.start()
    wait_for(lambda: time.monotonic() > deadline and not busy.is_open)
    gate.open()
    closing.join(PATIENCE / 2)
    is_closed = not closing.is_alive()
    blocked.may_end.set()
    closing.join(PATIENCE)
    assert is_closed
    with pytest.raises(DeadlineError):
        late.future.result(0)


def test_the_engine_thread_runs_on_after_a_job_that_it_found_late(busy: Batcher, gate: Gate) -> None:
    deadline = time.monotonic() + 0.05
    late = busy.submit([square("blue")], deadline=deadline)
    waiting = busy.submit([square("green")])
    wait_for(lambda: time.monotonic() > deadline)
    gate.open()
    with pytest.raises(DeadlineError):
        late.future.result(PATIENCE)
    assert labels(waiting) == ["green"]
    # It has gone to sleep.
    wait_for(lambda: busy._num_free == 1)
    assert labels(busy.submit([square("green")])) == ["green"]


def test_a_full_queue_refuses_what_comes(make_batcher: MakeBatcher, gate: Gate) -> None:
    batcher = make_batcher(gate, batch_size=1, max_queue=3)
    first = batcher.submit([square("red")])
    wait_for(lambda: batcher.num_running == 1)
    waiting = batcher.submit([square("red"), square("green")])
    with pytest.raises(QueueFullError, match="2 images wait, the limit is 3, 2 more"):
        batcher.submit([square("blue"), square("blue")])
    gate.open()
    assert labels(first) + labels(waiting) == ["red", "red", "green"]


@pytest.mark.parametrize("finish", [True, False])
def test_closing_answers_or_cancels_what_waits(make_batcher: MakeBatcher, gate: Gate, finish: bool) -> None:
    batcher = make_batcher(gate, batch_size=1)
    jobs = [batcher.submit([square("red"), PICTURES["green"]]) for _ in range(3)]
    wait_for(lambda: batcher.num_running == 1)
    closing = threading.Thread(target=lambda: batcher.close(finish=finish))
    closing.start()
    wait_for(lambda: not batcher.is_open)
    with pytest.raises(UsageError, match="closed"):
        batcher.submit([square("red")])
    gate.open()
    closing.join(PATIENCE)
    for job in jobs:
        if finish:
            assert labels(job) == ["red", "green"]
        else:
            with pytest.raises(CancelledError):
                job.future.result(0)
