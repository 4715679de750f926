"""The environment that torchrun sets for a process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Position of this process: `rank` of `size` in total, `local_rank` of `local_size` on this machine.

    `host`:`port` is the rendezvous store; `is_host` means that this process must open it, because torchrun has not.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    is_host: bool = False


def launched(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch described by torchrun's environment variables; None unless all of them are set."""
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
