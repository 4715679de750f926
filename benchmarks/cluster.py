"""What a cluster costs: `predict --ray local` with an actor for each core, against `predict` with a replica for each.

    python -m benchmarks.cluster MODEL INPUT... [--views 1] [--rounds 3] [--backend NAME]

Each side runs in a process of its own, in turns, and classifies all inputs once, to a Parquet file or to parts. What is
measured is images/s once running: from the open model, of Ray from the first chunk that an actor gets, to the last row
that is written, with the time in which some actors have nothing left to do. Prints a line for each round, the medians,
and what was put into Ray's object store, of which the model is sent to each node once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from alexdeploy import PredictOptions, Predictor
from alexdeploy.core.processors import available_processors
from alexdeploy.core.stores.copies import MODEL_FILES
from alexdeploy.inference.writers import Shape, write_rows
from benchmarks.process import ROOT

_DUMP_SECONDS = 0.5
"""How often Ray is asked to write down what its object store was given."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one side did; `store_bytes` is what was put into Ray's object store, 0 without Ray."""

    num_images: int
    seconds: float
    store_bytes: int = 0

    @property
    def images_per_second(self) -> float:
        return self.num_images / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--views", type=int, default=1, choices=(1, 5, 10))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default=None)
    parser.add_argument("--side", choices=tuple(_SIDES), help="measure this one, in this process")
    given = parser.parse_args()
    if given.side is not None:
        options = PredictOptions(num_views=given.views, backend=given.backend)
        with tempfile.TemporaryDirectory() as workspace:
            found = _SIDES[given.side](given.model, given.inputs, Path(workspace), options)
        print(msgspec.json.encode(found).decode())
        return
    model_bytes = sum(path.stat().st_size for path in given.model.iterdir() if MODEL_FILES.fullmatch(path.name))
    ratios = []
    for number in range(given.rounds):
        sides = list(_SIDES)[:: 1 if number % 2 == 0 else -1]
        results = {side: _in_process(side) for side in sides}
        ours, theirs = results["ray"], results["predict"]
        ratios.append(ours.images_per_second / theirs.images_per_second)
        print(
            f"{ours.num_images:,} images: ray {ours.images_per_second:,.1f} images/s, predict "
            f"{theirs.images_per_second:,.1f} images/s, {ratios[-1]:.2f} of it; object store: {model_bytes:,} bytes "
            f"for the model, {(ours.store_bytes - model_bytes) / ours.num_images:,.1f} more for each image",
            flush=True,
        )
    print(f"ray: {statistics.median(ratios):.2f} of predict ({min(ratios):.2f} to {max(ratios):.2f})")


def _in_process(side: str) -> Result:
    command = [sys.executable, "-m", "benchmarks.cluster", *sys.argv[1:], "--side", side]
    # By default, Ray lets its workers give way to all others on the machine.
    own = {"RAY_event_stats_print_interval_ms": f"{_DUMP_SECONDS * 1000:.0f}", "RAY_worker_niceness": "0"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Result)


def _predict(model: Path, inputs: Sequence[str], workspace: Path, options: PredictOptions) -> Result:
    num_replicas = available_processors()
    options = dataclasses.replace(options, devices=",".join(["cpu"] * num_replicas))
    with (workspace / "rows.parquet").open("wb") as file, Predictor(model, options) as predictor:
        shape = Shape(classes=predictor.info.classes, top_k=predictor.top_k, num_views=options.num_views)
        began = time.monotonic()
        write_rows(predictor.predict(inputs), file, "parquet", shape)
        seconds = time.monotonic() - began
        return Result(num_images=sum(each.num_images for each in predictor.replicas), seconds=seconds)


def _ray(model: Path, inputs: Sequence[str], workspace: Path, options: PredictOptions) -> Result:
    import ray

    from alexdeploy.cluster.classify import ClusterOptions, classify
    from alexdeploy.cluster.connection import LOCAL, connected

    options = dataclasses.replace(options, devices="cpu", num_threads=1)
    with connected(LOCAL):
        summary = classify(inputs, model, workspace / "rows", ClusterOptions(predict=options))
        time.sleep(4 * _DUMP_SECONDS)
        log = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1] / "logs" / "raylet.out"
        found = re.findall(r"num bytes created total: (\d+)", log.read_text(encoding="utf-8"))
    return Result(
        num_images=summary.num_rows,
        seconds=max(actor.busy_seconds for actor in summary.actors),
        store_bytes=int(found[-1]),
    )


_SIDES = {"predict": _predict, "ray": _ray}

if __name__ == "__main__":
    main()
