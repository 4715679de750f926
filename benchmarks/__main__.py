"""Measure alexdeploy against other software, and how its costs grow; write the figures down.

    python -m benchmarks [PHOTOGRAPHS...] [--model DIR] [--judge DIR --judge-images DIR] [--train-images DIR]
                         [--parts peers,inputs,...]

Parts: peers (throughput against PyTorch, ONNX Runtime, a DataLoader and benchmark_app), inputs (100 to 10,000), batches
(1 to 64 images), sizes (thumbnails to 24 megapixels), decisions (do 24 megapixels get the class that decoding in full
gives), startup (one photograph from a cold process, against a bare OpenVINO script), loader (training's pixels from
--train-images and from packed sets of them; left out without that), training (a step against a plain loop). What needs
a package that is not installed is left out. All that is compared runs in turns, in processes of its own. Figures go to
benchmarks/results/<machine>.json, where those of parts that were not asked for stay, each with the versions and the
load that it was measured with, and the tables to docs/performance.md. With no photographs 500x375 JPEGs are rendered,
with no model the full network gets random weights; --judge is a trained model for the decisions. Run it on a machine
that does nothing else. On a GPU, build the engines first: alexdeploy build MODEL --fp16 --int8.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from alexdeploy.core.artifacts import atomic_write
from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import Backend, is_installed
from alexdeploy.inference.bench_plan import load_average, machine_facts
from alexdeploy.placement.devices import cpu_device, survey_gpus
from benchmarks.growth import GrowthOptions, measure_batches, measure_decisions, measure_inputs, measure_sizes
from benchmarks.network import check_model, copy_model, make_model
from benchmarks.peers import PeerOptions, measure_peers
from benchmarks.photographs import find_photographs, render_photographs
from benchmarks.process import ROOT, Process
from benchmarks.report import bars, markdown, write_block
from benchmarks.sides import Setup
from benchmarks.startup import StartupOptions, cpu_precisions, measure_startup
from benchmarks.training import TrainingOptions, measure_loader, measure_training

Say = Callable[[str], None]
Work = Callable[[], dict[str, Any]]

_OF_FOLDER = ("peers", "inputs", "batches", "sizes", "decisions", "startup")
"""The parts that need a model folder and photographs."""

PARTS = (*_OF_FOLDER, "loader", "training")


def main() -> None:
    given = _arguments()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    path = given.results / f"{machine_name()}.json"
    with tempfile.TemporaryDirectory(prefix="alexdeploy-benchmarks-") as temporary:
        workspace = Path(temporary)
        # Compiled models of this run: nothing of another version, and nothing left behind.
        os.environ["ALEXDEPLOY_CACHE"] = str(workspace / "cache")
        found = measure(_plan(given, workspace, say), None if given.quick else path)
    if given.quick:
        print(f"A quick try, of which nothing is written: its figures mean nothing.\n\n{markdown(found)}")
        return
    print(markdown(found))
    write_block(given.docs, markdown(found))
    missed = [bar.name for bar in bars(found) if not bar.is_met]
    say(f"wrote {path} and {given.docs}; bars missed: {len(missed)}{''.join(f'; {name}' for name in missed)}")


def measure(parts: Mapping[str, Work], path: Path | None) -> dict[str, Any]:
    """Do the parts one after the other: what they and those in the file `path` found, which is written after each.

    Each has its command and the machine as it was: versions, and the load before and after.
    """
    found: dict[str, Any] = {}
    if path is not None and path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
    for part, work in parts.items():
        load = load_average()
        figures = work()
        machine = machine_facts(filter(is_installed, get_args(Backend)), load)
        found[part] = figures | {"command": _command(), "machine": dataclasses.asdict(machine)}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(found, indent=1).encode() + b"\n")
    return found


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
    parser.add_argument("--train-images", type=Path, help="a folder with a folder of photographs for each class")
    parser.add_argument("--images", type=int, default=64, help="how many photographs take part")
    parser.add_argument("--judged", type=int, default=200, help="how many photographs are enlarged for the decisions")
    parser.add_argument("--rounds", type=int, default=7, help="rounds against peers; of start-ups three times as many")
    parser.add_argument("--growth-rounds", type=int, default=3, help="rounds of everything else")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a turn against peers is, about")
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


def _plan(given: argparse.Namespace, workspace: Path, say: Say) -> dict[str, Work]:
    """What was asked for, in the order of PARTS; what lacks something is left out with a word."""
    work = _training_work(given, workspace, say)
    if set(given.parts) & set(_OF_FOLDER):
        work |= _folder_work(given, workspace, say)
    return {part: work[part] for part in PARTS if part in given.parts and part in work}


def _training_work(given: argparse.Namespace, workspace: Path, say: Say) -> dict[str, Work]:
    options = TrainingOptions(num_rounds=given.rounds, seed=given.seed, device=_device())
    if given.quick:
        options = dataclasses.replace(
            options, num_rounds=1, num_images=16, loader_batch_size=8, step_batch_size=2, seconds=0.1
        )
    work: dict[str, Work] = {}
    if given.train_images is not None:
        work["loader"] = lambda: measure_loader(given.train_images.absolute(), workspace, options, say)
    elif "loader" in given.parts:
        say("loader is left out: there is no --train-images")
    if is_installed("torch"):
        work["training"] = lambda: measure_training(options, say)
    elif "training" in given.parts:
        say("training is left out: torch is not installed")
    return work


def _folder_work(given: argparse.Namespace, workspace: Path, say: Say) -> dict[str, Work]:
    """The work on a model and photographs, with both made ready."""
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
        device=_device(),
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
    if set(given.parts) & {"peers", "inputs", "batches", "sizes"}:
        say("compiling")
        # What compiles a graph holds more memory than what finds it compiled, as all runs but the first do.
        for precision in peers.precisions:
            with Process(Setup(side="ours", model=str(folder.path), precision=precision)):
                pass
    work = {
        "peers": lambda: measure_peers(folder, workspace, peers, say),
        "inputs": lambda: measure_inputs(folder, growth, say),
        "batches": lambda: measure_batches(folder, growth, say),
        "sizes": lambda: measure_sizes(folder, workspace, growth, say),
        "decisions": lambda: measure_decisions(judge, judged, "fp32", say),
    }
    if is_installed("openvino"):
        startup = StartupOptions(
            photograph=files[0],
            precisions=cpu_precisions(folder, has_bfloat16=_has_bfloat16()),
            num_rounds=1 if given.quick else 3 * given.rounds,
            seed=given.seed,
        )
        work["startup"] = lambda: measure_startup(folder, workspace, startup, say)
    elif "startup" in given.parts:
        say("startup is left out: openvino is not installed")
    return work


def _device() -> str:
    return "cuda" if survey_gpus().devices else "cpu"


def _precisions() -> tuple[str, ...]:
    """What this machine computes in: on a CPU FP16 is FP32, and not every one has bfloat16."""
    if survey_gpus().devices:
        return ("fp32", "fp16", "int8")
    return ("fp32", "bf16", "int8") if _has_bfloat16() else ("fp32", "int8")


def _has_bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _command() -> str:
    """As it was typed, with the folders' own names only: where they lie says nothing to others."""
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", *words])


def machine_name() -> str:
    """What a machine's file is called: its GPU or processor, and how many processors."""
    gpus = survey_gpus().devices
    words = re.sub(r"[^a-z0-9]+", "-", (gpus[0] if gpus else cpu_device()).name.lower()).strip("-")
    return f"{words}-{available_processors()}-processors"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the parts that were measured are written.", file=sys.stderr)
        sys.exit(130)
    except AlexDeployError as exc:
        sys.exit("\n".join(filter(None, (exc.message, exc.cure))))
