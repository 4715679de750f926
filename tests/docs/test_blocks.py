"""The blocks of README.md and docs/*.md do what the pages say. CONTRIBUTING.md says how each is run."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer.main
from blocks import PAGES, ROOT, SHOWN, Block, blocks_of, indented_blocks
from patience import slow_but_for
from reader import Reader, shell_commands
from readers_folder import write_folder

from alexdeploy.cli import app


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has, made once; each page gets a copy."""
    return write_folder(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `alexdeploy` and `python` of this interpreter, for what a shell starts."""
    folder = tmp_path_factory.mktemp("bin")
    for name, words in (("alexdeploy", "-m alexdeploy"), ("python", ""), ("python3", "")):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        path.chmod(0o755)
    return folder


# Of commands that train, serve or export, or of many: each takes ten seconds and more.
_LONG = ("README", "cookbook", "deployment", "embed", "ensembles", "explain", "handing-on", "precision", "quickstart")
_QUICK = [page for page in PAGES if page.stem not in (*_LONG, "serving", "training", "troubleshooting")]


@pytest.mark.skipif(sys.platform == "win32", reason="the pages are for a POSIX shell")
@pytest.mark.parametrize("page", slow_but_for(_QUICK, PAGES), ids=lambda page: page.name)
def test_every_block_of_a_page_does_what_the_page_says(
    page: Path, home: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = blocks_of(page)
    if not any(block.is_run for block in blocks):
        return
    place = tmp_path / "reader"
    place.mkdir()
    begins = blocks[0].marks.get("folder")
    if begins != "empty":
        ignored = shutil.ignore_patterns(*["models"] * (begins == "without models"))
        shutil.copytree(home, place, dirs_exist_ok=True, ignore=ignored)
    monkeypatch.chdir(place)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    with Reader(monkeypatch, programs) as reader:
        for block in blocks:
            if block.skip_reason is None and (block.language not in SHOWN or block.marks.keys() & {"output", "file"}):
                reader.read(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_is_indented_instead_of_fenced(page: Path) -> None:
    assert [f"{page.relative_to(ROOT)}:{line}" for line in indented_blocks(page)] == []


def test_the_blocks_that_are_not_run_have_a_reason(record_property: pytest.RecordProperty) -> None:
    """blocks_of refuses any other reason; this counts them, for `pytest -rP -k reason` and reports."""
    blocks = [block for page in PAGES for block in blocks_of(page)]
    skipped = Counter(block.skip_reason for block in blocks if block.skip_reason is not None)
    files = sum("file" in block.marks for block in blocks)
    run = Counter(block.language for block in blocks if block.is_run)
    print(f"{run.total()} blocks run: {', '.join(f'{number} {name}' for name, number in run.most_common())}")
    print(f"{files} written to files, {sum('output' in block.marks for block in blocks)} outputs compared")
    print(f"{skipped.total()} skipped: {', '.join(f'{number} {reason}' for reason, number in skipped.most_common())}")
    record_property("blocks_run", run.total())
    assert run.total() > skipped.total()


def test_commands_that_are_not_run_are_parsed_without_an_error() -> None:
    known: Any = typer.main.get_command(app.app)
    for block in (block for page in PAGES for block in blocks_of(page)):
        if block.skip_reason is None or block.skip_reason == "is an outline":
            continue
        if block.language == "python":
            compile(block.source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for name, *words in alexdeploy_commands(block):
            assert name in known.commands, f"{block.place}: there is no command {name}"
            known.commands[name].make_context(name, words)


def alexdeploy_commands(block: Block) -> list[list[str]]:
    """The words after each `alexdeploy` of a block: a command and what it gets."""
    lines = shell_commands(block.source) if block.language in ("sh", "console") else []
    parts = (re.split(r"(?:^|&& |-m )alexdeploy +(?=[a-z])", line, maxsplit=1)[1:] for line in lines)
    return [shlex.split(re.split(r" (?:&&|[|<>;]) ", rest)[0], comments=True) for part in parts for rest in part]
