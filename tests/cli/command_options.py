"""All commands and their options as a table, with the reason for each hole: `make docs` writes docs/options.md."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import typer.main

from alexdeploy.cli import app as program

COMMON = (
    "--model",
    "--devices",
    "--precision",
    "--views",
    "--tencrop",
    "--batch-size",
    "--output",
    "--json",
    "--quiet",
    "--verbose",
    "--overwrite",
)
"""Options that every command has, or a reason in HOLES."""

_NO_MODEL = "has no model"
_RUNS_NOTHING = "runs no model"
_AS_EMBED = "embeds as the file records"
HOLES: dict[tuple[str, ...], dict[str, str]] = {
    ("--model",): {
        **dict.fromkeys(("prepare", "sample", "devices", "doctor"), _NO_MODEL),
        "train": "makes a model: `--name` says where, `--pretrained` from which",
        "import": "makes a model: `--name` says where",
        "ensemble": "makes a model: `--name` says where, MODEL... of which",
    },
    ("--devices",): {
        **dict.fromkeys(("prepare", "sample", "inspect", "import"), _RUNS_NOTHING),
        "ensemble": "checks on the CPU",
        "devices": "lists all of them",
        "doctor": "examines all of them",
        "calibrate": "measures in ONNX Runtime on the CPU",
        "figures": "runs one image in ONNX Runtime on the CPU",
        "export": "checks on the CPU, and builds engines for every kind of GPU",
        "triton": "names GPUs of Triton's machine: `--gpus`",
        "similar": _AS_EMBED,
    },
    ("--precision",): {
        **dict.fromkeys(("prepare", "sample", "devices", "doctor"), _NO_MODEL),
        "inspect": "shows every precision that is there",
        "calibrate": "measures the FP32 network",
        "import": "makes FP32; `export` makes the others",
        "ensemble": "joins every precision that all members have",
        "similar": _AS_EMBED,
    },
    ("--views", "--tencrop"): {
        **dict.fromkeys(("prepare", "sample", "devices", "doctor", "inspect", "import", "ensemble"), _RUNS_NOTHING),
        "train": "scores one view and ten views",
        "figures": "shows the centre view",
        "similar": _AS_EMBED,
    },
    ("--batch-size",): {
        **dict.fromkeys(("prepare", "sample", "devices", "doctor", "inspect", "import", "ensemble"), _RUNS_NOTHING),
        "calibrate": "is fixed: ranges do not depend on it",
        "figures": "runs one image",
        "export": "writes graphs of any batch size",
        "build": "builds for every size up to `--max-batch`",
        "similar": _AS_EMBED,
    },
    ("--output",): {
        "prepare": "OUT is an argument",
        "sample": "DIR is an argument",
        "train": "writes models/NAME: `--name`",
        "import": "writes models/NAME: `--name`",
        "ensemble": "writes models/NAME: `--name`",
        "calibrate": "writes calibration/MODEL.ranges.json",
        "export": "writes into the model folder",
        "build": "writes into the model folder",
        "triton": "DIR is an argument",
        **dict.fromkeys(("inspect", "devices", "doctor"), "one document: `--json > FILE`"),
        "verify": "one document: `--json > FILE`, or `--html FILE`",
        "bench": "one document: `--json > FILE`, or `--html FILE`",
        "serve": "answers requests",
        "similar": "rows on stdout, and a page: `--sheet FILE`",
    },
    ("--json",): {
        "predict": "rows, not one document: `--format jsonl`",
        "serve": "a line for each request: `--log-format json`",
    },
    ("--overwrite",): {
        **dict.fromkeys(("inspect", "devices", "serve"), "writes no file"),
        "sample": "completes a rendering, and never replaces anything else",
        "triton": "adds a version, and never replaces one that Triton may have open",
        **dict.fromkeys(("calibrate", "build"), "renews what is derived from the model, under its own names"),
    },
}
"""Options -> command -> why it does not have them."""

DIFFERENT: dict[str, dict[str, str]] = {
    "--precision": {
        **dict.fromkeys(("predict", "embed", "serve", "explain"), "runs one"),
        "figures": "that of the graph whose maps are shown",
        **dict.fromkeys(("build", "triton"), "one of the files, and there are none of BF16"),
        "export": "writes several, and none of BF16",
        "train": "that of the arithmetic of training",
    },
    "--backend": {
        **dict.fromkeys(("predict", "embed", "serve", "explain"), "runs one"),
        "build": "builds for one of the two with files",
        "triton": "is one of Triton's",
    },
    "--devices": {"train": "runs on one in each process", "build": "builds for one"},
    "--views": {
        "card": "compares several",
        "evaluate": "compares several",
        "bench": "compares several",
        "calibrate": "measures, with one or ten",
    },
    "--batch-size": {
        "predict": "may be chosen by the device's memory",
        "bench": "compares several",
        "train": "is part of the recipe",
    },
    "--output": {
        "evaluate": "has no table and no Parquet",
        **dict.fromkeys(("figures", "card"), "is a folder"),
        "explain": "is a folder of pictures and numbers",
        "embed": "has formats for numbers",
    },
    "--format": {"similar": "has no Parquet"},
    "--sheet": {"similar": "shows neighbours, not answers"},
    "--html": {"explain": "shows photographs, and no plots"},
    "--overwrite": {"export": "renews what is up to date, which is kept without it"},
    "--method": dict.fromkeys(("calibrate", "explain"), "of choosing ranges, or of explaining"),
    "--num-images": {"calibrate": "chooses by name and seed"},
    "--seed": dict.fromkeys(("train", "sample", "prepare", "calibrate", "bench"), "each draws something else"),
    "--jpeg": dict.fromkeys(("prepare", "triton"), "files that are written, or that are sent"),
    "--max-queue": dict.fromkeys(("serve", "triton"), "images here, requests in Triton"),
    "--name": {**dict.fromkeys(("train", "import"), "another default"), "ensemble": "has no default"},
    "--recipe": dict.fromkeys(("train", "import"), "of a network to be trained, or of one that is there"),
    "--resume": {"train": "continues from a checkpoint, not from rows"},
    "--images": dict.fromkeys(("export", "bench", "card"), "to check on, to decode and measure on, or with labels"),
    "--resize": dict.fromkeys(("prepare", "import"), "chosen, or told of a network that is there"),
    "--labels": dict.fromkeys(("evaluate", "import"), "of images, or of classes"),
    "--fp16": dict.fromkeys(("export", "build"), "a graph or an engine"),
    "--int8": dict.fromkeys(("export", "build"), "a graph or an engine"),
}
"""Option -> command -> why its help or its values differ from those of the other commands."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an option takes and does; its default, the sentence that begins so, may differ."""

    values: str
    text: str


def commands() -> dict[str, Any]:
    """Command -> what Typer makes of it."""
    group: Any = typer.main.get_command(program.app)
    return dict(group.commands)


def options() -> dict[str, dict[str, Meaning]]:
    """Command -> option -> what it means there."""
    found: dict[str, dict[str, Meaning]] = {}
    for name, command in commands().items():
        long = [param for param in command.params if param.param_type_name == "option"]
        found[name] = {
            max(param.opts, key=len): Meaning(
                values=param.metavar or "", text=re.sub(r" ?\bDefault: .*$", "", param.help or "")
            )
            for param in long
        }
    return found


def holes() -> dict[tuple[str, str], str]:
    """(option, command) -> why that command does not have it."""
    return {
        (option, command): reason
        for names, reasons in HOLES.items()
        for option in names
        for command, reason in reasons.items()
    }


def table() -> str:
    """The page, in Markdown."""
    found, missing = options(), holes()
    several = {
        option
        for option in {each for named in found.values() for each in named}
        if sum(option in named for named in found.values()) > 1
    }
    rows = [*COMMON, *sorted(several - set(COMMON))]
    notes: dict[str, int] = {}
    lines = [
        "# Options of all commands",
        "",
        "`make docs` writes this page from the commands. x: has the option, x with a number: with another meaning, "
        "a number alone: does not have it; the number is the reason below.",
        "",
        "| | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for option in rows:
        cells = []
        for command, named in found.items():
            reason = DIFFERENT.get(option, {}).get(command) if option in named else missing.get((option, command))
            number = "" if reason is None else str(notes.setdefault(reason, len(notes) + 1))
            cells.append(f"x {number}".strip() if option in named else number)
        lines.append(f"| `{option}` | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in notes.items()), ""]
    lines += ["Of one command only:", ""]
    own: dict[str, list[str]] = defaultdict(list)
    for command, named in found.items():
        own[command] = [option for option in named if option not in several and option not in COMMON]
    lines += [
        f"- `{command}`: {', '.join(f'`{each}`' for each in each_own)}" for command, each_own in own.items() if each_own
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
