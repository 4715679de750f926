"""Faults inside the workers of a pool: the real engine, changed in their processes by what Python runs at its start."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest
from patience import wait_for

POISON = 13
"""An image whose first pixel is this, in all channels, is one that some faults go by."""


class Gate:
    """Where workers wait until it is opened, each with a batch in hand; `fault` is the code for `inject`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.fault = f"""
            open(os.path.join({str(folder)!r}, str(os.getpid())), "w").close()
            while not os.path.exists({str(folder / "open")!r}):
                time.sleep(0.01)
        """

    def after(self, num_batches: int) -> str:
        """A fault by which each worker answers so many batches before it waits."""
        return f"if count > {num_batches}:\n{textwrap.indent(textwrap.dedent(self.fault), '    ')}"

    def wait_until_there(self, num_workers: int) -> None:
        wait_for(lambda: len(list(self._folder.iterdir())) >= num_workers)

    def open(self) -> None:
        (self._folder / "open").touch()


def one_worker_waits(folder: Path, num_batches: int) -> str:
    """A fault: the first worker with a batch keeps it until others have begun `num_batches` of theirs."""
    return _one_worker_keeps(folder, f"{num_batches} if count == 1 else 0")


def one_worker_is_slow(folder: Path, num_batches: int) -> str:
    """A fault: the first worker with a batch keeps each of its own until others have begun three times as many.

    Of `num_batches`, the last of which they may have begun all. A pipeline lets one other replica begin four batches
    after one that is not done: three are there whenever it comes to look.
    """
    return _one_worker_keeps(folder, f"min(3 * count, {num_batches} - count)")


def _one_worker_keeps(folder: Path, num_others: str) -> str:
    folder.mkdir()
    return f"""
        first, others = (os.path.join({str(folder)!r}, name) for name in ("first", "others"))
        try:
            os.symlink(str(os.getpid()), first)
        except FileExistsError:
            pass
        if os.readlink(first) != str(os.getpid()):
            with open(others, "a") as file:
                file.write(".")
        else:
            while (os.path.getsize(others) if os.path.exists(others) else 0) < {num_others}:
                time.sleep(0.01)
    """


def inject(monkeypatch: pytest.MonkeyPatch, folder: Path, fault: str) -> None:
    """Run `fault` in each worker before every batch; it sees `images`, `low_latency`, `poisoned` and `count`."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import itertools, os, signal, sys, time
            if sys.argv[:1] == ["-m"] or "alexdeploy.placement.worker" in " ".join(sys.orig_argv):
                from alexdeploy.core.errors import DeviceError, DeviceMemoryError
                from alexdeploy.engines.onnxruntime import OnnxRuntimeEngine
                run, counter = OnnxRuntimeEngine.run, itertools.count(1)

                def faulty(self, images, *, low_latency=False):
                    count = next(counter)
                    poisoned = bool((images[:, 0, 0] == %d).all(axis=1).any())
                    %s
                    return run(self, images, low_latency=low_latency)

                OnnxRuntimeEngine.run = faulty
            """)
        % (POISON, textwrap.indent(textwrap.dedent(fault), "        ").strip())
    )
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{others}" if others else str(folder))
