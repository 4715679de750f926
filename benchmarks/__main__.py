"""Measure alexdeploy against other software, and how its costs grow; write the figures down.

    python -m benchmarks [PHOTOGRAPHS...] [--model DIR] [--judge DIR --judge-images DIR] [--parts peers,inputs,...]

Parts: peers (throughput against PyTorch, ONNX Runtime, a DataLoader and benchmark_app), inputs (100 to 10,000), batches
(1 to 64 images), sizes (thumbnails to 24 megapixels), decisions (do 24 megapixels get the class that decoding in full
gives). All that is compared runs in turns, in processes of its own. Figures go to benchmarks/results/<machine>.json,
where those of parts that were not asked for stay, and the tables to docs/performance.md. With no photographs 500x375
JPEGs are rendered, with no model the full network gets random weights; --judge is a trained model for the decisions.
Run it on a machine that does nothing else. On a GPU, build the engines first: alexdeploy build MODEL --fp16 --int8.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from alexdeploy.core.artifacts import atomic_write
from alexdeploy.core.processors import available_processors
from alexdeploy.placement.devices import cpu_device, survey_gpus
from benchmarks.growth import GrowthOptions, measure_batches, measure_decisions, measure_inputs, measure_sizes
from benchmarks.network import check_model, copy_model, make_model
from benchmarks.peers import PeerOptions, measure_peers
from benchmarks.photographs import find_photographs, render_photographs
from benchmarks.process import ROOT, Process
from benchmarks.report import bars, markdown, write_block
from benchmarks.sides import Setup

Work = Callable[[], dict[str, Any]]

PARTS = ("peers", "inputs", "batches", "sizes", "decisions")
_PACKAGES = ("openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch", "pillow", "numpy")


def main() -> None:
    given = _arguments()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    machine = machine_facts()
    path = given.results / f"{machine_name(machine)}.json"
    found: dict[str, Any] = {"machine": machine}
    # Parts that were measured with the same versions stay.
    if not given.quick and path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        found = before if before["machine"] == machine else found
    with tempfile.TemporaryDirectory(prefix="alexdeploy-benchmarks-") as temporary:
        workspace = Path(temporary)
        # Compiled models of this run: nothing of another version, and nothing left behind.
        os.environ["ALEXDEPLOY_CACHE"] = str(workspace / "cache")
        for part, work in _plan(given, workspace, say).items():
            load = load_average()
            found[part] = work() | {"command": _command(), "load": [load, load_average()]}
            if not given.quick:
                _write(path, found)
    if given.quick:
        print(f"A quick try, of which nothing is written: its figures mean nothing.\n\n{markdown(found)}")
        return
    print(markdown(found))
    write_block(given.docs, markdown(found))
    missed = [bar.name for bar in bars(found) if not bar.is_met]
    say(f"wrote {path} and {given.docs}; bars missed: {len(missed)}{''.join(f'; {name}' for name in missed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", nargs="*", help="files or folders; rendered ones where none are given")
    parser.add_argument("--parts", default=",".join(PARTS), help="which to measure, with commas between; default: all")
    parser.add_argument(
        "--model", type=Path, help="the full alexnet with FP32 and INT8 graphs; default: random weights"
    )
    parser.add_argument("--judge", type=Path, help="a trained model for the decisions; default: the --model")
    parser.add_argument("--judge-images", nargs="+", default=[], help="photographs that it knows; default: PHOTOGRAPHS")
    parser.add_argument("--images", type=int, default=64, help="how many photographs take part")
    parser.add_argument("--judged", type=int, default=200, help="how many photographs are enlarged for the decisions")
    parser.add_argument("--rounds", type=int, default=7, help="rounds against the peers")
    parser.add_argument("--growth-rounds", type=int, default=3, help="rounds of everything else")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a turn is, about")
    parser.add_argument("--seed", type=int, default=0, help="of the order in each round")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "performance.md")
    parser.add_argument("--quick", action="store_true", help="try everything on a few images, and write nothing")
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return given


def _plan(given: argparse.Namespace, workspace: Path, say: Callable[[str], None]) -> dict[str, Work]:
    """What was asked for, in the order of PARTS, with the model and the photographs made ready."""
    num_images = 8 if given.quick else given.images
    if given.photographs:
        files = find_photographs(given.photographs, num_images)
    else:
        files = render_photographs(workspace / "photographs", num_images)
    if given.model is None:
        say("making the full network with random weights")
        folder = make_model(workspace / "models" / "alexnet", files)
    else:
        folder = copy_model(given.model, workspace / "models" / "alexnet")
    check_model(folder)
    peers = PeerOptions(
        files=tuple(files),
        precisions=_precisions(),
        num_rounds=given.rounds,
        seconds=given.seconds,
        seed=given.seed,
        device="cuda" if survey_gpus().devices else "cpu",
    )
    growth = GrowthOptions(files=tuple(files), num_rounds=given.growth_rounds, seed=given.seed)
    if given.quick:
        peers = dataclasses.replace(peers, num_rounds=1, seconds=0.5, num_tuning_files=2, num_tuning_rounds=1)
        growth = dataclasses.replace(
            growth, num_rounds=1, counts=(10, 20), batch_sizes=(1, 4), num_batch_images=8, num_large=2
        )
    judge = folder if given.judge is None else copy_model(given.judge, workspace / "models" / "judge")
    judged = find_photographs(given.judge_images, sys.maxsize) if given.judge_images else files
    num_judged = min(len(judged), 4 if given.quick else given.judged)
    # Evenly over all of them, which lie class by class.
    judged = [judged[index * len(judged) // num_judged] for index in range(num_judged)]
    say("compiling")
    # What compiles a graph holds more memory than what finds it compiled, as all runs but the first do.
    for precision in peers.precisions:
        with Process(Setup(side="ours", model=str(folder.path), precision=precision)):
            pass
    work: dict[str, Work] = {
        "peers": lambda: measure_peers(folder, workspace, peers, say),
        "inputs": lambda: measure_inputs(folder, growth, say),
        "batches": lambda: measure_batches(folder, growth, say),
        "sizes": lambda: measure_sizes(folder, workspace, growth, say),
        "decisions": lambda: measure_decisions(judge, judged, "fp32", say),
    }
    return {part: work[part] for part in PARTS if part in given.parts}


def _precisions() -> tuple[str, ...]:
    """What this machine computes in: on a CPU FP16 is FP32, and not every one has bfloat16."""
    if survey_gpus().devices:
        return ("fp32", "fp16", "int8")
    import openvino

    has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16", "int8") if has_bfloat16 else ("fp32", "int8")


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(found, indent=1).encode() + b"\n")


def _command() -> str:
    """As it was typed, with the folders' own names only: where they lie says nothing to others."""
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", *words])


def machine_facts() -> dict[str, Any]:
    versions = {"Python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    device = cpu_device()
    return {
        "platform": platform.platform(),
        "processor": device.name,
        "num_processors": available_processors(),
        "memory_bytes": device.total_bytes,
        "gpus": [gpu.name for gpu in survey_gpus().devices],
        "versions": versions,
    }


def load_average() -> float:
    return round(os.getloadavg()[0], 2)


def machine_name(machine: dict[str, Any]) -> str:
    """What a machine's file is called: its GPU or processor, and how many processors."""
    name = machine["gpus"][0] if machine["gpus"] else machine["processor"]
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{words}-{machine['num_processors']}-processors"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the parts that were measured are written.", file=sys.stderr)
        sys.exit(130)
