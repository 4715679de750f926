"""What a run of the command line gives back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patience import PATIENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.stdout.splitlines()]


Run = Callable[..., Result]


def terminal_output(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes]:
    """Run a command on a pseudo-terminal of its own: its exit code, and what it writes to both streams."""
    import pty

    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                # Linux says EIO where others say end of file.
                break
            if not part:
                break
            shown += part
        exit_code = process.wait(timeout=PATIENCE)
    os.close(ours)
    return exit_code, shown


def run_and_signal(folder: Path, number: int, opened: str, count: int, *words: str) -> Result:
    """`alexdeploy` in a process of its own, in `folder`; it gets a signal when it opens the `count`th file `opened`."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import itertools, os, sys\n"
        "counter = itertools.count(1)\n"
        "def hook(event, args):\n"
        f"    if event == 'open' and {opened!r} in str(args[0]) and next(counter) == {count}:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "sys.addaudithook(hook)\n"
    )
    paths = os.pathsep.join(filter(None, [str(site), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-m", "alexdeploy", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Result(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)
