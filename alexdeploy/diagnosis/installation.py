"""The bill of materials of an installation, by cyclonedx-py, the tool of CycloneDX for Python."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from alexdeploy.core.errors import UsageError
from alexdeploy.core.packages import missing_package
from alexdeploy.core.version import __version__

_SECONDS = 300


def check_installed() -> None:
    """Raise UsageError if the tool is not installed."""
    if importlib.util.find_spec("cyclonedx_py") is None:
        raise missing_package("cyclonedx-bom", "a bill of materials", "sbom")


def installation_bill() -> bytes:
    """Every package of this Python environment, with alexdeploy as what it is for: CycloneDX 1.6 in JSON.

    With SOURCE_DATE_EPOCH, the same environment gives the same bytes. Raises UsageError if the tool is not installed
    or fails.
    """
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "pyproject.toml"
        project.write_text(_project(), encoding="utf-8")
        words = ["environment", "--pyproject", str(project), "--spec-version", "1.6", "--output-format", "JSON"]
        # Validation takes 10 s for 150 packages; the tests do it.
        words.append("--no-validate")
        words += ["--output-reproducible"] * bool(os.environ.get("SOURCE_DATE_EPOCH"))
        command = [sys.executable, "-m", "cyclonedx_py", *words]
        try:
            done = subprocess.run(
                # In an empty folder: the working folder may have modules.
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=True,
            )
        except (subprocess.SubprocessError, OSError) as exc:
            told = getattr(exc, "stderr", None) or str(exc).encode()
            last = told.decode(errors="replace").strip().splitlines()[-1:]
            raise UsageError(
                f"cyclonedx-py could not describe the installation: {''.join(last)}",
                hint=f"See what it says: {sys.executable} -m cyclonedx_py environment",
            ) from exc
    return done.stdout


def _project() -> str:
    """A pyproject.toml of alexdeploy as it is installed: the tool reads the main component from such a file."""
    requires: list[str] = []
    with suppress(importlib.metadata.PackageNotFoundError):
        requires = importlib.metadata.requires("alexdeploy") or []
    facts = {"name": "alexdeploy", "version": __version__, "license": "Apache-2.0", "dependencies": requires}
    # JSON's strings and lists are TOML's.
    return "[project]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in facts.items())
