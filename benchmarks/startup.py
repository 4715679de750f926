"""How long one photograph takes from a cold process, everything cached, against a bare OpenVINO script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from alexdeploy import ModelFolder
from alexdeploy.core.spec import Precision, graph_precision
from benchmarks.peer_images import std_word
from benchmarks.process import ROOT, WITHOUT_TELEMETRY, take_turns

Say = Callable[[str], None]

SCRIPT = "bare script fp32"
LEAN_SCRIPT = "bare script fp32, without the converter"
_SCRIPTS = {
    SCRIPT: ["-m", "benchmarks.peer_openvino"],
    # As ours imports OpenVINO.
    LEAN_SCRIPT: [
        "-c",
        "import runpy, sys; sys.modules['openvino.tools.ovc'] = None; "
        "runpy.run_module('benchmarks.peer_openvino', run_name='__main__')",
    ],
}
"""`import openvino`, as everybody writes it, imports its converter of other frameworks' models as well."""

_NUM_WARM = 2
"""Runs of each before the rounds: the first writes caches, the second finds them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartupOptions:
    photograph: str
    precisions: tuple[str, ...]
    num_rounds: int = 21
    seed: int = 0


def measure_startup(folder: ModelFolder, workspace: Path, options: StartupOptions, say: Say) -> dict[str, Any]:
    """Seconds of whole processes on a CPU, from start to end: the interpreter, imports, the network, one row.

    Ours is `alexdeploy predict --tencrop`. The other is peer_openvino.py, for FP32, as it is and without OpenVINO's
    converter. All of them are without its telemetry.
    """
    std = std_word(folder.spec().preprocessing.std)
    network = [str(folder.onnx_path()), str(folder.mean_path), std, str(workspace / "openvino-cache")]
    commands = {name: [*script, *network, options.photograph] for name, script in _SCRIPTS.items()}
    for precision in options.precisions:
        ours = ["-m", "alexdeploy", "predict", options.photograph, "--model", str(folder.path), "--tencrop"]
        commands[f"alexdeploy {precision}"] = [*ours, "--precision", precision, "--format", "jsonl"]
    answers = {}
    for name, command in commands.items():
        for _ in range(_NUM_WARM):
            say(f"startup: filling caches, {name}")
            answers[name] = _answer(name, run_command(command))
    turns = {name: partial(_seconds, command) for name, command in commands.items()}
    return {
        "num_rounds": options.num_rounds,
        "seconds": take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"startup, {text}")),
        "answers": answers,
        "same_answers": {name: answer[0] == answers[SCRIPT][0] for name, answer in answers.items()},
    }


def cpu_precisions(folder: ModelFolder, *, has_bfloat16: bool) -> tuple[str, ...]:
    """Those of which the folder has the graph."""
    return tuple(
        precision
        for precision in get_args(Precision)
        if folder.onnx_path(graph_precision(precision)).is_file() and (precision != "bf16" or has_bfloat16)
    )


def run_command(command: Sequence[str]) -> str:
    """What Python prints. Raises SystemExit if it fails."""
    # Without a GPU, for which no other start would be the same.
    environment = os.environ | WITHOUT_TELEMETRY | {"CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise SystemExit(f"python {' '.join(command)} ended with exit code {run.returncode}:\n{run.stderr[-2000:]}")
    return run.stdout


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    run_command(command)
    return time.perf_counter() - began


def _answer(name: str, output: str) -> tuple[int, float]:
    """The class and its probability."""
    if name in _SCRIPTS:
        _, label, probability = output.rsplit(maxsplit=2)
        return int(label), float(probability)
    best = json.loads(output)["top"][0]
    return best["index"], best["probability"]
