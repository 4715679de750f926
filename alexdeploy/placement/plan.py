"""From devices and a demand to replicas: a pure function."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.engines.base import Backend
from alexdeploy.placement.devices import Device


@dataclass(frozen=True, kw_only=True, slots=True)
class Replica:
    """One engine on one device. `batch_size` counts images; `num_threads` are CPU threads, None for a GPU."""

    device: Device
    backend: Backend
    batch_size: int
    num_threads: int | None = None
