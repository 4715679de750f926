"""`predict --ray` as discrete events: a driver, nodes with an actor each, chunks, a store, and what fails.

What is modelled, in the order of an image's way:

- The driver is one thread. It lists names, gives a chunk to the open actor that has the fewest, and handles a part
  that is complete: all of it takes its time, and each part takes longer the more chunks are under way. Every 5 seconds
  in which a part arrives it writes the manifest with all parts. Chunks grow with the number of images before them.
- An actor opens the model, then has two chunks at once, which share its node's processors evenly. Nodes with the same
  host share them too. A chunk costs a fixed time and a time for each image, times a random factor with mean 1.
- The store answers so many requests a second, first come, first served, each after a latency. A chunk asks for all of
  its images as it begins, since actors read ahead, and is not complete before the last of them has come.
- A node may be slow from the start. Nodes fail at random times: their chunks go to others, first of all. A node may be
  replaced after a while; an actor that ends alone is replaced at once.

Times are in seconds. The same seed gives the same run.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.cluster_scenario import Costs, Outcome, Scenario

# Those of alexdeploy.cluster.crew, classify and chunks, which need Ray.
_CHUNKS_AT_ONCE = 2
_SAVE_SECONDS = 5.0
_NAMES_PER_PAGE = 1000
_FEWEST_ROWS = 128
_SHARE_OF_ROWS = 64


@dataclass(slots=True, eq=False)
class _Chunk:
    """`work` is in seconds of a core. One without images is the opening of the model."""

    size: int
    work: float
    read_at: float = 0.0


@dataclass(slots=True, eq=False)
class _Actor:
    host: _Host
    is_open: bool = False
    is_gone: bool = False
    life: int = 0
    """Grows when the process ends: what was to come then does not."""
    chunks: list[_Chunk] = field(default_factory=list)


class _Host:
    """Processors that chunks share evenly; each of them has had `_virtual` seconds of one core since the beginning."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.busy_seconds = 0.0
        self.version = 0
        self._virtual = self._now = 0.0
        self._running: list[tuple[float, int, _Actor, _Chunk]] = []
        self._ids = itertools.count()

    def advance(self, now: float) -> None:
        if self._running:
            self._virtual += (now - self._now) * self.speed / len(self._running)
            self.busy_seconds += now - self._now
        self._now = now

    def begin(self, now: float, actor: _Actor, chunk: _Chunk) -> None:
        self.advance(now)
        heapq.heappush(self._running, (self._virtual + chunk.work, next(self._ids), actor, chunk))

    def next_end(self) -> float | None:
        """When the first chunk ends if nothing else changes."""
        if not self._running:
            return None
        return self._now + max(self._running[0][0] - self._virtual, 0.0) * len(self._running) / self.speed

    def end(self, now: float) -> tuple[_Actor, _Chunk]:
        self.advance(now)
        return heapq.heappop(self._running)[2:]

    def drop(self, now: float, actor: _Actor) -> float:
        """End the chunks of an actor; the seconds of a core that they have had."""
        self.advance(now)
        dropped = [each for each in self._running if each[2] is actor]
        self._running = [each for each in self._running if each[2] is not actor]
        heapq.heapify(self._running)
        return sum(chunk.work - max(end - self._virtual, 0.0) for end, _, _, chunk in dropped)


def simulate(scenario: Scenario, costs: Costs, seed: int = 0) -> Outcome:
    """One run, from the call of `classify` to its return."""
    return _Run(scenario, costs, seed).outcome()


class _Run:
    def __init__(self, scenario: Scenario, costs: Costs, seed: int) -> None:
        self._scenario, self._costs, self._random = scenario, costs, random.Random(seed)
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()
        self._waiting: deque[_Chunk] = deque()
        self._complete: deque[tuple[_Actor, int, _Chunk]] = deque()
        self._ready: tuple[deque[_Actor], ...] = tuple(deque() for _ in range(_CHUNKS_AT_ONCE))
        self._is_driving = False
        self._driver_seconds = self._store_seconds = self._store_free_at = self._saved_at = self._lost = 0.0
        self._num_listed = self._num_running = self._num_done = self._num_failures = 0
        self._opened_at = math.inf
        self._arrivals: list[float] = []
        self._kills = deque(sorted(scenario.kills))
        names = scenario.hosts or tuple(range(scenario.num_nodes))
        self._hosts = {name: _Host(self._node_speed()) for name in dict.fromkeys(names)}
        self._actors = [_Actor(self._hosts[name]) for name in names]
        for actor in self._actors:
            self._after(costs.begin_seconds, partial(self._join, actor))

    def outcome(self) -> Outcome:
        while self._events and self._num_done < self._scenario.num_images:
            self._now, _, event = heapq.heappop(self._events)
            event()
        seconds = self._now + self._costs.manifest_seconds * len(self._arrivals)
        for host in self._hosts.values():
            host.advance(self._now)
        return Outcome(
            seconds=seconds,
            num_images=self._num_done,
            opened_at=self._opened_at,
            arrivals=self._arrivals,
            driver_share=self._driver_seconds / seconds,
            node_share=sum(host.busy_seconds for host in self._hosts.values()) / len(self._hosts) / seconds,
            store_share=self._store_seconds / seconds,
            lost_core_seconds=self._lost,
            num_failures=self._num_failures,
            is_complete=self._num_done == self._scenario.num_images,
        )

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._ids), event))

    def _node_speed(self) -> float:
        is_slow = self._random.random() < self._scenario.slow_share
        return self._scenario.cores / (self._scenario.slow_factor if is_slow else 1.0)

    def _factor(self, spread: float) -> float:
        """Lognormal with mean 1."""
        return self._random.lognormvariate(-(spread**2) / 2, spread) if spread else 1.0

    def _join(self, actor: _Actor) -> None:
        """A node is there."""
        actor.is_gone = False
        if self._scenario.failure_seconds < math.inf:
            self._after(self._random.expovariate(1 / self._scenario.failure_seconds), partial(self._fail, actor))
        self._start(actor, self._costs.start_seconds)

    def _start(self, actor: _Actor, seconds: float) -> None:
        """Opening the model takes all of a host, so that those who share one wait for each other."""
        work = seconds * self._factor(self._costs.start_spread) * actor.host.speed
        actor.host.begin(self._now, actor, _Chunk(0, work))
        self._watch(actor.host)

    def _open(self, actor: _Actor) -> None:
        actor.is_open = True
        self._ready[0].append(actor)
        self._drive()

    def _fail(self, actor: _Actor) -> None:
        if actor.is_gone:
            return
        self._end(actor)
        actor.is_gone = True
        self._num_failures += 1
        if self._scenario.replace_seconds < math.inf:
            self._after(self._scenario.replace_seconds, partial(self._join, actor))

    def _end(self, actor: _Actor) -> None:
        """The process of an actor ends, and its chunks wait again, before all others."""
        self._lost += actor.host.drop(self._now, actor)
        self._watch(actor.host)
        actor.life += 1
        actor.is_open = False
        self._num_running -= len(actor.chunks)
        self._waiting.extendleft(actor.chunks)
        actor.chunks.clear()
        self._drive()

    def _begin(self, actor: _Actor, life: int, chunk: _Chunk) -> None:
        """An actor gets a chunk: it asks the store for all of it, and computes what has come."""
        if actor.life != life:
            return
        self._opened_at = min(self._opened_at, self._now)
        seconds = chunk.size / self._scenario.requests_per_second
        self._store_free_at = max(self._store_free_at, self._now) + seconds
        self._store_seconds += seconds
        chunk.read_at = self._store_free_at + self._scenario.latency_seconds
        chunk.work = (self._costs.chunk_seconds + chunk.size * self._costs.image_seconds) * self._factor(
            self._costs.chunk_spread
        )
        self._after(self._scenario.latency_seconds, partial(self._compute, actor, life, chunk))

    def _compute(self, actor: _Actor, life: int, chunk: _Chunk) -> None:
        if actor.life == life:
            actor.host.begin(self._now, actor, chunk)
            self._watch(actor.host)

    def _watch(self, host: _Host) -> None:
        """The end of the host's next chunk becomes an event, in place of the one before."""
        host.version += 1
        end = host.next_end()
        if end is not None:
            self._after(end - self._now, partial(self._computed, host, host.version))

    def _computed(self, host: _Host, version: int) -> None:
        if host.version != version:
            return
        actor, chunk = host.end(self._now)
        self._watch(host)
        if chunk.size == 0:
            self._open(actor)
            return
        # The part is written once the last image has come.
        wait = max(chunk.read_at - self._now, 0.0) + self._scenario.latency_seconds
        self._after(wait, partial(self._written, actor, actor.life, chunk))

    def _written(self, actor: _Actor, life: int, chunk: _Chunk) -> None:
        if actor.life == life:
            self._complete.append((actor, life, chunk))
            self._drive()

    def _drive(self) -> None:
        """What the driver does next, if it is free: gives chunks while there is room, then handles a part."""
        if self._is_driving:
            return
        if (self._waiting or self._num_listed < self._scenario.num_images) and (actor := self._free_actor()):
            self._give(actor)
            return
        while self._complete:
            actor, life, chunk = self._complete.popleft()
            if actor.life == life:
                self._handle(actor, chunk)
                return

    def _free_actor(self) -> _Actor | None:
        """The open actor with the fewest chunks, if one has room. It may be in a queue from before: those are void."""
        for num_chunks, ready in enumerate(self._ready):
            while ready:
                actor = ready.popleft()
                if actor.is_open and len(actor.chunks) == num_chunks:
                    return actor
        return None

    def _give(self, actor: _Actor) -> None:
        seconds = 0.0
        if self._waiting:
            chunk = self._waiting.popleft()
        else:
            size = min(max(self._num_listed // _SHARE_OF_ROWS, _FEWEST_ROWS), self._scenario.rows_per_part)
            size = min(size, self._scenario.num_images - self._num_listed)
            self._num_listed += size
            seconds = size * (self._costs.name_seconds + self._scenario.page_seconds / _NAMES_PER_PAGE)
            chunk = _Chunk(size, 0.0)
        actor.chunks.append(chunk)
        self._num_running += 1
        self._make_ready(actor)
        self._spend(seconds, partial(self._begin, actor, actor.life, chunk))

    def _make_ready(self, actor: _Actor) -> None:
        if len(actor.chunks) < _CHUNKS_AT_ONCE:
            self._ready[len(actor.chunks)].append(actor)

    def _handle(self, actor: _Actor, chunk: _Chunk) -> None:
        seconds = self._costs.part_seconds + self._costs.wait_seconds * self._num_running
        if self._now - self._saved_at > _SAVE_SECONDS:
            seconds += self._costs.manifest_seconds * len(self._arrivals)
            self._saved_at = self._now + seconds
        actor.chunks.remove(chunk)
        self._num_running -= 1
        self._make_ready(actor)
        self._spend(seconds + self._scenario.check_seconds, partial(self._know, chunk))

    def _know(self, chunk: _Chunk) -> None:
        self._arrivals.append(self._now)
        self._num_done += chunk.size
        while self._kills and self._kills[0][0] == len(self._arrivals):
            _, what, number = self._kills.popleft()
            if what == "node":
                self._fail(self._actors[number])
            else:
                self._end(self._actors[number])
                self._start(self._actors[number], self._costs.restart_seconds)

    def _spend(self, seconds: float, then: Callable[[], None]) -> None:
        self._is_driving = True
        self._driver_seconds += seconds

        def done() -> None:
            self._is_driving = False
            then()
            self._drive()

        self._after(seconds, done)
