"""The actors of a run: started, given chunks, and replaced where their process ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alexdeploy.cluster.actor import Actor
from alexdeploy.cluster.chunks import Chunk
from alexdeploy.cluster.parts import Output, Part
from alexdeploy.cluster.plan import Node, Slot
from alexdeploy.cluster.shipping import ShippedModel
from alexdeploy.core.errors import AlexDeployError, DeviceError, first_line
from alexdeploy.placement.options import PredictOptions

START_SECONDS = 60.0
"""How long the first actor may take to get its CPUs and its process."""

_CHUNKS_AT_ONCE = 2
"""Chunks that an actor has: one begins while the other ends and is written."""

_MOST_LOSSES = 3
"""Actors that may end while they have the same chunk, or one after the other before they have opened the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorReport:
    """The work of the actors of one slot; they had a chunk, or two, for `busy_seconds`."""

    node: str
    num_cpus: int
    num_gpus: int
    num_images: int = 0
    busy_seconds: float = 0.0
    num_restarts: int = 0


class _Member:
    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.handle: Any = None
        self.is_open = False
        self.num_running = self.num_images = self.num_restarts = self.num_failed_starts = 0
        self.busy_seconds = self.busy_since = 0.0

    def begin(self) -> None:
        """It gets a chunk."""
        if self.num_running == 0:
            self.busy_since = time.monotonic()
        self.num_running += 1

    def end(self) -> None:
        """It has a chunk less."""
        self.num_running -= 1
        if self.num_running == 0:
            self.busy_seconds += time.monotonic() - self.busy_since

    def __str__(self) -> str:
        return f"the actor on {self.slot.node.name}"


class Crew:
    """A context manager; its end ends all actors. Not thread-safe."""

    def __init__(
        self,
        slots: Sequence[Slot],
        model: ShippedModel,
        options: PredictOptions,
        output: Output,
        on_note: Callable[[str], None],
    ) -> None:
        self._model, self._options, self._output, self._on_note = model, options, output, on_note
        self._all = [_Member(slot) for slot in slots]
        self._members = list(self._all)
        self._running: dict[Any, tuple[_Member, Chunk | None]] = {}
        self._losses: dict[int, int] = {}
        self._notes: set[str] = set()

    def __enter__(self) -> Crew:
        """Start the actors. Raises DeviceError if none of them gets its CPUs within START_SECONDS."""
        try:
            pings = [self._start(member) for member in self._members]
            if not ray.wait(pings, num_returns=1, timeout=START_SECONDS)[0]:
                free = ray.available_resources()
                raise DeviceError(
                    f"no actor could start within {START_SECONDS:g} s: each takes "
                    f"{self._members[0].slot.num_cpus} CPUs and {self._members[0].slot.num_gpus} GPUs of a node; "
                    f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs of all nodes are free",
                    hint="Wait for the other work on the cluster, or ask for fewer: --threads N",
                )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._all:
            if member.handle is not None:
                ray.kill(member.handle)

    @property
    def reports(self) -> tuple[ActorReport, ...]:
        return tuple(
            ActorReport(
                node=member.slot.node.name,
                num_cpus=member.slot.num_cpus,
                num_gpus=member.slot.num_gpus,
                num_images=member.num_images,
                busy_seconds=member.busy_seconds,
                num_restarts=member.num_restarts,
            )
            for member in self._all
        )

    @property
    def is_idle(self) -> bool:
        """Whether no actor has a chunk."""
        return all(chunk is None for _, chunk in self._running.values())

    @property
    def has_room(self) -> bool:
        """Whether an actor that is open could begin another chunk."""
        return any(member.is_open and member.num_running < _CHUNKS_AT_ONCE for member in self._members)

    def give(self, chunk: Chunk) -> None:
        """Give a chunk to the actor with the fewest; there must be room."""
        ready = [member for member in self._members if member.is_open]
        member = min(ready, key=lambda each: each.num_running)
        member.begin()
        self._running[member.handle.run.remote(chunk)] = (member, chunk)

    def wait(self, seconds: float) -> tuple[list[Part], list[Chunk]]:
        """Wait for a part. Returns what was completed, and the chunks of actors that have ended, to be given again.

        Raises the error of an actor, and DeviceError if no actor is left, or if one chunk ends all that get it.
        """
        parts: list[Part] = []
        lost: list[Chunk] = []
        for reference in ray.wait(list(self._running), num_returns=1, timeout=seconds)[0]:
            # A loss takes all that the same actor had.
            if reference not in self._running:
                continue
            member, chunk = self._running.pop(reference)
            try:
                result = ray.get(reference)
            except RayTaskError as exc:
                if isinstance(exc.cause, AlexDeployError):
                    raise exc.cause from None
                raise DeviceError(f"{member} failed: {first_line(exc.cause)}") from exc
            except RayError as exc:
                lost += self._replace(member, chunk, first_line(exc))
                continue
            if chunk is None:
                member.is_open, member.num_failed_starts = True, 0
                self._tell(result)
            else:
                member.end()
                member.num_images += result.num_rows
                parts.append(result)
        return parts, lost

    def _start(self, member: _Member) -> Any:
        member.is_open = False
        member.handle = (
            ray.remote(Actor)
            .options(
                num_cpus=member.slot.num_cpus,
                num_gpus=member.slot.num_gpus,
                max_concurrency=_CHUNKS_AT_ONCE,
                scheduling_strategy=NodeAffinitySchedulingStrategy(member.slot.node.id, soft=False),
            )
            .remote(self._output)
        )
        self._running[member.handle.open.remote(self._model, self._options)] = (member, None)
        return member.handle.ping.remote()

    def _replace(self, member: _Member, chunk: Chunk | None, reason: str) -> list[Chunk]:
        """Start another actor in place of one that has ended; the chunks that it had."""
        others = [reference for reference, (each, _) in self._running.items() if each is member]
        had = [chunk, *(self._running.pop(reference)[1] for reference in others)]
        chunks = [each for each in had if each is not None]
        for _ in chunks:
            member.end()
        ray.kill(member.handle)
        for each in chunks:
            self._losses[each.number] = self._losses.get(each.number, 0) + 1
            if self._losses[each.number] >= _MOST_LOSSES:
                last = each.first_index + len(each.sources) - 1
                raise DeviceError(
                    f"{_MOST_LOSSES} actors ended while they had the images {each.first_index} to {last}, from "
                    f"{each.sources[0].name!r} on; the last one: {reason}",
                    hint="The memory of the node may be too small, or one of the images ends the process.",
                )
        if not member.is_open:
            member.num_failed_starts += 1
        if member.num_failed_starts >= _MOST_LOSSES or member.slot.node.id not in {node.id for node in alive_nodes()}:
            self._members.remove(member)
            if not self._members:
                raise DeviceError(f"no actor is left; the last one ended: {reason}", hint="Go on with --resume")
            self._on_note(f"{member} ended, and is not replaced: {reason}")
        else:
            member.num_restarts += 1
            self._on_note(f"{member} ended, and is replaced: {reason}")
            self._start(member)
        return chunks

    def _tell(self, notes: Sequence[str]) -> None:
        for note in notes:
            if note not in self._notes:
                self._notes.add(note)
                self._on_note(note)


def alive_nodes() -> list[Node]:
    """The nodes of the cluster, in the order of their ids."""
    nodes = (
        Node(id=each["NodeID"], name=each["NodeManagerHostname"], resources=each["Resources"])
        for each in ray.nodes()
        if each["Alive"]
    )
    return sorted(nodes, key=lambda node: node.id)
