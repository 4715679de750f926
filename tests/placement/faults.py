"""Faults inside the workers of a pool: the real engine, changed in their processes by what Python runs at its start."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

POISON = 13
"""An image whose first pixel is this, in all channels, is one that some faults go by."""


def inject(monkeypatch: pytest.MonkeyPatch, folder: Path, fault: str) -> None:
    """Run `fault` in each worker before every batch; it sees `images`, `poisoned` (bool), and `count` of batches."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        textwrap.dedent("""
            import itertools, os, signal, sys, time
            if sys.argv[:1] == ["-m"] or "alexdeploy.placement.worker" in " ".join(sys.orig_argv):
                from alexdeploy.core.errors import DeviceError, DeviceMemoryError
                from alexdeploy.engines.onnxruntime import OnnxRuntimeEngine
                run, counter = OnnxRuntimeEngine.run, itertools.count(1)

                def faulty(self, images):
                    count = next(counter)
                    poisoned = bool((images[:, 0, 0] == %d).all(axis=1).any())
                    %s
                    return run(self, images)

                OnnxRuntimeEngine.run = faulty
            """)
        % (POISON, textwrap.indent(textwrap.dedent(fault), "        ").strip())
    )
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{others}" if others else str(folder))
