"""Measure alexdeploy against other software, and how its costs grow; write the figures down.

    python -m benchmarks [PHOTOGRAPHS...] [--model DIR] [--judge DIR --judge-images DIR] [--train-images DIR]
                         [--calibrate DIR] [--parts peers,inputs,...] [--docs docs/performance.md]

Parts: peers (throughput of ten views against OpenVINO tuned by hand, with NNCF's INT8, against ONNX Runtime, PyTorch, a
DataLoader as timm has it, and benchmark_app), one-view (the same with one view), answers (how many differ from FP32's,
of ours and of those, by each --judge on --judge-images; left out without --calibrate), inputs (100 to 10,000), batches
(1 to 64 images), sizes (thumbnails, photographs, the same enlarged to 24 megapixels), storage (one view from files,
smaller files and packed sets), decisions (do the enlarged get the class that decoding in full gives), startup (one
photograph from a cold process, against a bare OpenVINO script), loader (training's pixels from --train-images and from
packed sets of them; left out without that), training (a step against a plain loop), serving (a server's costs beside
decoding and the engine, its throughput, its latencies), endurance (a server with twice the requests it can answer,
100,000 of them, a replica killed, the server killed), triton (a server's
cost against Triton's; left out without --triton). What needs a package that is not installed is left out; NNCF's is
nncf. All that is compared runs in turns, in processes of its own; peers and one-view have all of them open at once and
take 13 GB of memory. A cluster has measurements of its own: python -m benchmarks.cluster.

Figures go to benchmarks/results/<machine>.json, where those of parts that were not asked for stay, each with its date,
its commit, the versions and the load that it was measured with; the tables are printed, and those of all machines that
have a file there are put into the page --docs.
With no photographs 500x375 JPEGs are rendered, with no model the full network gets random weights; --judge are trained
models, of which the first makes the decisions and is served. Run it on a machine that does nothing else.

On a GPU, give a --model and build the engines first: those for batches of 8, which most parts take, and those for the
other parts' larger ones.

    alexdeploy build MODEL --tencrop --max-batch 8           and --max-batch 64
    alexdeploy build MODEL --fp16 --tencrop --max-batch 8
    alexdeploy build MODEL --int8 --tencrop --max-batch 8    and --max-batch 64
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from alexdeploy import ModelFolder
from alexdeploy.benchmark.plan import load_average
from alexdeploy.core.errors import AlexDeployError
from alexdeploy.engines.base import is_installed
from alexdeploy.reports.page import check_page_path
from benchmarks.answers import AnswerOptions, measure_answers
from benchmarks.endurance import EnduranceOptions, measure_endurance
from benchmarks.growth import (
    BATCH_SIZES,
    GrowthOptions,
    measure_batches,
    measure_decisions,
    measure_inputs,
    measure_sizes,
)
from benchmarks.latency_plot import draw_latencies, plot_name
from benchmarks.machine import (
    PEERS_BYTES,
    DeviceKind,
    check_memory,
    choose_device,
    free_memory,
    has_bfloat16,
    machine_name,
    precisions,
)
from benchmarks.network import check_model, copy_model, list_of, make_model
from benchmarks.peer_triton import measure_triton
from benchmarks.peers import BATCH_SIZE, PeerOptions, measure_peers
from benchmarks.photographs import find_photographs, render_photographs
from benchmarks.process import ROOT, Process
from benchmarks.raw_tensorrt import ten_view_engine
from benchmarks.report import check_page, markdown, page, write_block
from benchmarks.results import Work, command_line, measure, read_machines, read_parts
from benchmarks.serving import ServingOptions, measure_serving
from benchmarks.startup import StartupOptions, cpu_precisions, measure_startup
from benchmarks.storage import measure_storage
from benchmarks.subjects import Setup
from benchmarks.targets import bars
from benchmarks.training import TrainingOptions, measure_loader, measure_training

Say = Callable[[str], None]

_OF_FOLDER = (
    *("peers", "one-view", "answers", "inputs", "batches", "sizes", "storage", "decisions"),
    *("startup", "serving", "endurance", "triton"),
)
"""The parts that need a model folder and photographs."""

_OF_ENGINES = ("peers", "inputs", "batches", "sizes", "storage")
"""Of those, what runs on a GPU where there is one."""

_OF_FULL_NETWORK = set(_OF_FOLDER) - {"answers", "serving", "endurance", "triton"}

PARTS = (*_OF_FOLDER, "loader", "training")


def main() -> None:
    given = _arguments()
    began, load = time.monotonic(), load_average()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    device = choose_device(given.device, needs_engines=bool(set(given.parts) & set(_OF_ENGINES)))
    path = given.results / f"{machine_name(device)}.json"
    # What would fail after hours fails now.
    if not given.quick:
        read_parts(path)
        if given.docs is not None:
            check_page(given.docs)
            if "serving" in given.parts:
                check_page_path(given.docs.parent / plot_name(path.stem), "--docs")
    with tempfile.TemporaryDirectory(prefix="alexdeploy-benchmarks-") as temporary:
        workspace = Path(temporary)
        # Compiled models of this run: nothing of another version, and nothing left behind.
        os.environ["ALEXDEPLOY_CACHE"] = str(workspace / "cache")
        work = _plan(given, device, workspace, say)
        if given.peers:
            work = {f"{part}-{given.peers}" if part in ("peers", "one-view") else part: do for part, do in work.items()}
        found = measure(work, None if given.quick else path, command=command_line("benchmarks"), load=load)
    if given.quick:
        print(f"A quick try, of which nothing is written: its figures mean nothing.\n\n{markdown(found)}")
        return
    print(markdown(found))
    if given.docs is not None:
        write_block(given.docs, page(read_machines(given.results)))
        if "serving" in work:
            draw_latencies(found["serving"], given.docs.parent / plot_name(path.stem))
    missed = [bar.name for bar in bars(found) if not bar.is_met]
    written = " and ".join(str(page) for page in (path, given.docs) if page is not None)
    say(f"wrote {written}; bars missed: {len(missed)}{''.join(f'; {name}' for name in missed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", nargs="*", help="files or folders; rendered ones where none are given")
    parser.add_argument("--parts", default=",".join(PARTS), help="which to measure, with commas between; default: all")
    parser.add_argument(
        "--model", type=Path, help="the full alexnet with FP32 and INT8 graphs; default: random weights"
    )
    parser.add_argument(
        "--judge",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="trained models for the answers, the first also for the decisions and the server; default: the --model",
    )
    parser.add_argument(
        "--calibrate", metavar="IMAGES", help="what INT8 of the judges, ours and NNCF's, is calibrated on; for answers"
    )
    parser.add_argument("--judge-images", nargs="+", default=[], help="photographs that it knows; default: PHOTOGRAPHS")
    parser.add_argument("--triton", type=Path, metavar="DIR", help="a virtual environment with nvidia-pytriton")
    parser.add_argument("--train-images", type=Path, help="a folder with a folder of photographs for each class")
    parser.add_argument("--images", type=_at_least_one, default=64, help="how many photographs take part")
    parser.add_argument(
        "--judged", type=_at_least_one, default=200, help="how many photographs are enlarged for the decisions"
    )
    parser.add_argument(
        "--rounds",
        type=_at_least_one,
        default=7,
        help="rounds of peers, loader and training; of startup three times as many",
    )
    parser.add_argument("--tuning-rounds", type=_at_least_one, default=3, help="rounds in which each peer is tuned")
    parser.add_argument("--peers", default="", help="only these, such as openvino; default: all")
    parser.add_argument("--growth-rounds", type=_at_least_one, default=3, help="rounds of inputs, batches and sizes")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a turn against peers is, about")
    parser.add_argument("--seed", type=int, default=0, help="of the order in each round")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    parser.add_argument("--device", help="cpu or cuda; default: the GPU where there is one and it can be used")
    parser.add_argument("--quick", action="store_true", help="try everything on a few images, and write nothing")
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return given


def _at_least_one(word: str) -> int:
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is less than 1")
    return int(word)


def _plan(given: argparse.Namespace, device: DeviceKind, workspace: Path, say: Say) -> dict[str, Work]:
    """What was asked for, in the order of PARTS; what lacks something is left out with a word."""
    work = _training_work(given, device, workspace, say)
    if set(given.parts) & set(_OF_FOLDER):
        work |= _folder_work(given, device, workspace, say)
    return {part: work[part] for part in PARTS if part in given.parts and part in work}


def _training_work(given: argparse.Namespace, device: DeviceKind, workspace: Path, say: Say) -> dict[str, Work]:
    options = TrainingOptions(num_rounds=given.rounds, seed=given.seed, device=device)
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


def _folder_work(given: argparse.Namespace, device: DeviceKind, workspace: Path, say: Say) -> dict[str, Work]:
    """The work on a model and photographs, with both made ready."""
    if set(given.parts) & {"peers", "one-view"}:
        check_memory(PEERS_BYTES, free_memory())
    if device == "cuda":
        _check_engines(given)
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
    if set(given.parts) & _OF_FULL_NETWORK:
        check_model(folder)
    peers = PeerOptions(
        files=tuple(files),
        precisions=precisions(device),
        calibrate=list_of(files, workspace / "photographs.txt"),
        software=tuple(filter(None, given.peers.split(","))),
        num_rounds=given.rounds,
        num_tuning_rounds=given.tuning_rounds,
        seconds=given.seconds,
        seed=given.seed,
        device=device,
    )
    growth = GrowthOptions(
        files=tuple(files),
        num_rounds=given.growth_rounds,
        seed=given.seed,
        device="cpu" if device == "cpu" else "cuda:0",
    )
    if given.quick:
        peers = dataclasses.replace(peers, num_rounds=1, seconds=0.5, num_tuning_files=2, num_tuning_rounds=1)
        growth = dataclasses.replace(
            growth, num_rounds=1, counts=(10, 100), batch_sizes=(1, 4), num_batch_images=8, num_large=2
        )
    judges = [copy_model(path, workspace / "models" / f"judge-{each}") for each, path in enumerate(given.judge)]
    judge = judges[0] if judges else folder
    held_back = judged = find_photographs(given.judge_images, sys.maxsize) if given.judge_images else files
    num_judged = min(len(judged), 4 if given.quick else given.judged)
    # Evenly over all of them, which lie class by class.
    judged = [judged[index * len(judged) // num_judged] for index in range(num_judged)]
    if set(given.parts) & set(_OF_ENGINES):
        say("compiling")
        # What compiles a graph holds more memory than what finds it compiled, as all runs but the first do.
        for precision in peers.precisions:
            with Process(Setup(side="ours", model=str(folder.path), precision=precision, device=growth.device)):
                pass
    work = {
        "peers": lambda: measure_peers(folder, workspace, peers, say),
        "inputs": lambda: measure_inputs(folder, growth, say),
        "batches": lambda: measure_batches(folder, growth, say),
        "sizes": lambda: measure_sizes(folder, workspace, growth, say),
        "storage": lambda: measure_storage(folder, workspace, growth, say),
        "decisions": lambda: measure_decisions(judge, judged, "fp32", say),
    }
    if device == "cpu":
        one_view = dataclasses.replace(peers, num_views=1)
        work["one-view"] = lambda: measure_peers(folder, workspace, one_view, say)
    elif "one-view" in given.parts:
        say("one-view is left out: it is measured on a CPU")
    if judges and given.calibrate is not None:
        answers = AnswerOptions(
            files=tuple(judged if given.quick else held_back),
            calibrate=str(Path(given.calibrate).absolute()),
            precisions=precisions("cpu"),
        )
        work["answers"] = lambda: measure_answers(judges, workspace, answers, say)
    elif "answers" in given.parts:
        say("answers is left out: there is no --judge or no --calibrate")
    if is_installed("openvino"):
        startup = StartupOptions(
            photograph=files[0],
            precisions=cpu_precisions(folder, has_bfloat16=has_bfloat16()),
            num_rounds=1 if given.quick else 3 * given.rounds,
            seed=given.seed,
        )
        work["startup"] = lambda: measure_startup(folder, workspace, startup, say)
    elif "startup" in given.parts:
        say("startup is left out: openvino is not installed")
    if importlib.util.find_spec("uvicorn") is not None:
        serving = ServingOptions(
            files=tuple(files),
            num_rounds=1 if given.quick else given.rounds,
            seconds=0.5 if given.quick else given.seconds,
            seed=given.seed,
        )
        work["serving"] = lambda: measure_serving(judge, workspace, serving, say)
        endurance = EnduranceOptions(
            files=serving.files,
            num_requests=100 if given.quick else 100_000,
            num_restarts=serving.num_rounds,
            seconds=serving.seconds,
            seed=given.seed,
        )
        work["endurance"] = lambda: measure_endurance(judge, workspace, endurance, say)
        if given.triton is not None:
            work["triton"] = lambda: measure_triton(judge, given.triton, workspace, serving, say)
        elif "triton" in given.parts:
            say("triton is left out: there is no --triton")
    elif set(given.parts) & {"serving", "endurance", "triton"}:
        say("serving, endurance and triton are left out: uvicorn is not installed")
    return work


def _check_engines(given: argparse.Namespace) -> None:
    """Raise SystemExit for an engine that is missing: what runs needs all of them, some of it after an hour."""
    parts = set(given.parts) & set(_OF_ENGINES)
    if not parts:
        return
    if given.model is None:
        raise SystemExit("on a GPU, give a --model with engines; how to build them: python -m benchmarks --help")
    needed = {("int8", BATCH_SIZE): None}
    if "peers" in parts:
        needed |= dict.fromkeys((precision, BATCH_SIZE) for precision in precisions("cuda"))
    if "batches" in parts:
        needed |= dict.fromkeys((precision, max(BATCH_SIZES)) for precision in ("fp32", "int8"))
    for precision, batch_size in needed:
        ten_view_engine(ModelFolder(given.model), precision, batch_size)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the parts that were measured are written.", file=sys.stderr)
        sys.exit(130)
    except AlexDeployError as exc:
        sys.exit("\n".join(filter(None, (exc.message, exc.hint))))
