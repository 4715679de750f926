"""A reader of the pages: runs a page's blocks in the working folder, each as its language and comments say."""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from blocks import ROOT, Block
from patience import PATIENCE
from serve_process import Program

from alexdeploy.cli import app, output

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

QUICK = {
    "train": ("--epochs", "1"),
    "bench": ("--seconds", "0"),
}
"""What is added to a command, whatever the page says: enough for it to do all it does, but soon."""

_NARROW = ("--set", "architecture.width=0.0625", "--set", "architecture.hidden=[512, 512]")
_WIDTH = "120"
_ADDRESSES = ("127.0.0.1:8000", "127.0.0.1:8001")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# What only a shell understands, outside of quotes; ~ and = are left out, since options have them.
_FOR_THE_SHELL = re.compile(r"[|&;<>()$`*?{}]")
_COMPOUND = re.compile(r"^\s*(for|while|if|case)\b|<<", re.MULTILINE)


class Reader:
    """The state of one page: names of its Python blocks, the server that it started, what the last block printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bin_folder: Path) -> None:
        self._patch = monkeypatch
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._loop = asyncio.new_event_loop()
        self._server: Program | None = None
        self._printed = ""
        self._bin = bin_folder

    def __enter__(self) -> Reader:
        self._patch.setenv("PATH", f"{self._bin}{os.pathsep}{os.environ['PATH']}")
        self._patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        self._patch.setenv("COLUMNS", _WIDTH)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_server()
        self._loop.close()

    def read(self, block: Block) -> None:
        """Run a block, write its file, or compare what was printed. Raises AssertionError that names the line."""
        if "setup" in block.marks:
            exit_code, printed = _shell(block.marks["setup"])
            assert exit_code == 0, f"{block.place}: setup ended with {exit_code}:\n{printed}"
        if "file" in block.marks:
            path = Path(block.marks["file"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._with_addresses(block.source), encoding="utf-8")
        elif "output" in block.marks:
            _compare(block.place, block.source, self._printed)
        elif block.language == "python":
            self._python(block)
        elif block.language == "console":
            self._console(block)
        else:
            commands = [block.source] if _COMPOUND.search(block.source) else shell_commands(block.source)
            expected = [0] * (len(commands) - 1) + [int(block.marks.get("exit code", 0))]
            shown = [self._command(block, *each, is_terminal=False) for each in zip(commands, expected, strict=True)]
            self._printed = "".join(shown)

    def _python(self, block: Block) -> None:
        # The traceback has the lines of the page.
        source = "\n" * block.line + self._with_addresses(block.source)
        code = compile(source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        with _Streams(is_terminal=False) as streams:
            try:
                result = eval(code, self._names)
                if inspect.iscoroutine(result):
                    self._loop.run_until_complete(result)
            except Exception as exc:
                exc.add_note(f"in {block.place}; it printed:\n{streams.text}")
                raise
        self._printed = streams.text

    def _console(self, block: Block) -> None:
        parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n?", block.source, flags=re.MULTILINE)[1:]
        commands, outputs = parts[::2], parts[1::2]
        shown = []
        for count, (command, expected) in enumerate(zip(commands, outputs, strict=True), 1):
            exit_code = int(block.marks.get("exit code", 0)) if count == len(commands) else 0
            printed = self._command(block, command, exit_code, is_terminal=True)
            _compare(f"{block.place}, {command}", expected, printed)
            shown.append(printed)
        self._printed = "".join(shown)

    def _command(self, block: Block, command: str, expected: int, *, is_terminal: bool) -> str:
        command = self._with_addresses(command.replace("\\\n", " "))
        words = shlex.split(command, comments=True)
        if not words:
            return ""
        exit_code, printed = self._run(command, words, shlex.split(block.marks.get("with", "")), is_terminal)
        assert exit_code == expected, (
            f"{block.place}: {command}\nended with {exit_code}, expected {expected}:\n{printed}"
        )
        return printed

    def _run(self, command: str, words: list[str], added: list[str], is_terminal: bool) -> tuple[int, str]:
        if _is_pip(words):
            _check_extras(words)
            return 0, ""
        if words[0] == "cd":
            self._patch.chdir(words[1])
            return 0, ""
        if words[0] == "export":
            self._patch.setenv(*words[1].split("=", 1))
            return 0, ""
        if words[:2] == ["alexdeploy", "serve"]:
            return 0, self._serve([*words[2:], *added])
        quoted = re.sub(r"'[^']*'|\"[^\"$`]*\"", "", command.partition(" #")[0])
        if words[0] == "alexdeploy" and not _FOR_THE_SHELL.search(quoted):
            return _alexdeploy([*words[1:], *_quick(words), *added], is_terminal)
        return _shell(command)

    def _serve(self, words: list[str]) -> str:
        self._end_server()
        command = [sys.executable, "-m", "alexdeploy", "serve", *words, "--port", "0", "--grpc-port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._server = Program(process=process)
        self._server.watch()
        self._server.wait_until("^try: curl")
        return "".join(self._server.lines)

    def _end_server(self) -> None:
        if self._server is not None:
            code = self._server.end(signal.SIGTERM)
            self._server.process.communicate()
            assert code == 0, f"the server of the page ended with {code}:\n{''.join(self._server.lines)}"
            self._server = None

    def _with_addresses(self, text: str) -> str:
        if self._server is not None:
            found = (self._server.url.partition("://")[2], self._server.grpc if _ADDRESSES[1] in text else "")
            for documented, running in zip(_ADDRESSES, found, strict=True):
                text = text.replace(documented, running)
        return text


def _shell(command: str) -> tuple[int, str]:
    """A command in a shell of its own: its exit code, and what it prints."""
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout


class _Streams:
    """sys.stdout and sys.stderr in one text, as a terminal shows them; no bars, which only a terminal's stderr has.

    What writes to a descriptor writes to that of the test.
    """

    def __init__(self, *, is_terminal: bool) -> None:
        self._bytes = io.BytesIO()
        self._ours = (_Stream(self._bytes, is_terminal), _Stream(self._bytes, False))
        self._before = (sys.stdout, sys.stderr)

    @property
    def text(self) -> str:
        return _CONTROL.sub("", self._bytes.getvalue().decode())

    def __enter__(self) -> _Streams:
        sys.stdout, sys.stderr = self._ours
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._before


class _Stream(io.TextIOWrapper):
    def __init__(self, shared: io.BytesIO, is_terminal: bool) -> None:
        super().__init__(shared, encoding="utf-8", write_through=True)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def _alexdeploy(words: Sequence[str], is_terminal: bool) -> tuple[int, str]:
    """The command in this process: its exit code, and what it prints."""
    argv = sys.argv
    sys.argv = ["alexdeploy", *words]
    try:
        with _Streams(is_terminal=is_terminal) as streams, pytest.raises(SystemExit) as stop:
            app.main()
    finally:
        sys.argv = argv
        output.set_quiet(False)
        output.set_verbose(False)
    return int(stop.value.code or 0), streams.text


def _quick(words: Sequence[str]) -> tuple[str, ...]:
    added = QUICK.get(words[1], ()) if len(words) > 1 else ()
    if words[1:2] == ["train"] and not {"--pretrained", "-h", "--help"} & set(words):
        return (*added, *_NARROW)
    return added


def shell_commands(source: str) -> list[str]:
    """The commands of a shell block: a line each, joined with the lines that a backslash continues."""
    lines = source.replace("\\\n", " ").split("\n")
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _is_pip(words: Sequence[str]) -> bool:
    return words[:2] == ["pip", "install"] or words[1:4] == ["-m", "pip", "install"]


def _check_extras(words: Sequence[str]) -> None:
    """Every extra in `pip install '.[cpu,train]'` is one of pyproject.toml."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for word in words:
        found = re.fullmatch(r"(?:\.|alexdeploy)(?:-[^\[]*)?\[([\w,-]+)\].*", word)
        for extra in found[1].split(",") if found else ():
            assert extra in known, f"{word}: there is no extra {extra}"


def _compare(place: str, expected: str, printed: str) -> None:
    """Compare line by line, without spaces at the ends of lines; `...` stands for anything."""
    wanted, found = ("\n".join(line.rstrip() for line in text.strip("\n").split("\n")) for text in (expected, printed))
    pattern = ".*?".join(map(re.escape, wanted.split("...")))
    assert re.fullmatch(pattern, found, re.DOTALL), f"{place}: expected\n{wanted}\n\nprinted\n{found}"
