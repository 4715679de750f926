"""The options of all commands: the same word, the same meaning, and no hole without a reason."""

from __future__ import annotations

from pathlib import Path

import command_options
import pytest
from command_options import COMMON, DIFFERENT, holes, options
from program import Run

from alexdeploy.core.model_folder import ModelFolder

ROOT = Path(__file__).parents[2]


def test_every_command_has_the_common_options_or_a_reason() -> None:
    missing = {(option, name) for option in COMMON for name, named in options().items() if option not in named}
    assert missing == holes().keys()


def test_an_option_means_the_same_in_every_command_or_there_is_a_reason() -> None:
    named = options()
    for option in {each for of_command in named.values() for each in of_command}:
        exceptions = DIFFERENT.get(option, {})
        meanings = {name: each[option] for name, each in named.items() if option in each and name not in exceptions}
        assert len(set(meanings.values())) <= 1, (option, meanings)
        assert exceptions.keys() <= {name for name, each in named.items() if option in each}, option


def test_the_short_options_mean_the_same_everywhere() -> None:
    short: dict[str, set[str]] = {}
    for command in command_options.commands().values():
        for param in command.params:
            for word in param.opts:
                if not word.startswith("--") and param.param_type_name == "option":
                    short.setdefault(word, set()).add(max(param.opts, key=len))
    assert short == {"-k": {"--neighbours"}, "-o": {"--output"}, "-q": {"--quiet"}, "-v": {"--verbose"}}


def test_the_page_of_options_is_that_of_the_commands() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == command_options.table(), "run: make docs"


@pytest.fixture
def two_models(tiny_model: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """models/tiny and models/other, with the working folder above them."""
    monkeypatch.chdir(tiny_model.path.parents[1])
    other = ModelFolder(Path("models/other"))
    other.path.mkdir()
    other.spec_path.write_bytes(tiny_model.spec_path.read_bytes())
    return tiny_model


@pytest.mark.parametrize("command", ["export", "build", "verify", "bench", "inspect", "calibrate"])
def test_a_model_that_is_named_twice_must_be_the_same(program: Run, two_models: ModelFolder, command: str) -> None:
    result = program(command, "tiny", "--model", "other")
    assert result.exit_code == 2
    assert "MODEL is tiny and --model is other" in result.stderr


@pytest.mark.parametrize("words", [("tiny",), ("--model", "tiny"), ("models/tiny", "--model", "tiny")])
def test_the_model_is_an_argument_or_an_option(program: Run, two_models: ModelFolder, words: tuple[str, ...]) -> None:
    assert program("inspect", *words).stdout.startswith("model ")
    result = program("verify", *words, "--backend", "onnxruntime", "--precision", "fp16", "--num-images", "2")
    assert result.exit_code == 0, result.stderr
    assert "models/tiny" in result.stderr.splitlines()[0]


def test_after_the_option_model_all_words_are_images(program: Run, two_models: ModelFolder) -> None:
    for words in (("verify", "nosuch", "--model", "tiny"), ("calibrate", "nosuch", "--model", "tiny")):
        result = program(*words)
        assert result.exit_code == 2
        assert "nosuch" in result.stderr
    assert program("calibrate", "tiny").exit_code == 2
    assert program("calibrate", "--model", "tiny").exit_code == 2


def test_quiet_leaves_stderr_empty_and_the_results_as_they_are(program: Run, tiny_model: ModelFolder) -> None:
    loud, quiet = program("export", tiny_model.path, "--json"), program("export", tiny_model.path, "--json", "-q")
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert quiet.stdout == loud.stdout != ""
    assert loud.stderr != ""
    assert program("inspect", "nosuch", "-q").stderr.startswith("error: ")


def test_verbose_names_the_version_and_the_time_of_each_note(program: Run) -> None:
    lines = program("devices", "-v").stderr.splitlines()
    assert "alexdeploy " in lines[0]
    assert "Python " in lines[0]
    assert all(line.startswith("[") and " s] " in line for line in lines)


def test_quiet_and_verbose_exclude_each_other(program: Run) -> None:
    for words in (("-q", "-v"), ("--verbose", "--quiet")):
        result = program("devices", *words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--quiet and --verbose" in result.stderr
    assert program("devices", "-q").exit_code == 0
