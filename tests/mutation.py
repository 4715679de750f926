"""Mutation testing: do the tests notice a change of one operator, number or argument in code where errors would hide?

    pip install mutmut==3.8.0 'pytest<9.2'
    python tests/mutation.py [MODULE ...]

Each module is mutated in a copy of the tree, build/mutation/MODULE, and only the tests named here run. Of a module with
hundreds of mutants those run whose number ends in one of the digits given: the same ones each time. Prints the counts;
the survivors are in build/mutation/MODULE/survivors.diff. docs/testing.md has the results.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("alexdeploy", "benchmarks", "calibration", "docs", "models", "tests", "README.md")

# The wording of messages is no arithmetic: tests compare those parts that a user needs.
NOT_MUTATED = (r"raise \w+", r"^\s*f?\"", "hint=")

OUTCOMES = {0: "survived", 1: "killed", 3: "killed", 5: "not run", 33: "not run", 34: "skipped"}
"""mutmut's exit codes; all others are of mutants that did not end in time or crashed, which a test notices."""


@dataclass(frozen=True, kw_only=True)
class Module:
    """`files` of alexdeploy/ are mutated and `tests` of tests/ run for mutants whose number ends in `digits`."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    digits: str = "0123456789"


MODULES = {
    "crops": Module(files=("images/crops",), tests=("images/test_crops",), digits="7"),
    "deployment": Module(files=("graphs/deployment",), tests=("graphs/test_deployment",), digits="7"),
    "histogram": Module(files=("export/quantize/histogram",), tests=("export/quantize/test_histogram",), digits="7"),
    "int8": Module(files=("export/quantize/int8",), tests=("export/quantize/test_int8",), digits="7"),
    "plan": Module(files=("placement/plan",), tests=("placement/test_plan",), digits="7"),
    "journal": Module(files=("inference/journal",), tests=("inference/test_journal",), digits="7"),
    "batcher": Module(
        files=("inference/waiting", "inference/fair_queue", "inference/timing", "inference/batcher"),
        tests=("inference/test_waiting", "inference/test_batcher"),
        digits="7",
    ),
    "freshness": Module(files=("graphs/freshness",), tests=("graphs/test_freshness",), digits="7"),
    "hashes": Module(files=("core/hashes",), tests=("core/test_hashes",), digits="7"),
    "layers": Module(
        files=("network/layers", "network/reference"),
        tests=("network/test_layers", "network/test_lrn", "network/test_alexnet"),
        digits="7",
    ),
    "metrics": Module(
        files=("core/metrics", "evaluation/precision_recall"),
        tests=("core/test_metrics", "evaluation/test_precision_recall"),
        digits="7",
    ),
}


def run_mutants(name: str, module: Module) -> Counter[str]:
    """Mutate a module and run its tests; the number of mutants by outcome, and "all" for those that there are."""
    folder = ROOT / "build" / "mutation" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for each in COPIED:
        copy = shutil.copytree if (ROOT / each).is_dir() else shutil.copy2
        copy(ROOT / each, folder / each)
    settings = {
        "source_paths": ["alexdeploy"],
        "only_mutate": [f"alexdeploy/{file}.py" for file in module.files],
        "do_not_mutate_patterns": NOT_MUTATED,
        "also_copy": COPIED[1:],
        "pytest_add_cli_args_test_selection": [f"tests/{test}.py" for test in module.tests],
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        # Tests start threads of OpenVINO and ONNX Runtime, which do not survive a fork.
        "process_isolation": "forkserver",
        # Times 15: on a busy machine a test may wait for minutes.
        "timeout_constant": 20.0,
        "use_git_change_detection": False,
        "track_dependencies": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    pyproject = (ROOT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text("\n".join([pyproject, "[tool.mutmut]", *lines, ""]))
    # mutmut takes its own folders from the path.
    (folder / "path").mkdir()
    (folder / "path" / "alexdeploy").symlink_to(folder / "mutants" / "alexdeploy")
    environment = {
        **os.environ,
        "KEPT_TEST_MODELS": str(folder / "kept-models"),
        "OMP_NUM_THREADS": "1",
        # What the tests start in processes of their own is mutated too.
        "PYTHONPATH": str(folder / "path"),
    }
    with open(folder / "mutmut.log", "wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "mutmut", "run", "--max-children", "1", f"*[{module.digits}]"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"mutmut failed: see {folder / 'mutmut.log'}")
    found: Counter[str] = Counter()
    survivors = []
    for file in module.files:
        codes = json.loads((folder / "mutants" / "alexdeploy" / f"{file}.py.meta").read_bytes())["exit_code_by_key"]
        found["all"] += len(codes)
        for mutant, code in codes.items():
            if code is not None:
                found[OUTCOMES.get(code, "timeout")] += 1
                if OUTCOMES.get(code) in ("survived", "not run"):
                    survivors.append(mutant)
    with open(folder / "survivors.diff", "wb") as diffs:
        for mutant in survivors:
            command = [sys.executable, "-m", "mutmut", "show", mutant]
            diffs.write(subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    return found


def main(names: list[str]) -> None:
    """Print a row of docs/testing.md's table for each module."""
    if unknown := set(names) - set(MODULES):
        raise SystemExit(f"no module is called {', '.join(sorted(unknown))}; expected some of {', '.join(MODULES)}")
    print("| module | mutants | run | killed | survived | not reached by these tests | score |")
    print("|---|---|---|---|---|---|---|")
    for name in names or MODULES:
        found = run_mutants(name, MODULES[name])
        killed = found["killed"] + found["timeout"]
        num_run = killed + found["survived"] + found["not run"]
        files = ", ".join(f"`{file}`" for file in MODULES[name].files)
        score = f"{killed / max(num_run, 1):.0%}"
        print(
            f"| {files} | {found['all']} | {num_run} | {killed} | {found['survived']} | {found['not run']} | {score} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
