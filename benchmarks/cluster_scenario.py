"""What is simulated, and what comes of it: costs, a job on a cluster, and its run. Times are in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds that each takes; those of an image and a chunk on one core.

    The actors are started after `begin_seconds`; opening the model takes `start_seconds`, in an actor that replaces
    another one on its node `restart_seconds`. `chunk_spread` and `start_spread` are the standard deviations of the
    logarithms. `wait_seconds` is for each chunk under way when the driver waits for a part, `manifest_seconds` for each
    part in the manifest.
    """

    image_seconds: float
    chunk_seconds: float = 0.0
    chunk_spread: float = 0.0
    start_seconds: float = 0.0
    start_spread: float = 0.0
    restart_seconds: float = 0.0
    begin_seconds: float = 0.0
    name_seconds: float = 0.0
    part_seconds: float = 0.0
    wait_seconds: float = 0.0
    manifest_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A job and a cluster.

    `hosts` has the machine of each node, whose `cores` its nodes share; None: each has its own. `failure_seconds` is
    the mean time to the failure of a node; it is replaced after `replace_seconds`, or never. `kills` are the parts
    after which an actor ("actor") or a node ("node"), by its number, ends. The driver waits `page_seconds` for each
    1,000 names that a bucket lists, and `check_seconds` for the store to say that it has a part.
    """

    num_images: int
    rows_per_part: int = 1024
    num_nodes: int = 1
    cores: int = 1
    hosts: tuple[int, ...] | None = None
    slow_share: float = 0.0
    slow_factor: float = 1.0
    failure_seconds: float = math.inf
    replace_seconds: float = math.inf
    requests_per_second: float = math.inf
    latency_seconds: float = 0.0
    page_seconds: float = 0.0
    check_seconds: float = 0.0
    kills: tuple[tuple[int, str, int], ...] = ()


@dataclass(kw_only=True, slots=True)
class Outcome:
    """`arrivals` has when each part was complete, and known to the driver. The shares are of `seconds`.

    The first chunk was begun at `opened_at`; `lost_core_seconds` were spent on chunks that were done again.
    `is_complete`: some nodes were left.
    """

    seconds: float
    num_images: int
    opened_at: float
    arrivals: list[float]
    driver_share: float
    node_share: float
    store_share: float
    lost_core_seconds: float
    num_failures: int
    is_complete: bool

    @property
    def images_per_second(self) -> float:
        return self.num_images / self.seconds if self.seconds else 0.0
