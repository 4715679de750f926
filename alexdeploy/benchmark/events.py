"""The events of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from alexdeploy.core.events import Notice


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step begins: `num_done` of `num_total` steps of its phase are done. `number` is the round, from 1."""

    phase: Literal["opening", "comparing", "measuring", "profiling"]
    name: str
    num_done: int = 0
    num_total: int = 1
    number: int = 0

    def __str__(self) -> str:
        return f"{f'round {self.number}' if self.number else self.phase}: {self.name}"


Event = Step | Notice
OnEvent = Callable[[Event], None]
