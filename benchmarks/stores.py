"""What a store's latency costs: images/s of `predict` from files, by HTTP and from S3, in turns in one process.

    python -m benchmarks.stores MODEL [FOLDER] [--latency-ms 50] [--num-images 1000] [--rounds 5] [--threads N]
                                [--backend NAME]

FOLDER has JPEGs; without it, 500x375 ones are rendered. The server is a process of its own on this machine, so it takes
some of the processors' time. S3 is left out where s3fs is not installed. Prints a line for each round, and the medians
with the processor time of an image: all of this process, and the server's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from alexdeploy import Predictor
from alexdeploy.core.processors import available_processors
from benchmarks.photographs import render_photographs
from benchmarks.process import ROOT
from benchmarks.process_tree import cpu_seconds
from benchmarks.store_server import BUCKET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_processors())
    parser.add_argument("--backend", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        folder = given.folder
        if folder is None:
            folder = Path(workspace) / "photographs"
            render_photographs(folder, given.num_images)
        command = [sys.executable, "-m", "benchmarks.store_server", str(folder), str(given.latency_ms / 1000)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = f"http://127.0.0.1:{int(server.stdout.readline())}"
                names = sorted(path.name for path in folder.iterdir())
                inputs = {"files": [str(folder)], "http": [f"{url}/{name}" for name in names]}
                if importlib.util.find_spec("s3fs") is not None:
                    os.environ |= {
                        "AWS_ENDPOINT_URL": url,
                        "AWS_ACCESS_KEY_ID": "any",
                        "AWS_SECRET_ACCESS_KEY": "any",
                        "AWS_DEFAULT_REGION": "us-east-1",
                    }
                    inputs["s3"] = [f"s3://{BUCKET}/"]
                with Predictor(given.model, num_threads=given.threads, backend=given.backend) as predictor:
                    _measure(predictor, inputs, given.rounds, server.pid)
            finally:
                server.kill()


def _measure(predictor: Predictor, inputs: dict[str, list[str]], num_rounds: int, server: int) -> None:
    for each in inputs.values():
        _rate(predictor, each)
    ratios: dict[str, list[float]] = {name: [] for name in inputs}
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in inputs}
    for _ in range(num_rounds):
        rates = {}
        for name, each in inputs.items():
            before = time.process_time(), cpu_seconds(server)
            rates[name], num_images = _rate(predictor, each)
            costs[name].append(
                ((time.process_time() - before[0]) / num_images, (cpu_seconds(server) - before[1]) / num_images)
            )
        for name, rate in rates.items():
            ratios[name].append(rate / rates["files"])
        print(", ".join(f"{name} {rate:,.1f} images/s" for name, rate in rates.items()), flush=True)
    for name, found in ratios.items():
        ours, theirs = (statistics.median(each) * 1000 for each in zip(*costs[name], strict=True))
        print(
            f"{name}: {statistics.median(found):.2f} of files ({min(found):.2f} to {max(found):.2f}), {ours:.2f} ms "
            f"of the processors for an image, and {theirs:.2f} ms of the server's"
        )


def _rate(predictor: Predictor, inputs: Sequence[str]) -> tuple[float, int]:
    began = time.monotonic()
    with closing(predictor.predict(inputs)) as rows:
        errors = [row.error for row in rows]
    if any(errors):
        raise SystemExit(f"{sum(map(bool, errors))} images failed: {next(filter(None, errors))}")
    return len(errors) / (time.monotonic() - began), len(errors)


if __name__ == "__main__":
    main()
