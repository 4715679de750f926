"""Commands and options of other programs, and their equivalents here."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence, Set

from alexdeploy.core.errors import UsageError
from alexdeploy.core.stores.urls import is_http, is_url, printable_url

COMMANDS = {
    "version": "--version",
    "help": "--help",
    "detect": "predict",
    "classify": "predict",
    "infer": "predict",
    "server": "serve",
    "api": "serve",
    "val": "evaluate",
    "validate": "evaluate",
    "test": "evaluate",
    "benchmark": "bench",
    "quantize": "export --int8",
    "convert": "export",
    "compile": "build",
    "info": "inspect",
    "fit": "train",
    "finetune": "train --pretrained MODEL",
}
"""Command of another program -> the words after `alexdeploy` that do the same."""

OPTIONS = {
    "--lr": ("--learning-rate RATE",),
    "--gpu": ("--devices 0",),
    "--cpu": ("--devices cpu",),
    "--device": ("--devices DEVICE",),
    "--half": ("--precision fp16",),
    "--fp16": ("--precision fp16",),
    "--int8": ("--precision int8",),
    "--imgsz": ("--set architecture.input=PIXELS",),
    "--workers": ("--threads N",),
    "--batch": ("--batch-size N", "--max-batch N"),
    "--batch-size": ("--max-batch N",),
    "--max-batch": ("--batch-size N",),
    "--project": ("--name NAME", "--output FILE"),
    "--weights": ("--model MODEL", "--pretrained MODEL"),
    "--model": ("--pretrained MODEL", "--name NAME"),
    "--tta": ("--tencrop",),
    "--report": ("--html FILE",),
    "--json": ("--format jsonl",),
    "--http-port": ("--port PORT",),
    "--certfile": ("--tls-cert FILE",),
    "--keyfile": ("--tls-key FILE",),
    "--reload": ("--watch",),
    "--classes": ("--num-classes N", "--labels FILE"),
}
"""Option of another program or command -> options here; the first one that the command has is suggested."""


_URL_COMMANDS = frozenset(
    ("predict", "calibrate", "verify", "evaluate", "train", "prepare", "bench", "inspect", "serve")
)
"""Commands whose arguments may be URLs."""

_URL_OPTIONS = frozenset(
    ("--calibrate", "--images", "--labelled", "--val", "--output", "-o", "--model", "--pretrained")
)
_PATH_OPTIONS = frozenset(("--labels", "--train-list", "--val-list", "--classes", "--html"))


def refuse_command(words: Sequence[str], known: Set[str]) -> None:
    """Raise UsageError for a command that has another name here."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name in COMMANDS and name not in known:
        raise UsageError(f"there is no command {name!r}", hint=f"Use: alexdeploy {COMMANDS[name]}")


def refuse_urls(words: Sequence[str]) -> None:
    """Raise UsageError for a URL where only local files are read."""
    command = next((word for word in words if not word.startswith("-")), "")
    before = ""
    for word in words:
        option, given = before if before.startswith("-") else "", word
        if word.startswith("--") and "=" in word:
            option, _, given = word.partition("=")
        before = word
        if not is_url(given.removeprefix("@")) or os.path.exists(given):
            continue
        # `bench` would measure the network. The word after a flag is an argument, as far as can be told here.
        if option in _URL_OPTIONS and (command, option) != ("bench", "--images"):
            continue
        if option not in {*_URL_OPTIONS, *_PATH_OPTIONS} and command in _URL_COMMANDS:
            continue
        shown = printable_url(given)
        way = "Download it first: curl -LO" if is_http(given) else "Copy it to this machine first:"
        raise UsageError(f"{shown} is a URL; a local file is expected here", hint=f"{way} {shlex.quote(shown)}")


def foreign_option(words: Sequence[str], known: Set[str]) -> str | None:
    """The first word before `--` that is an option of another program and not in `known`."""
    end = words.index("--") if "--" in words else len(words)
    names = (word.partition("=")[0] for word in words[:end])
    return next((name for name in names if name in OPTIONS and name not in known), None)


def option_error(word: str, command: str, options: Mapping[str, Set[str]]) -> UsageError:
    """The error for another program's option; `options` are those of all commands."""
    for meant in OPTIONS[word]:
        if meant.split()[0] in options[command]:
            return UsageError(f"{command} has no option {word}", hint=f"Use {meant}")
    meant = OPTIONS[word][0]
    others = [name for name, each in options.items() if meant.split()[0] in each]
    return UsageError(f"{command} has no option {word}", hint=f"{meant} is an option of: {', '.join(others)}")
