"""What torchrun tells a process that it has started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Which process of how many this is: `rank` of `size` in all, `local_rank` of `local_size` on this machine.

    At `host`:`port` is the store through which they find each other; `is_host` says that this one has to open it, as
    torchrun has not.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    is_host: bool = False


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What torchrun has put into the environment; None where nothing, or not all of it, is there."""
    try:
        rank = int(environment["RANK"])
        return Launch(
            rank=rank,
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment["LOCAL_WORLD_SIZE"]),
            host=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
            is_host=rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        )
    except (KeyError, ValueError):
        return None
