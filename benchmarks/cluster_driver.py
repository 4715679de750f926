"""What the driver of `predict --ray` does for each name, part, chunk under way, and part in the manifest.

Seconds are those of the processor that this process takes, with all of Ray's threads in it: other programs that hold
the machine do not count.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_UNDER_WAY = (2, 20, 200, 2000)
_NUM_NAMES = 20_000
_NUM_PARTS = 20_000
_NUM_CALLS = 100
_NAMES_PER_PART = 1024

Say = Callable[[str], None]


def measure_driver(num_rounds: int, say: Say) -> dict[str, Any]:
    """Medians over the rounds; `wait_seconds` by the number of chunks under way, a call with 1,024 names each."""
    import ray

    with tempfile.TemporaryDirectory(prefix="alexdeploy-driver-") as temporary:
        folder = Path(temporary)
        names = folder / "names"
        names.mkdir()
        for number in range(_NUM_NAMES):
            (names / f"{number:06}.jpg").touch()
        say("the driver: names")
        name_seconds = statistics.median(_listing(names) for _ in range(num_rounds))
        say("the driver: parts")
        calls = _calls(names, num_rounds)
        say("the driver: manifests")
        manifests = [_manifest(folder / f"rows-{number}") for number in range(num_rounds)]
    return {
        "ray": ray.__version__,
        "names_per_part": _NAMES_PER_PART,
        "name_seconds": name_seconds,
        "call_seconds": calls,
        "manifest_seconds": statistics.median(seconds for seconds, _, _ in manifests),
        "manifest_bytes": manifests[0][1],
        "memory_bytes": manifests[0][2],
    }


def _listing(names: Path) -> float:
    from alexdeploy.cluster.chunks import split
    from alexdeploy.images.sources import read_inputs

    began = time.process_time()
    num_names = sum(len(chunk.sources) for chunk in split(read_inputs([str(names)]), _NAMES_PER_PART))
    assert num_names == _NUM_NAMES
    return (time.process_time() - began) / num_names


def _calls(names: Path, num_rounds: int) -> dict[str, float]:
    """Give a chunk, wait for a part among so many that are under way, and get it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    from alexdeploy.cluster.chunks import split
    from alexdeploy.images.sources import read_inputs

    class Idle:
        """An actor that is given chunks, most of which it never completes."""

        async def run(self, chunk: Any, does_end: bool) -> Any:
            import asyncio

            if not does_end:
                await asyncio.Event().wait()
            return _part(chunk.number)

    chunks = list(split(read_inputs([str(names)]), _NAMES_PER_PART))
    found: dict[str, float] = {}
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        actor: Any = ray.remote(Idle).options(max_concurrency=max(NUM_UNDER_WAY) + 1).remote()
        under_way: list[Any] = []
        for number in NUM_UNDER_WAY:
            while len(under_way) < number - 1:
                under_way.append(actor.run.remote(chunks[0], does_end=False))
            costs = []
            for _ in range(num_rounds):
                ray.get(actor.run.remote(chunks[0], does_end=True))
                began = time.process_time()
                for chunk in itertools.islice(itertools.cycle(chunks), _NUM_CALLS):
                    reference = actor.run.remote(chunk, does_end=True)
                    while reference not in ray.wait([*under_way, reference], num_returns=1, timeout=1.0)[0]:
                        pass
                    ray.get(reference)
                costs.append((time.process_time() - began) / _NUM_CALLS)
            found[str(number)] = statistics.median(costs)
    finally:
        ray.shutdown()
    return found


def _manifest(folder: Path) -> tuple[float, float, float]:
    """Seconds, bytes of the file, and bytes of memory, for each part."""
    from alexdeploy.cluster.parts import MANIFEST, Output

    folder.mkdir()
    output = Output(folder, "parquet")
    tracemalloc.start()
    parts = [_part(number) for number in range(_NUM_PARTS)]
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    began = time.process_time()
    output.save({"top_k": 5}, parts, is_complete=True)
    seconds = time.process_time() - began
    return seconds / _NUM_PARTS, (folder / MANIFEST).stat().st_size / _NUM_PARTS, memory / _NUM_PARTS


def _part(number: int) -> Any:
    from alexdeploy.cluster.parts import Part

    return Part(
        number=number,
        inputs=f"{number:016x}",
        num_rows=_NAMES_PER_PART,
        num_errors=0,
        backend="openvino",
        artifact=f"sha256:{0:016x}",
        processor="AMD EPYC",
        versions={"alexdeploy": "0.1.0", "openvino": "2026.4.1", "pillow": "13.0.0", "numpy": "2.4.6"},
        node="ip-10-0-0-5.region.compute.internal",
        seconds=10.0,
    )
