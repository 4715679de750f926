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
from alexdeploy.cluster.plan import Node, Slot, plan_slots
from alexdeploy.cluster.shipping import ShippedModel
from alexdeploy.cluster.suspects import MOST_LOSSES
from alexdeploy.core.errors import AlexDeployError, DeviceError, UsageError, first_line
from alexdeploy.placement.options import PredictOptions

START_SECONDS = 60.0
"""How long the first actor may take to get its CPUs and its process."""

_CHUNKS_AT_ONCE = 2
"""Chunks that an actor has: one begins while the other ends and is written."""

_NODES_SECONDS = 5.0
"""How often the crew looks for nodes that have joined."""


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
    def __init__(self, slot: Slot, *, is_late: bool = False) -> None:
        self.slot, self.is_late = slot, is_late
        self.handle: Any = None
        self.is_open = self.has_suspect = False
        self.num_running = self.num_images = self.num_restarts = self.num_failed_starts = 0
        self.busy_seconds = self.busy_since = 0.0

    @property
    def has_room(self) -> bool:
        return self.is_open and not self.has_suspect and self.num_running < _CHUNKS_AT_ONCE

    @property
    def is_idle(self) -> bool:
        return self.is_open and self.num_running == 0

    def begin(self, chunk: Chunk) -> None:
        """It gets a chunk."""
        if self.num_running == 0:
            self.busy_since = time.monotonic()
        self.num_running += 1
        self.has_suspect = chunk.is_suspect

    def end(self) -> None:
        """It has a chunk less."""
        self.num_running -= 1
        self.has_suspect = False
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
        self._notes: set[str] = set()
        self._nodes = {slot.node.id for slot in slots}
        self._looked_at = time.monotonic()

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
    def has_idle(self) -> bool:
        """Whether an actor that is open has no chunk, as a suspect one needs."""
        return any(member.is_idle for member in self._members)

    @property
    def has_room(self) -> bool:
        """Whether an actor that is open could begin another chunk."""
        return any(member.has_room for member in self._members)

    def give(self, chunk: Chunk) -> None:
        """Give a chunk to the actor with the fewest; there must be room."""
        ready = [member for member in self._members if member.has_room]
        member = min(ready, key=lambda each: each.num_running)
        member.begin(chunk)
        call = member.handle.try_out if chunk.is_trial else member.handle.run
        self._running[call.remote(chunk)] = (member, chunk)

    def wait(self, seconds: float) -> tuple[list[tuple[Chunk, Part | None]], list[tuple[Chunk, str]]]:
        """Wait for a chunk. Returns what is done, with its part unless it is a trial; and the chunks of actors that
        have ended, with the reason.

        Raises the error of an actor, and DeviceError if no actor is left.
        """
        done: list[tuple[Chunk, Part | None]] = []
        lost: list[tuple[Chunk, str]] = []
        self._look_for_nodes()
        for reference in ray.wait(list(self._running), num_returns=1, timeout=seconds)[0]:
            # A loss takes all that the same actor had.
            if reference not in self._running:
                continue
            member, chunk = self._running.pop(reference)
            try:
                result = ray.get(reference)
            except RayTaskError as exc:
                if member.is_late and chunk is None:
                    # The others go on as they would without its node.
                    self._leave_out(member, f"cannot open the model: {first_line(exc.cause)}")
                    continue
                if isinstance(exc.cause, AlexDeployError):
                    raise exc.cause from None
                raise DeviceError(f"{member} failed: {first_line(exc.cause)}") from exc
            except RayError as exc:
                reason = first_line(exc)
                lost += [(each, reason) for each in self._replace(member, chunk, reason)]
                continue
            if chunk is None:
                member.is_open, member.num_failed_starts = True, 0
                self._tell(result)
            else:
                member.end()
                member.num_images += 0 if result is None else result.num_rows
                done.append((chunk, result))
        return done, lost

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
        if not member.is_open:
            member.num_failed_starts += 1
        if member.num_failed_starts >= MOST_LOSSES or member.slot.node.id not in {node.id for node in alive_nodes()}:
            self._leave_out(member, f"ended, and is not replaced: {reason}")
        else:
            ray.kill(member.handle)
            member.num_restarts += 1
            self._on_note(f"{member} ended, and is replaced: {reason}")
            self._start(member)
        return chunks

    def _leave_out(self, member: _Member, what: str) -> None:
        ray.kill(member.handle)
        member.handle = None
        self._members.remove(member)
        if not self._members:
            raise DeviceError(f"no actor is left: the last one {what}", hint="Go on with --resume")
        self._on_note(f"{member} {what}")

    def _look_for_nodes(self) -> None:
        """Start actors on nodes that have joined, with GPUs where those of the others have them."""
        now = time.monotonic()
        if now - self._looked_at < _NODES_SECONDS:
            return
        self._looked_at = now
        nodes = alive_nodes()
        new = {node.id for node in nodes} - self._nodes
        if not new:
            return
        self._nodes |= new
        try:
            slots = plan_slots(nodes, self._options)
        except UsageError:
            return
        for slot in slots:
            if slot.node.id in new and bool(slot.num_gpus) == bool(self._all[0].slot.num_gpus):
                member = _Member(slot, is_late=True)
                self._all.append(member)
                self._members.append(member)
                self._start(member)
                self._on_note(f"{slot.node.name} has joined, with {slot.num_cpus} CPUs for an actor")

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
