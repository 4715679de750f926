"""Limits on bodies, while they are read and while they are decompressed."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from patience import PATIENCE
from starlette.requests import ClientDisconnect, Request

from alexdeploy.serving import bodies
from alexdeploy.serving.bodies import BodyBudget, read_body
from alexdeploy.serving.errors import BusyError, InvalidRequestError, TooLargeError


def read(chunks: list[bytes], budget: BodyBudget | None = None, **headers: str) -> bytes:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "method": "POST", "headers": encoded}, receive)

    async def body() -> bytes:
        budget_ = budget or BodyBudget(1000, 10_000)
        with budget_.hold() as held:
            return bytes(await read_body(request, held))

    return asyncio.run(body())


def test_memory_is_given_back_when_much_was_held_and_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    given = asyncio.Event()
    monkeypatch.setattr(bodies, "_GIVE_BACK_SECONDS", 0.0)

    async def use() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(bodies, "give_back_memory", lambda: loop.call_soon_threadsafe(given.set))
        budget = BodyBudget(64 << 20)
        with budget.hold() as small:
            small.add(64 << 20)
        assert budget._most_bytes == 64 << 20
        with budget.hold() as first:
            first.add(40 << 20)
            with budget.hold() as second:
                second.add(40 << 20)
            assert budget._most_bytes == 80 << 20
        assert budget._most_bytes == 0
        await asyncio.wait_for(given.wait(), PATIENCE)

    asyncio.run(use())


TEXT = b"abc" * 100


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (gzip.compress(TEXT, mtime=0), TEXT),
        (zlib.compress(TEXT), TEXT),
        (gzip.compress(TEXT, mtime=0) + gzip.compress(b"d", mtime=0), TEXT + b"d"),
    ],
)
def test_compressed_bodies_are_inflated(packed: bytes, expected: bytes) -> None:
    for size in (1, 7, 1000):
        chunks = [packed[at : at + size] for at in range(0, len(packed), size)]
        assert read(chunks, content_encoding="gzip") == expected


def test_a_body_over_the_limit_is_refused_however_it_comes() -> None:
    assert read([b"a" * 500, b"b" * 500]) == b"a" * 500 + b"b" * 500
    for chunks, headers in (
        ([b"a" * 500, b"b" * 501], {}),
        ([b""], {"content_length": "1001"}),
        ([b""], {"content_length": "9" * 30}),
        ([gzip.compress(b"a" * 1001, mtime=0)], {"content_encoding": "gzip"}),
        ([zlib.compress(b"a" * 10_000_000)[:500]], {"content_encoding": "deflate"}),
        ([gzip.compress(b"a" * 600, mtime=0) * 2], {"content_encoding": "gzip"}),
    ):
        with pytest.raises(TooLargeError, match="1000"):
            read(chunks, **headers)


@pytest.mark.parametrize(
    "packed", [b"abc", gzip.compress(b"abc" * 100, mtime=0)[:-9], gzip.compress(b"abc", mtime=0) + b"x"]
)
def test_what_is_not_compressed_data_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="decompressed"):
        read([packed], content_encoding="gzip")


def test_members_of_compressed_data_are_counted_however_small_they_are() -> None:
    member = gzip.compress(b"", mtime=0)
    assert read([member * 64], BodyBudget(10_000, 10_000), content_encoding="gzip") == b""
    with pytest.raises(InvalidRequestError, match="more than 64 members"):
        read([member * 65], BodyBudget(10_000, 10_000), content_encoding="gzip")


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'br'"):
        read([b""], content_encoding="br")


def test_all_bodies_together_have_a_limit_and_give_back_what_they_held() -> None:
    budget = BodyBudget(1000, 1500)
    with budget.hold() as other:
        other.add(800)
        with pytest.raises(BusyError):
            read([b"a" * 701], budget)
        assert len(read([b"a" * 700], budget)) == 700
        with pytest.raises(BusyError):
            read([gzip.compress(b"a" * 701, mtime=0)], budget, content_encoding="gzip")
    assert budget.held_bytes == 0


def test_a_client_that_goes_away_is_no_body() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def body() -> None:
        with BodyBudget(10, 10).hold() as held:
            await read_body(Request({"type": "http", "headers": []}, receive), held)

    with pytest.raises(ClientDisconnect):
        asyncio.run(body())
