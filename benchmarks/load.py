"""Clients of a server, in a process of their own, so that their work is not counted as the server's.

`python -m benchmarks.load` reads a Load from stdin and writes Answers to stdout. Requests are sent as they lie in
files, over connections that are kept; of an answer only the status is looked at.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.process import ROOT

_LATE_SECONDS = 60.0
"""What the answers to the last requests may take."""

_MAX_CONNECTIONS = 500
"""Further requests wait for a connection, and their latency counts. A server closes idle connections where it has too
many, and what is sent over one at that moment gets no answer."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Send the HTTP requests in `files`, in turn, to a port of this machine, for `seconds`.

    Each of `num_clients` sends its next request when it has the answer to the last. Where that is 0, requests are sent
    at random times (a Poisson process) whether or not earlier ones are answered, and their latency counts from the time
    at which they were due: a server that halts is not spared the requests that would have come meanwhile.
    """

    port: int
    files: tuple[str, ...]
    seconds: float
    num_clients: int = 0
    requests_per_second: float = 0.0
    seed: int = 0


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """`statuses` counts the answers by their HTTP status, and as 0 what got none: the connection failed.

    `latencies_ms` are those of the answers with status 200, in the order in which they came. `seconds` is the time
    until the last of all answers.
    """

    statuses: dict[int, int]
    latencies_ms: list[float]
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.latencies_ms) / self.seconds


def send(load: Load) -> Answers:
    """Send it from another process. Raises SystemExit if that process fails."""
    command = [sys.executable, "-m", "benchmarks.load"]
    limit = load.seconds + _LATE_SECONDS
    run = subprocess.run(
        command, input=msgspec.json.encode(load), stdout=subprocess.PIPE, cwd=ROOT, timeout=limit, check=False
    )
    if run.returncode != 0:
        raise SystemExit(f"the clients ended with exit code {run.returncode}")
    return msgspec.json.decode(run.stdout, type=Answers)


class _Clients:
    """Connections to the server, as many as there are requests on the way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = itertools.cycle([Path(path).read_bytes() for path in load.files])
        self._connections = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._statuses: Counter[int] = Counter()
        self._latencies_ms: list[float] = []

    async def run(self) -> Answers:
        began = time.perf_counter()
        if self._load.num_clients:
            await asyncio.gather(*(self._in_turn(began) for _ in range(self._load.num_clients)))
        else:
            await self._at_random_times(began)
        seconds = time.perf_counter() - began
        for _, writer in self._idle:
            writer.close()
        return Answers(statuses=dict(self._statuses), latencies_ms=self._latencies_ms, seconds=seconds)

    async def _in_turn(self, began: float) -> None:
        while (now := time.perf_counter()) < began + self._load.seconds:
            await self._request(now)

    async def _at_random_times(self, began: float) -> None:
        requests = []
        for due in _times(self._load):
            await asyncio.sleep(began + due - time.perf_counter())
            requests.append(asyncio.create_task(self._request(began + due)))
        await asyncio.gather(*requests)

    async def _request(self, due: float) -> None:
        async with self._connections:
            await self._exchange(due)

    async def _exchange(self, due: float) -> None:
        try:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
            writer.write(next(self._requests))
            status = await _status(reader)
        except (OSError, asyncio.IncompleteReadError):
            self._statuses[0] += 1
            return
        self._idle.append((reader, writer))
        self._statuses[status] += 1
        if status == 200:
            self._latencies_ms.append(1e3 * (time.perf_counter() - due))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._load.port)


def _times(load: Load) -> Iterator[float]:
    """When requests are due, in seconds from the beginning."""
    numbers = random.Random(load.seed)
    now = 0.0
    while (now := now + numbers.expovariate(load.requests_per_second)) < load.seconds:
        yield now


async def _status(reader: asyncio.StreamReader) -> int:
    """Read one answer, whose body has a Content-Length, to its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"\ncontent-length:")[2].partition(b"\r")[0]
    await reader.readexactly(int(length or 0))
    return int(head.split(maxsplit=2)[1])


def main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_Clients(load).run())))


if __name__ == "__main__":
    main()
