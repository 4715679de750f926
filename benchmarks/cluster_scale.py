"""Measure `predict --ray` on clusters of this machine, fit the simulation to some of the runs, and test it on others.

    python -m benchmarks.cluster_scale MODEL PHOTOGRAPHS... [--parts runs,driver] [--images 960] [--rounds 3]
                                       [--before "WORDS"] [--docs docs]

Parts: runs (classify on one to three nodes, with parts of several sizes, and with an actor or a node killed), driver
(what the driver does for each name, part and manifest, and for each actor that it waits for). With `--parts ""` nothing
is measured. WORDS come before the command of each run, such as "nice -n -15". MODEL needs FP32 and INT8 graphs; ray
has to be installed. Figures go to benchmarks/results/cluster/<machine>.json. Then the simulation is fitted, tested and
extrapolated: the plot and the tables between the markers of the page scale.md go to the folder --docs.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import ModelFolder
from alexdeploy.benchmark.plan import load_average
from alexdeploy.core.errors import AlexDeployError
from alexdeploy.reports.page import check_page_path
from benchmarks.cluster_driver import measure_driver
from benchmarks.cluster_fit import compare, fit
from benchmarks.cluster_plot import PLOT, draw_scale
from benchmarks.cluster_run import ClusterRun, ClusterSetup
from benchmarks.cluster_tables import cost_tables, extrapolate, scale_table
from benchmarks.machine import machine_name
from benchmarks.photographs import find_photographs
from benchmarks.process import ROOT, take_turns
from benchmarks.report import check_page, origins, write_block
from benchmarks.results import Work, command_line, measure

PAGE = "scale.md"

RUNS: dict[str, dict[str, Any]] = {
    "1 node, parts of 32": {"num_nodes": 1, "rows_per_part": 32},
    "1 node, parts of 128": {"num_nodes": 1, "rows_per_part": 128},
    "1 node, parts of 64, its actor killed": {
        "num_nodes": 1,
        "rows_per_part": 64,
        "killed": "actor",
        "killed_after": 3,
    },
    "1 node, parts of 128, INT8": {"num_nodes": 1, "rows_per_part": 128, "precision": "int8"},
    "2 nodes, parts of 64": {"num_nodes": 2, "rows_per_part": 64},
    "2 nodes, parts of 128": {"num_nodes": 2, "rows_per_part": 128},
    "3 nodes, parts of 32": {"num_nodes": 3, "rows_per_part": 32},
    "2 nodes, parts of 64, an actor killed": {
        "num_nodes": 2,
        "rows_per_part": 64,
        "killed": "actor",
        "killed_after": 4,
    },
    "3 nodes, parts of 32, a node killed": {"num_nodes": 3, "rows_per_part": 32, "killed": "node", "killed_after": 9},
}
"""What is measured. The names in cluster_fit are of these."""


Say = Callable[[str], None]


def main() -> None:
    given = _arguments()
    began, load = time.monotonic(), load_average()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    path = given.results / f"{machine_name('cpu')}.json"
    if given.docs is not None:
        check_page(given.docs / PAGE)
        check_page_path(given.docs / PLOT, "--docs")
    work: dict[str, Work] = {}
    if "runs" in given.parts:
        files = find_photographs(given.photographs, given.images)
        work["runs"] = lambda: measure_runs(given.model, files, given.images, given.rounds, given.before, say)
    if "driver" in given.parts:
        work["driver"] = lambda: measure_driver(given.rounds, say)
    found = measure(work, path, command=command_line("benchmarks.cluster_scale"), load=load)
    if missing := {"runs", "driver"} - set(found):
        raise SystemExit(f"{path} lacks {' and '.join(sorted(missing))}: measure it with --parts")
    say("simulating")
    costs = fit(found)
    compared = compare(found, costs)
    text = "\n".join([*origins(found), *cost_tables(found, costs, compared), *scale_table(costs)])
    print(text)
    if given.docs is not None:
        write_block(given.docs / PAGE, text)
        draw_scale(costs, compared, extrapolate(costs), given.docs / PLOT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster_scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, nargs="?", help="a folder with FP32 and INT8 graphs")
    parser.add_argument("photographs", nargs="*", help="files or folders")
    parser.add_argument("--parts", default="runs,driver", help="which to measure, with a comma between")
    parser.add_argument("--images", type=int, default=960, help="how many photographs a run takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", default="", type=shlex.split, help="words before the command of each run")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "cluster")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="where the page and the plot are")
    given = parser.parse_args()
    given.parts = list(filter(None, given.parts.split(",")))
    if unknown := set(given.parts) - {"runs", "driver"}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are runs and driver")
    if "runs" in given.parts and not given.photographs:
        parser.error("the part runs needs MODEL and PHOTOGRAPHS")
    return given


def measure_runs(
    model: Path, files: list[str], num_images: int, num_rounds: int, before: list[str], say: Say
) -> dict[str, Any]:
    """Each of RUNS once a round, in an order drawn for the round."""
    import ray

    runs: dict[str, list[Any]] = {name: [] for name in RUNS}

    def run(name: str) -> float:
        setup = ClusterSetup(model=str(model.absolute()), files=tuple(files), num_images=num_images, **RUNS[name])
        command = [*before, sys.executable, "-m", "benchmarks.cluster_run"]
        done = subprocess.run(command, input=msgspec.json.encode(setup), stdout=subprocess.PIPE, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"the run {name!r} ended with exit code {done.returncode}")
        found = msgspec.json.decode(done.stdout, type=ClusterRun)
        runs[name].append(msgspec.to_builtins(found))
        say(f"{found.seconds:.1f} s")
        return found.seconds

    turns = {name: partial(run, name) for name in RUNS}
    take_turns(turns, num_rounds, seed=0, on_turn=say)
    return {"ray": ray.__version__, "model": ModelFolder(model).spec().name, "num_rounds": num_rounds, "runs": runs}


if __name__ == "__main__":
    try:
        main()
    except AlexDeployError as exc:
        sys.exit("\n".join(filter(None, (exc.message, exc.hint))))
