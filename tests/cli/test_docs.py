from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_command_line_reference_is_that_of_the_commands() -> None:
    tool = [sys.executable, "-m", "typer", "--app", "app", "alexdeploy.cli.app", "utils", "docs"]
    done = subprocess.run(
        [*tool, "--name", "alexdeploy", "--title", "Command line"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (DOCS / "cli.md").read_text(encoding="utf-8").strip(), "run: make docs"


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="griffe2md needs Python 3.11")
def test_the_python_reference_is_that_of_the_docstrings() -> None:
    tool = str(Path(sys.executable).parent / "griffe2md")
    done = subprocess.run([tool, "alexdeploy"], capture_output=True, text=True, check=True, cwd=DOCS.parent)
    assert done.stdout.strip() == (DOCS / "api.md").read_text(encoding="utf-8").strip(), "run: make docs"
