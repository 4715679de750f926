"""Reading ahead: in order, many at a time, bounded in bytes; what is not stored is left alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE

from alexdeploy.core.errors import ImageError
from alexdeploy.images import read_ahead
from alexdeploy.images.read_ahead import READERS_PER_DECODER, ReadAhead
from alexdeploy.images.sources import Source, iter_sources

if TYPE_CHECKING:
    from bucket import Bucket


def _fill(bucket: type[Bucket], count: int, size: int = 10) -> None:
    bucket.objects.update({f"b/d/{number:04}.jpg": bytes([number % 256]) * size for number in range(count)})


def _close_after(ahead: ReadAhead) -> Iterator[Source]:
    try:
        yield from ahead
    finally:
        ahead.close()


def test_objects_come_in_order_with_their_bytes(bucket: type[Bucket]) -> None:
    _fill(bucket, 300)
    found = [(source.name, source.read()) for source in _close_after(ReadAhead(iter_sources(["fault://b/d"]), 2))]
    assert found == [(f"fault://{name}", data) for name, data in bucket.objects.items()]


def test_many_are_read_at_a_time(bucket: type[Bucket]) -> None:
    """Each read waits until as many have begun as there are readers: with one fewer at a time this would not end."""
    _fill(bucket, READERS_PER_DECODER)
    together = threading.Barrier(READERS_PER_DECODER, timeout=PATIENCE)

    def meet(data: bytes) -> bytes:
        together.wait()
        return data

    bucket.steps.update({name: [meet] for name in bucket.objects})
    for source in _close_after(ReadAhead(iter_sources(["fault://b/d"]), 1)):
        assert source.read() == bucket.objects[source.name.removeprefix("fault://")]


def test_the_window_is_bounded_in_bytes(bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_WINDOW_BYTES", 1000)
    monkeypatch.setattr(read_ahead, "_MOST_OBJECT_BYTES", 100)
    _fill(bucket, 60, size=100)
    _fill(bucket, 1, size=101)
    for given in (["fault://b/d"], [f"fault://{name}" for name in sorted(bucket.objects)]):
        ahead = ReadAhead(iter_sources(given), 4)
        held, largest = 0, 0
        for source in _close_after(ahead):
            largest = max(largest, ahead._window.num_bytes)
            held += len(source.read())
        assert held == 60 * 100 + 1
        assert 900 <= largest <= 1000
        assert ahead._window.num_bytes == 0


def test_errors_are_raised_where_they_are_read(bucket: type[Bucket]) -> None:
    _fill(bucket, 3)
    problems = []
    for source in _close_after(ReadAhead(iter_sources(["fault://b/d", "fault://b/none.jpg", "fault://b/d"]), 1)):
        try:
            source.read()
        except ImageError as exc:
            problems.append((source.name, exc.message))
    assert problems == [("fault://b/none.jpg", "not found: no such object")]


def test_other_sources_are_taken_in_their_turn(bucket: type[Bucket]) -> None:
    _fill(bucket, 2)
    taken: list[int] = []

    def sources() -> Iterator[Source]:
        for number in range(5):
            taken.append(number)
            yield Source(name=str(number), data=b"1")
        yield from iter_sources(["fault://b/d"])

    ahead = ReadAhead(sources(), 1)
    for number in range(5):
        assert next(ahead).name == str(number)
        assert len(taken) == number + 1
    assert [source.read() for source in _close_after(ahead)] == list(bucket.objects.values())


def test_an_error_of_the_listing_comes_after_what_was_listed(bucket: type[Bucket]) -> None:
    _fill(bucket, 2)

    def sources() -> Iterator[Source]:
        yield from iter_sources(["fault://b/d"])
        raise RuntimeError("listing")

    ahead = ReadAhead(sources(), 1)
    assert [next(ahead).read() for _ in range(2)] == list(bucket.objects.values())
    with pytest.raises(RuntimeError, match="listing"):
        next(ahead)
    ahead.close()


def test_closing_does_not_wait_for_the_store(bucket: type[Bucket]) -> None:
    _fill(bucket, 100)
    release = threading.Event()

    def wait(data: bytes) -> bytes:
        release.wait(PATIENCE)
        return data

    bucket.steps.update({name: [wait] for name in bucket.objects})
    ahead = ReadAhead(iter_sources(["fault://b/d"]), 1)
    next(ahead)
    threads = list(ahead._pool._threads)
    ahead.close()
    assert any(thread.is_alive() for thread in threads)
    release.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len([kind for kind, _ in bucket.calls if kind == "read"]) <= READERS_PER_DECODER
