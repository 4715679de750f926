"""The server where it gets more than it can do, runs for long, loses a replica, and is killed and started again."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexdeploy import ModelFolder
from alexdeploy.benchmark.statistics import percentile
from benchmarks.load import Answers, Load, send
from benchmarks.process_tree import resident_bytes, tree
from benchmarks.server import open_server, write_requests
from benchmarks.serving import FEW, MANY

Say = Callable[[str], None]

_SETTLED_SHARE = 0.1
"""Memory grows until every pool and cache is in use; what it is after this share of the work is the beginning."""

_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class EnduranceOptions:
    """`files` are photographs. A turn takes `seconds`, too much is sent for 15 times as long."""

    files: tuple[str, ...]
    num_requests: int = 100_000
    num_restarts: int = 7
    seconds: float = 4.0
    seed: int = 0


def measure_endurance(folder: ModelFolder, workspace: Path, options: EnduranceOptions, say: Say) -> dict[str, Any]:
    """What becomes of requests with one view, of memory in bytes, and of the time to the first answer in seconds."""
    files = write_requests(folder, options.files, workspace / "endurance")["JPEG"]
    return {
        "model": folder.spec().name,
        "overload": _overload(folder, files, options, say),
        "killed": _killed_replica(folder, files, options, say),
        "restart_seconds": _restarts(folder, options, say),
        "long": _long(folder, files, options, say),
    }


def _overload(folder: ModelFolder, files: tuple[str, ...], options: EnduranceOptions, say: Say) -> dict[str, Any]:
    """Requests at twice the rate that the server reached before, at random times, for 15 times as long."""
    with open_server(folder, 1) as server:
        load = Load(port=server.port, files=files, seconds=options.seconds, num_clients=MANY, seed=options.seed)
        send(load)
        rate = send(load).per_second
        say(f"endurance: twice {rate:.0f} requests/s")
        twice = Load(
            port=server.port,
            files=files,
            seconds=15 * options.seconds,
            requests_per_second=2 * rate,
            seed=options.seed,
        )
        sampled: list[int] = []
        with ThreadPoolExecutor(1) as clients:
            sent = clients.submit(send, twice)
            while not sent.done():
                sampled.append(resident_bytes(server.pid))
                time.sleep(_SAMPLE_SECONDS)
            answers = sent.result()
        num_images = server.most_held()
    say(f"endurance: {_statuses(answers.statuses)}, p99 {percentile(answers.latencies_ms, 99):.0f} ms")
    return {
        "capacity_per_second": rate,
        "requests_per_second": 2 * rate,
        "seconds": answers.seconds,
        "statuses": _statuses(answers.statuses),
        "answered_per_second": answers.per_second,
        "p50_ms": percentile(answers.latencies_ms, 50),
        "p99_ms": percentile(answers.latencies_ms, 99),
        # As many images as are accepted at a time, at the rate at which they were answered.
        "bound_ms": 1e3 * num_images / answers.per_second,
        "resident_bytes": [sampled[round(len(sampled) * _SETTLED_SHARE)], sampled[-1]],
    }


def _long(folder: ModelFolder, files: tuple[str, ...], options: EnduranceOptions, say: Say) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    with open_server(folder, 1) as server:
        sampled = []
        load = Load(port=server.port, files=files, seconds=5 * options.seconds, num_clients=MANY)
        while statuses.total() < options.num_requests:
            say(f"endurance: {statuses.total():,} of {options.num_requests:,} requests")
            statuses.update(send(load).statuses)
            if statuses.total() >= _SETTLED_SHARE * options.num_requests:
                sampled.append(resident_bytes(server.pid))
    return {"statuses": _statuses(statuses), "resident_bytes": [sampled[0], sampled[-1]]}


def _killed_replica(folder: ModelFolder, files: tuple[str, ...], options: EnduranceOptions, say: Say) -> dict[str, Any]:
    """SIGKILL to one of two replicas while clients wait for their answers."""
    with open_server(folder, 1, devices="cpu,cpu") as server, ThreadPoolExecutor(1) as clients:
        first, *_ = replicas = tree(server.pid)[1:]
        say(f"endurance: one of {len(replicas)} replicas is killed")
        sent = clients.submit(send, Load(port=server.port, files=files, seconds=3 * options.seconds, num_clients=FEW))
        time.sleep(options.seconds)
        os.kill(first, signal.SIGKILL)
        answers: Answers = sent.result()
        say(f"endurance: {_statuses(answers.statuses)}")
        return {
            "statuses": _statuses(answers.statuses),
            "num_replicas": [len(replicas), len(tree(server.pid)) - 1],
            "longest_ms": max(answers.latencies_ms),
        }


def _restarts(folder: ModelFolder, options: EnduranceOptions, say: Say) -> list[float]:
    """Each server is killed without warning; what it compiled is in the cache of the next."""
    seconds = []
    for _ in range(options.num_restarts + 1):
        with open_server(folder, 1) as server:
            seconds.append(server.opened_seconds)
            say(f"endurance: ready after {seconds[-1]:.2f} s")
            os.kill(server.pid, signal.SIGKILL)
    return seconds[1:]


def _statuses(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(counts.items())}
