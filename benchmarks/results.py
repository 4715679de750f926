"""The file of figures, one for each machine, and what was measured when and at which commit."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

import alexdeploy
from alexdeploy.benchmark.plan import machine_facts
from alexdeploy.core.files import atomic_write
from alexdeploy.engines.base import Backend, is_installed
from benchmarks.process import ROOT

Work = Callable[[], dict[str, Any]]

FORMAT = 2
"""Of the file. One of another format is refused before anything is measured."""

_MEASURED = ("alexdeploy", "models", "benchmarks/*.py")
"""What figures depend on. Their own file and the page with the tables are left out: each part writes those."""


def measure(parts: Mapping[str, Work], path: Path | None, *, command: str, load: float | None) -> dict[str, Any]:
    """Do the parts one after the other: what they and those in the file `path` found, which is written after each.

    Each has its date and commit, the command, and the machine as it was: versions, `load` from before all parts, and
    the load after the part.
    """
    found = {} if path is None else read_parts(path)
    commit = code_version()
    for part, work in parts.items():
        figures = work()
        machine = machine_facts(filter(is_installed, get_args(Backend)), load)
        found[part] = figures | {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": commit,
            "command": command,
            "machine": dataclasses.asdict(machine),
        }
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps({"format": FORMAT, "parts": found}, indent=1).encode() + b"\n")
    return found


def command_line(module: str) -> str:
    """The command as it was typed, with the folders' own names only: where they lie says nothing to others."""
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", module, *words])


def read_parts(path: Path) -> dict[str, Any]:
    """What was measured before, by the names of the parts. Raises SystemExit for a file of another format."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SystemExit(f"{path} is no JSON: {exc}. Delete it, or name another folder with --results") from exc
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise SystemExit(
            f"{path} has format {found}, expected {FORMAT}: other benchmarks wrote it. Delete it and measure all "
            "parts anew, or name another folder with --results"
        )
    parts: dict[str, Any] = content["parts"]
    return parts


def read_machines(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured on each machine that has a file there, by the names of the files."""
    return {path.stem: read_parts(path) for path in sorted(folder.glob("*.json"))}


def code_version(root: Path = ROOT) -> str:
    """The last commit that changed what is measured, "+" after it where files have changed since; else the version."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words, "--", *_MEASURED]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("log", "-1", "--format=%h")
        changed = git("status", "--porcelain") if commit else ""
    except (OSError, subprocess.CalledProcessError):
        commit, changed = "", ""
    return commit + "+" * bool(changed) or alexdeploy.__version__


def outdated(parts: Mapping[str, Any]) -> dict[str, str]:
    """The parts that are not of the commit of the newest one, and their commits."""
    if not parts:
        return {}
    newest = max(parts.values(), key=lambda part: str(part["date"]))["commit"]
    return {name: part["commit"] for name, part in parts.items() if part["commit"] != newest}
