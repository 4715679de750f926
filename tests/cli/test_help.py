"""What --help says: examples that parse, groups, and values as people write them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import command_options
import pytest
import typer.main
from program import Run

from alexdeploy.cli import app

COMMANDS = command_options.commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_three_examples(program: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    usage, *lines = [line.strip() for line in program(name, "--help").stdout.splitlines() if line.strip()]
    assert usage.startswith(f"Usage: alexdeploy {name} ")
    assert all(line.startswith(f"alexdeploy {name}") for line in lines[:3])
    assert not lines[3].startswith("alexdeploy")


def examples() -> list[str]:
    """Every command line that a help begins with."""
    return re.findall(
        r"^(alexdeploy .*)$",
        "\n".join((typer.main.get_command(app.app).help or "", *(c.help for c in COMMANDS.values()))),
        re.MULTILINE,
    )


@pytest.mark.parametrize("example", examples())
def test_an_example_is_parsed_without_an_error(example: str) -> None:
    _, name, *words = shlex.split(example)
    context = COMMANDS[name].make_context(name, words)
    assert not context.args


def test_there_are_three_examples_of_each_command() -> None:
    found = [shlex.split(each)[1] for each in examples()]
    # Those of the program itself are of train, export and predict.
    for name in COMMANDS:
        assert found.count(name) == 3 + (name in ("train", "export", "predict")), name


def test_commands_are_grouped(program: Run) -> None:
    text = program("--help").stdout
    places = {name: text.index(f"─ {name} ─") for name in ("Make", "Check", "Run", "Look")}
    assert list(places.values()) == sorted(places.values())
    for name, command in COMMANDS.items():
        after = {place for place in places.values() if place < text.index(f"│ {name} ")}
        assert places[command.rich_help_panel] == max(after)


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_types_are_shown_as_people_write_them(program: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = program(*[name] * bool(name), "--help").stdout
    # Nothing is cut off, and no word of Python's or Click's types is shown.
    assert "…" not in text
    assert not re.search(r"INTEGER|FLOAT|TEXT|PATH\b|BOOLEAN|Optional|lambda|<\w+|list\[|[{}]", text)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_with_a_value_says_of_what_kind(name: str) -> None:
    options: list[Any] = [param for param in COMMANDS[name].params if param.param_type_name == "option"]
    assert [param.opts for param in options if not param.is_flag and not param.metavar] == []


def test_the_environment_variables_are_in_the_help_and_in_the_docs(program: Run) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    found = set(re.findall(r"\bALEXDEPLOY_[A-Z]+\b", page))
    assert found == {"ALEXDEPLOY_CACHE", "ALEXDEPLOY_STATE", "ALEXDEPLOY_DEBUG"}
    assert found == set(re.findall(r"\bALEXDEPLOY_[A-Z]+\b", program("--help").stdout))
    code = "".join(path.read_text(encoding="utf-8") for path in Path(app.__file__).parents[1].rglob("*.py"))
    assert found == set(re.findall(r"\bALEXDEPLOY_[A-Z]+\b", code))
