"""Decoding and inference side by side: order, batches, bounds, faults."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from patience import PATIENCE, wait_for

from alexdeploy.core.errors import DataError, DeviceError, DeviceMemoryError, ImageError
from alexdeploy.engines.base import EngineOptions
from alexdeploy.images.sources import Source
from alexdeploy.inference import pipeline
from alexdeploy.inference.pipeline import BatchRule, Outcome, PipelineOptions, run_pipeline
from alexdeploy.inference.window import window_size

NUM_DECODERS = 3


@pytest.fixture
def classify(colour_engine: type) -> Callable[..., Iterator[Outcome]]:
    def run(sources: Iterator[Source], engine: object | None = None, first_index: int = 0) -> Iterator[Outcome]:
        options = PipelineOptions(num_decoders=NUM_DECODERS, first_index=first_index)
        with engine or colour_engine(options=EngineOptions(batch_size=4)) as opened:
            yield from run_pipeline(opened, sources, options)

    return run


def test_outcomes_keep_the_input_order_when_decoding_takes_random_times(classify, make_sources, monkeypatch) -> None:
    decode = pipeline.decode
    rng = random.Random(0)

    def slow_decode(data: bytes, resize: str) -> NDArray[np.uint8]:
        time.sleep(rng.random() * 0.01)
        return decode(data, resize)

    monkeypatch.setattr(pipeline, "decode", slow_decode)
    outcomes = list(classify(make_sources(60)))
    assert [(outcome.index, outcome.source) for outcome in outcomes] == [(i, f"{i}.jpg") for i in range(60)]
    assert [int(np.argmax(outcome.probabilities)) for outcome in outcomes] == [i % 3 for i in range(60)]


def test_outcomes_keep_the_input_order_when_batches_finish_out_of_order(classify, make_sources, colour_engine) -> None:
    rng = random.Random(0)
    engine = colour_engine(
        options=EngineOptions(batch_size=2),
        num_streams=3,
        before_run=lambda images: time.sleep(rng.random() / 50),
    )
    outcomes = list(classify(make_sources(50), engine))
    assert [outcome.index for outcome in outcomes] == list(range(50))
    assert [int(np.argmax(outcome.probabilities)) for outcome in outcomes] == [i % 3 for i in range(50)]
    assert engine.max_running <= 3


def test_only_the_last_batch_is_smaller(classify, make_sources, colour_engine) -> None:
    engine = colour_engine(options=EngineOptions(batch_size=4))
    assert len(list(classify(make_sources(10), engine))) == 10
    assert engine.batch_sizes == [4, 4, 2]


def test_broken_images_take_no_slot_in_a_batch_and_keep_their_place(classify, make_sources, colour_engine) -> None:
    engine = colour_engine(options=EngineOptions(batch_size=4))
    outcomes = list(classify(make_sources(24, broken=lambda index: index % 3 == 1), engine))
    assert engine.batch_sizes == [4, 4, 4, 4]
    assert [outcome.index for outcome in outcomes if outcome.error] == list(range(1, 24, 3))
    assert [outcome.index for outcome in outcomes] == list(range(24))


def test_inputs_that_are_all_broken_give_errors_and_no_batch(classify, make_sources, colour_engine) -> None:
    engine = colour_engine()
    outcomes = list(classify(make_sources(30, broken=lambda index: True), engine))
    assert len(outcomes) == 30
    assert all(outcome.error and outcome.probabilities is None for outcome in outcomes)
    assert engine.batch_sizes == []


def test_no_sources_give_no_outcomes(classify) -> None:
    assert list(classify(iter(()))) == []


def test_a_batch_does_not_wait_for_ever_for_a_good_image(classify, make_sources, colour_engine, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_BROKEN", 5)
    engine = colour_engine(options=EngineOptions(batch_size=4))
    outcomes = list(classify(make_sources(100, broken=lambda index: index not in (0, 90, 91)), engine))
    assert engine.batch_sizes == [1, 2]
    assert [outcome.index for outcome in outcomes] == list(range(100))


def test_batches_end_by_input_order_alone() -> None:
    rule = BatchRule(3)
    inputs = [True, False, True, False, True, False, True]
    assert [rule.ends_after(good=good) for good in inputs] == [False, False, False, False, True, False, False]


def test_sources_are_not_advanced_further_than_the_window(colour_engine, make_sources) -> None:
    taken = 0

    def counted() -> Iterator[Source]:
        nonlocal taken
        for source in make_sources(300):
            taken += 1
            yield source

    window = window_size(batch_size=4, num_streams=1, num_decoders=NUM_DECODERS)
    with colour_engine(options=EngineOptions(batch_size=4)) as engine:
        outcomes = run_pipeline(engine, counted(), PipelineOptions(num_decoders=NUM_DECODERS))
        for number, _ in enumerate(outcomes, start=1):
            if number % 50 == 1:
                time.sleep(0.05)
            assert taken <= number + window
    assert taken == 300


def test_decoding_goes_on_to_the_window_while_the_engine_is_busy(colour_engine, make_sources) -> None:
    release, taken = threading.Event(), []
    window = window_size(batch_size=4, num_streams=1, num_decoders=NUM_DECODERS)

    def counted() -> Iterator[Source]:
        for source in make_sources(100):
            taken.append(source)
            if len(taken) == window:
                release.set()
            yield source

    def wait(images: NDArray[np.uint8]) -> None:
        assert release.wait(10), "decoding waited for the engine"

    with colour_engine(options=EngineOptions(batch_size=4), before_run=wait) as engine:
        assert len(list(run_pipeline(engine, counted(), PipelineOptions(num_decoders=NUM_DECODERS)))) == 100


@pytest.mark.parametrize("failing_batch", [0, 3])
def test_what_the_engine_raises_is_raised_to_the_caller(
    classify, make_sources, colour_engine, failing_batch: int
) -> None:
    def fail(images: NDArray[np.uint8]) -> None:
        if len(engine.batch_sizes) > failing_batch:
            raise DeviceError("the device fell over")

    engine = colour_engine(options=EngineOptions(batch_size=4), before_run=fail)
    with pytest.raises(DeviceError, match="fell over"):
        list(classify(make_sources(200), engine))


def test_outcomes_before_an_error_of_the_iterator_are_delivered_first(classify, make_sources) -> None:
    def sources() -> Iterator[Source]:
        yield from make_sources(6)
        raise DataError("the archive ends here")

    outcomes = classify(sources())
    assert [next(outcomes).index for _ in range(6)] == list(range(6))
    with pytest.raises(DataError, match="ends here"):
        next(outcomes)


def test_a_bug_in_the_decoder_is_not_taken_for_a_broken_image(classify, make_sources, monkeypatch) -> None:
    def decode(data: bytes, resize: str) -> NDArray[np.uint8]:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "decode", decode)
    with pytest.raises(ZeroDivisionError):
        list(classify(make_sources(10)))


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_closing_early_ends_the_threads_and_closes_the_sources(colour_engine, make_sources, taken: int) -> None:
    closed = threading.Event()

    def sources() -> Iterator[Source]:
        try:
            yield from make_sources(1_000_000)
        finally:
            closed.set()

    before = threading.active_count()
    with colour_engine(options=EngineOptions(batch_size=4)) as engine:
        outcomes = run_pipeline(engine, sources(), PipelineOptions(num_decoders=NUM_DECODERS))
        for _ in range(taken):
            next(outcomes)
        outcomes.close()
        assert threading.active_count() == before
        assert closed.is_set() == (taken > 0)


def test_closing_cancels_a_batch_that_does_not_end(colour_engine, make_sources) -> None:
    cancelled = threading.Event()

    def hang(images: NDArray[np.uint8]) -> None:
        # All batches but the first, which begins with a red image, and each third after it.
        if images[0, 0, 0].argmax() and cancelled.wait(PATIENCE):
            raise DeviceError("cancelled")

    with colour_engine(options=EngineOptions(batch_size=4), num_streams=2, before_run=hang) as engine:
        outcomes = run_pipeline(engine, make_sources(100), PipelineOptions(cancel=cancelled.set))
        assert next(outcomes).index == 0
        wait_for(lambda: len(engine.batch_sizes) > 1)
        outcomes.close()
    assert cancelled.is_set()


def test_closing_leaves_a_batch_that_ends_to_itself(colour_engine, make_sources, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "_PATIENCE_SECONDS", PATIENCE)
    cancelled = threading.Event()
    engine = colour_engine(options=EngineOptions(batch_size=4), before_run=lambda images: time.sleep(0.2))
    with engine:
        outcomes = run_pipeline(engine, make_sources(100), PipelineOptions(cancel=cancelled.set))
        next(outcomes)
        outcomes.close()
    assert not cancelled.is_set()


def test_a_source_that_cannot_be_read_is_an_outcome_with_its_error(classify) -> None:
    def vanish() -> bytes:
        raise ImageError("went away")

    (outcome,) = classify(iter([Source(name="gone.jpg", fetched=vanish)]))
    assert (outcome.source, outcome.error) == ("gone.jpg", "went away")


def test_indices_go_on_from_the_first(classify, make_sources) -> None:
    assert [outcome.index for outcome in classify(make_sources(6), first_index=40)] == list(range(40, 46))


def test_decoding_and_the_engine_run_at_the_same_time(colour_engine, make_sources, monkeypatch) -> None:
    # The first batch and the decoding of a later image wait for each other: by turns neither would ever go on.
    both, numbers = threading.Barrier(2), itertools.count(1)

    def decode(data: bytes, resize: str) -> NDArray[np.uint8]:
        if next(numbers) == 6:
            both.wait(PATIENCE)
        return np.full((256, 256, 3), 7, np.uint8)

    def meet(images: NDArray[np.uint8]) -> None:
        if len(engine.batch_sizes) == 1:
            both.wait(PATIENCE)

    monkeypatch.setattr(pipeline, "decode", decode)
    engine = colour_engine(options=EngineOptions(batch_size=4), before_run=meet)
    with engine:
        count = len(list(run_pipeline(engine, make_sources(80), PipelineOptions(num_decoders=NUM_DECODERS))))
    assert count == 80


def test_closing_does_not_wait_for_sources_that_are_being_looked_for(colour_engine, make_sources) -> None:
    release, closed = threading.Event(), threading.Event()

    def slow() -> Iterator[Source]:
        try:
            yield from make_sources(1)
            release.wait(PATIENCE)
            yield from make_sources(1)
        finally:
            closed.set()

    with colour_engine(options=EngineOptions(batch_size=1)) as engine:
        outcomes = run_pipeline(engine, slow(), PipelineOptions(num_decoders=NUM_DECODERS))
        next(outcomes)
        outcomes.close()
    assert not closed.is_set()
    # Whoever was left behind closes them when it comes back.
    release.set()
    assert closed.wait(PATIENCE)
    for thread in threading.enumerate():
        if thread.name.startswith("alexdeploy-"):
            thread.join(PATIENCE)


def test_a_batch_that_no_memory_holds_is_refused_before_it_is_made(classify, make_sources, colour_engine) -> None:
    def engine(batch_size: int) -> object:
        return colour_engine(options=EngineOptions(batch_size=batch_size))

    problem = r"batches of 1,000,000,000 take [\d,.]+ GB, [\d,.]+ GB of memory are free"
    with pytest.raises(DeviceMemoryError, match=problem) as found:
        list(classify(make_sources(3), engine(1_000_000_000)))
    # What the hint says has to do; other processes may take some of it meanwhile.
    hint = re.search(r"at most ([\d,]+)", found.value.hint or "")
    assert hint is not None
    assert len(list(classify(make_sources(3), engine(max(1, int(hint[1].replace(",", "")) // 8))))) == 3


def test_an_image_for_which_there_is_no_memory_is_a_row(classify, make_sources, monkeypatch) -> None:
    decode = pipeline.decode
    calls = iter(range(10))

    def decode_little(data: bytes, resize: str) -> NDArray[np.uint8]:
        if next(calls) == 3:
            raise MemoryError
        return decode(data, resize)

    monkeypatch.setattr(pipeline, "decode", decode_little)
    outcomes = list(classify(make_sources(10)))
    assert [outcome.index for outcome in outcomes] == list(range(10))
    assert [outcome.error for outcome in outcomes if outcome.error] == ["not enough memory"]
