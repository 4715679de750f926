"""The devices of this machine: its CPU and its NVIDIA GPUs, by UUID as the driver names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """`index` counts devices of one kind, as the driver does. A CPU has no UUID. Memory in bytes, None if unknown."""

    kind: Literal["cpu", "cuda"]
    index: int
    uuid: str = ""
    name: str = ""
    compute_capability: tuple[int, int] | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    driver: str | None = None

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"
