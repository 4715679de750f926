"""Words of other programs are errors that name the word that helps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import command_options
import pytest
from program import Run

from alexdeploy.cli.app import options_of
from alexdeploy.cli.synonyms import COMMANDS, OPTIONS, option_error

NAMES = list(command_options.commands())
KNOWN = options_of(NAMES)


@pytest.mark.parametrize("word", OPTIONS)
def test_an_option_of_another_program_leads_to_one_that_exists(word: str) -> None:
    for command in (name for name in NAMES if word not in KNOWN[name]):
        error = option_error(word, command, KNOWN)
        assert word in error.message
        assert error.hint is not None
        (suggested,) = re.findall(r"--[a-z-]+", error.hint)
        others = re.search(r"is an option of: (.*)$", error.hint)
        where = [command] if others is None else others[1].split(", ")
        assert all(suggested in KNOWN[each] for each in where)


@pytest.mark.parametrize(("word", "meant"), COMMANDS.items())
def test_a_command_of_another_program_is_an_error_that_names_ours(program: Run, word: str, meant: str) -> None:
    result = program(word)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(f"alexdeploy {meant}\n")
    first, *options = meant.split()
    assert first in NAMES or program(first).exit_code == 0
    assert all(option in KNOWN[first] for option in options if option.startswith("--"))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("train", "--lr", "0.1"), "--learning-rate"),
        (("predict", "x.jpg", "--gpu"), "--devices"),
        (("predict", "x.jpg", "--half"), "--precision fp16"),
        (("export", "--half"), "--precision fp16"),
        (("train", "--imgsz=128"), "--set architecture.input"),
        (("predict", "x.jpg", "--workers=4"), "--threads"),
        (("train", "--project", "x"), "--name"),
        (("predict", "x.jpg", "--project", "x"), "--output"),
        (("build", "--device", "0"), "--devices"),
        (("predict", "x.jpg", "--batch", "4"), "--batch-size"),
        (("build", "--batch", "4"), "--max-batch"),
    ],
)
def test_the_words_of_ultralytics_and_torchvision_lead_to_ours(program: Run, words: tuple[str, ...], hint: str) -> None:
    result = program(*words)
    assert result.exit_code == 2
    assert hint in result.stderr.splitlines()[-1]


def test_after_two_dashes_every_word_is_an_argument(program: Run) -> None:
    assert "'--lr' is neither" in program("inspect", "--", "--lr").stderr


@pytest.mark.parametrize(
    "words",
    [
        ("build", "s3://bucket/model"),
        ("bench", "--images", "s3://bucket/photographs"),
        ("evaluate", "images", "--labels=https://example.org/labels"),
        ("import", "http://example.org/x y.onnx"),
        ("evaluate", "images", "--labels", "https://example.org/labels.txt"),
    ],
)
def test_a_url_is_an_error_that_says_how_to_get_the_file(program: Run, words: tuple[str, ...]) -> None:
    result = program(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    url = next(word.removeprefix("--labels=") for word in words if "://" in word)
    *_, found = shlex.split(result.stderr.splitlines()[-1])
    assert found == url


def test_a_list_without_its_sign_is_an_error_that_names_it_with(
    program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("photographs/écureuil.jpg\n", encoding="utf-8")
    for command in (("predict", "list.txt"), ("predict", "-", "list.txt")):
        result = program(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.endswith("@list.txt\n")
