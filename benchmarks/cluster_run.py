"""One run of `classify` on a Ray cluster of this machine, in a process of its own: python -m benchmarks.cluster_run

Reads a ClusterSetup as JSON from stdin and prints what happened when, a ClusterRun. Each node is a raylet with one CPU
and a cache of its own, and it and its actor are kept on one processor: as long as there are no more nodes than
processors, they do not share one. The driver and Ray's head run on all of them.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil  # type: ignore[import-untyped]

from alexdeploy import PredictOptions
from alexdeploy.core.spec import Precision

_ADDRESS = "127.0.0.2"
"""Ray replaces 127.0.0.1 by an address of the network."""

_STORE_BYTES = 1 << 30


class ClusterSetup(msgspec.Struct, frozen=True, kw_only=True):
    """`num_images` of the `files` again and again; `killed` ends one actor, or one node, after so many parts."""

    model: str
    files: tuple[str, ...]
    num_images: int
    num_nodes: int
    rows_per_part: int
    precision: Precision = "fp32"
    killed: Literal["actor", "node"] | None = None
    killed_after: int = 0


class ClusterRun(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds are since `classify` was called. `parts`: when each was known to the driver, and how long it took.

    `hosts` has the processor of each node; the next three words are those of the setup. At `begun_at` the actors were
    about to be started.
    """

    hosts: tuple[int, ...]
    rows_per_part: int
    killed: str | None
    killed_after: int
    begun_at: float
    parts: list[tuple[float, float]]
    num_images: int
    num_restarts: int
    killed_at: float | None
    seconds: float


def main() -> None:
    setup = msgspec.json.decode(sys.stdin.buffer.read(), type=ClusterSetup)
    # What Ray's processes print is not for the reader of this one's result.
    result = os.dup(1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="alexdeploy-cluster-") as folder:
        run = _run(setup, Path(folder))
    os.write(result, msgspec.json.encode(run) + b"\n")


def _run(setup: ClusterSetup, folder: Path) -> ClusterRun:
    from alexdeploy.cluster.classify import ClusterOptions, classify

    inputs = list(itertools.islice(itertools.cycle(setup.files), setup.num_images))
    options = ClusterOptions(
        predict=PredictOptions(num_threads=1, devices="cpu", precision=setup.precision),
        rows_per_part=setup.rows_per_part,
    )
    processors = sorted(os.sched_getaffinity(0))
    hosts = tuple(processors[index % len(processors)] for index in range(setup.num_nodes))
    parts: list[tuple[float, float]] = []
    begun_at = 0.0
    killed_at: float | None = None
    with _cluster(hosts, folder) as (cluster, nodes):

        def note(part: Any) -> None:
            nonlocal killed_at
            parts.append((time.monotonic() - began, part.seconds))
            if setup.killed is not None and len(parts) == setup.killed_after:
                killed_at = time.monotonic() - began
                if setup.killed == "node":
                    cluster.remove_node(nodes[-1], allow_graceful=False)
                else:
                    os.kill(_actors(nodes[-1])[0], signal.SIGKILL)

        def begin(num_kept: int) -> None:
            nonlocal begun_at
            begun_at = time.monotonic() - began

        began = time.monotonic()
        summary = classify(inputs, setup.model, folder / "rows", options, on_begin=begin, on_part=note)
        seconds = time.monotonic() - began
    return ClusterRun(
        hosts=hosts,
        rows_per_part=setup.rows_per_part,
        killed=setup.killed,
        killed_after=setup.killed_after,
        begun_at=begun_at,
        parts=parts,
        num_images=summary.num_rows,
        num_restarts=sum(actor.num_restarts for actor in summary.actors),
        killed_at=killed_at,
        seconds=seconds,
    )


@contextmanager
def _cluster(hosts: Sequence[int], folder: Path) -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs, and a node on each of the `hosts`; this process is connected to it."""
    # Workers of Ray are nice to others; the driver and the rest of the machine would then matter more than on a node.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "no_proxy": _ADDRESS}
    import ray
    from ray.cluster_utils import Cluster

    common = {"node_ip_address": _ADDRESS, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **common})
    try:
        nodes = []
        for number, host in enumerate(hosts):
            os.environ["ALEXDEPLOY_CACHE"] = str(folder / f"cache-{number}")
            nodes.append(cluster.add_node(num_cpus=1, **common))
            for process in _processes(nodes[-1]):
                for thread in process.threads():
                    os.sched_setaffinity(thread.id, {host})
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster, nodes
    finally:
        ray.shutdown()
        cluster.shutdown()


def _processes(node: Any) -> list[psutil.Process]:
    """The raylet of a node, and all that it has started."""
    (raylet,) = node.all_processes["raylet"]
    process = psutil.Process(raylet.process.pid)
    return [process, *process.children(recursive=True)]


def _actors(node: Any) -> list[int]:
    """Ray names the processes of actors after the class, and what it does."""
    return [process.pid for process in _processes(node) if (process.cmdline() or [""])[0].startswith("ray::Actor")]


if __name__ == "__main__":
    main()
