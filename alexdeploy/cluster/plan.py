"""How many actors the nodes of a cluster carry, and with what: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alexdeploy.core.errors import UsageError
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.plan import GPU_BACKENDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node as Ray describes it; `name` is its host."""

    id: str
    name: str
    resources: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where an actor runs, and what it gets."""

    node: Node
    num_cpus: int
    num_gpus: int


def plan_slots(nodes: Sequence[Node], options: PredictOptions) -> list[Slot]:
    """One actor for each GPU, else one for each `num_threads` CPUs of a node (None: one actor with all of them).

    CPUs are used where no node has a GPU, or with `devices="cpu"`. Raises UsageError if no node can carry an actor,
    and for devices by name, which Ray gives out.
    """
    if options.devices not in (None, "cpu"):
        raise UsageError(
            f"--devices {options.devices}: on a cluster, Ray gives the devices", hint="Only: --devices cpu"
        )
    wants_gpus = options.devices is None and (options.backend is None or options.backend in GPU_BACKENDS)
    slots = []
    if wants_gpus:
        for node in nodes:
            num_gpus, num_cpus = int(node.resources.get("GPU", 0)), int(node.resources.get("CPU", 0))
            share = options.num_threads or (num_cpus // num_gpus if num_gpus else 0)
            fitting = min(num_gpus, num_cpus // share) if share else 0
            slots += [Slot(node=node, num_cpus=share, num_gpus=1)] * fitting
    if not slots:
        for node in nodes:
            num_cpus = int(node.resources.get("CPU", 0))
            share = options.num_threads or num_cpus
            slots += [Slot(node=node, num_cpus=share, num_gpus=0)] * (num_cpus // share if share else 0)
    if not slots:
        found = ", ".join(f"{node.name} {node.resources.get('CPU', 0):g}" for node in nodes) or "no nodes"
        raise UsageError(
            f"no node of the cluster has {options.num_threads or 1} CPUs for an actor: {found}",
            hint="Ask for fewer: --threads N",
        )
    return slots
