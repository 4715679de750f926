"""The promises that hold for every command: exit codes, which stream, colours, how fast help answers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE, slow_but_for
from program import Result, Run, terminal_output

from alexdeploy import __version__
from alexdeploy.cli import app
from alexdeploy.core import errors
from alexdeploy.core.errors import AlexDeployError, OutputError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.diagnosis import inspect as inspect_module

COMMANDS = (
    "prepare",
    "train",
    "calibrate",
    "export",
    "build",
    "ensemble",
    "triton",
    "card",
    "predict",
    "embed",
    "similar",
    "serve",
    "evaluate",
    "verify",
    "bench",
    "explain",
    "inspect",
    "figures",
    "import",
    "sample",
    "devices",
    "doctor",
)
MODULE = (sys.executable, "-m", "alexdeploy")
ESCAPE = "\x1b"

posix_only = pytest.mark.skipif(os.name != "posix", reason="signals and terminals of POSIX")


@pytest.fixture
def run(program: Run) -> Run:
    """The program in this process."""
    return program


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `alexdeploy inspect` raise the given error."""

    def fail(error: BaseException) -> None:
        def inspect(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(inspect_module, "inspect", inspect)

    return fail


def plain_environment(**more: str) -> dict[str, str]:
    """Of what changes colours, widths and completion only `more`; and no other program's settings."""
    unwanted = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "NO_COLOR", "COLUMNS", "ALEXDEPLOY_DEBUG", "TTY_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    return {**kept, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def program(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MODULE, *args],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=plain_environment(**environment),
        timeout=PATIENCE,
    )


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain_environment()
    )
    return done.stdout


def test_help_lists_every_command() -> None:
    done = program("--help", COLUMNS="100")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: alexdeploy [OPTIONS] COMMAND" in done.stdout
    assert all(re.search(rf"^│ {command} ", done.stdout, re.MULTILINE) for command in COMMANDS)
    assert len(app.app.registered_commands) == len(COMMANDS)


def test_no_arguments_at_all_show_the_help_and_are_a_usage_error() -> None:
    done = program()
    assert done.returncode == 2
    assert "Usage: alexdeploy" in done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(run: Run, command: str, option: str) -> None:
    result = run(command, option)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"alexdeploy {command}" in result.stdout


def test_help_answers_at_once() -> None:
    # Processor time, which a busy machine hardly changes, against that of importing Typer here: measured 2.3 times as
    # long, and with PyTorch it would be 17 times. What is imported exactly is tested below.
    def seconds(run: Callable[[], object]) -> float:
        times = []
        for _ in range(2):
            before = os.times()
            run()
            after = os.times()
            times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        return min(times)

    assert seconds(lambda: program("--help")) < 4 * seconds(lambda: python("import typer, rich.console"))


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    loaded = python(
        "import sys; from alexdeploy.cli import app; sys.argv = ['alexdeploy', '--version']\n"
        "try: app.main()\nexcept SystemExit: print(*sys.modules)"
    ).split()
    heavy = {"numpy", "onnx", "onnxruntime", "openvino", "torch", "PIL", "msgspec", "safetensors", "google.protobuf"}
    assert "alexdeploy.cli.train" in loaded
    assert not heavy & set(loaded)


def test_rich_is_imported_only_where_typer_does_so_itself() -> None:
    with_typer = set(python("import sys, typer; print(*sys.modules)").split())
    with_us = set(python("import sys; from alexdeploy.cli.app import app; print(*sys.modules)").split())
    assert {f"alexdeploy.cli.{name}" for name in ("predict", "import_", "train")} <= with_us
    assert not {name for name in with_us - with_typer if name.partition(".")[0] == "rich"}


def test_the_version_is_printed(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"alexdeploy {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("alexdeploy ", set(COMMANDS)),
        ("alexdeploy i", {"inspect", "import"}),
        ("alexdeploy predict --te", {"--tencrop"}),
    ],
)
def test_bash_completes_commands_and_options(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: str, expected: set[str]
) -> None:
    done = completed(run, monkeypatch, words)
    assert done.exit_code == 0
    assert set(done.stdout.split()) == expected


def completed(run: Run, monkeypatch: pytest.MonkeyPatch, words: str) -> Result:
    """What bash is told when the last of `words` is to be completed."""
    monkeypatch.setenv("_ALEXDEPLOY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    return run()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("alexdeploy export ti", {"tiny"}),
        ("alexdeploy predict x.jpg --model ", {"tiny", "other"}),
        ("alexdeploy train --pretrained ot", {"other"}),
        ("alexdeploy train --recipe caffe", {"caffe-alexnet", "caffenet"}),
        ("alexdeploy train --recipe mi", {"mine"}),
        ("alexdeploy inspect t", {"tiny", "torchvision"}),
        ("alexdeploy import x.onnx --recipe one", {"one-tower"}),
    ],
)
def test_bash_completes_models_and_recipes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, expected: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "other"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "spec.json").touch()
    (tmp_path / "models" / "no-model").mkdir()
    (tmp_path / "models" / "mine.toml").touch()
    done = completed(run, monkeypatch, words)
    assert (done.exit_code, set(done.stdout.split())) == (0, expected)


def test_completion_of_names_imports_nothing_heavy() -> None:
    loaded = python(
        "import sys; from alexdeploy.cli.completion import model_and_recipe_names; model_and_recipe_names('')\n"
        "print(*sys.modules)"
    ).split()
    assert not {"numpy", "msgspec", "onnx", "typer", "rich"} & set(loaded)


@posix_only
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_completion_script_works_in_bash(tmp_path: Path) -> None:
    # Which shell it is cannot be detected here, so it is named.
    shown = program("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0
    installed = tmp_path / "alexdeploy"
    installed.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m alexdeploy "$@"\n')
    installed.chmod(0o755)
    function = re.search(r"complete .*-F (\w+) alexdeploy", shown.stdout)
    assert function is not None
    script = (
        f"{shown.stdout}\nCOMP_WORDS=(alexdeploy expo); COMP_CWORD=1\n"
        f'{function.group(1)} alexdeploy expo alexdeploy\necho "${{COMPREPLY[@]}}"'
    )
    environment = plain_environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "export"


@pytest.mark.parametrize("args", [("bogus",), ("--bogus",), ("predict",), ("inspect", "--num-classes", "many")])
def test_words_that_make_no_sense_are_usage_errors(run: Run, args: tuple[str, ...]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: alexdeploy" in result.stderr
    assert "Traceback" not in result.stderr


EXIT_CODES = {
    "UsageError": 2,
    "RecipeError": 2,
    "InputError": 3,
    "ImageError": 3,
    "DataError": 3,
    "ModelError": 4,
    "StaleArtifactError": 4,
    "ParityError": 4,
    "DivergedError": 4,
    "DeviceError": 5,
    "DeviceMemoryError": 5,
    "QueueFullError": 5,
    "DeadlineError": 5,
}


def test_every_public_error_has_a_documented_exit_code() -> None:
    public = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, AlexDeployError)
    }
    assert public == {**EXIT_CODES, "OutputError": 6, "AlexDeployError": 1}


@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_is_its_exit_code_with_message_and_cure_on_stderr(
    run: Run, failing: Callable[[BaseException], None], name: str
) -> None:
    failing(getattr(errors, name)("found 3 of [bold]4[/bold]", hint="Give one more: alexdeploy more"))
    assert run("inspect") == Result(
        exit_code=EXIT_CODES[name],
        stdout="",
        stderr="error: found 3 of [bold]4[/bold]\nGive one more: alexdeploy more\n",
    )


def test_memory_that_runs_out_is_exit_code_5_without_a_traceback(
    run: Run, failing: Callable[[BaseException], None]
) -> None:
    failing(MemoryError("Unable to allocate 183. GiB"))
    result = run("inspect")
    assert result.exit_code == 5
    assert "not enough memory: Unable to allocate 183. GiB" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_adds_the_traceback_to_the_message(run: Run, failing: Callable[[BaseException], None]) -> None:
    failing(UsageError("this is wrong", hint="Do that."))
    result = run("--debug", "inspect")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.endswith("error: this is wrong\nDo that.\n")


@pytest.mark.parametrize("words", [("inspect", "--debug"), ("inspect", "alexnet", "--debug", "--json")])
def test_debug_may_stand_after_the_command(
    run: Run, failing: Callable[[BaseException], None], words: tuple[str, ...]
) -> None:
    failing(UsageError("this is wrong"))
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.endswith("error: this is wrong\n")


def test_debug_after_two_dashes_is_an_argument(run: Run) -> None:
    result = run("inspect", "--", "--debug")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'--debug' is neither a recipe nor a model" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_of_ours_is_a_bug_with_exit_code_1_and_a_traceback() -> None:
    code = (
        "import sys; from alexdeploy.cli import app; from alexdeploy.diagnosis import inspect\n"
        "inspect.inspect = lambda *_, **__: [][1]\n"
        "sys.argv = ['alexdeploy', 'inspect']; app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=plain_environment()
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("IndexError: list index out of range\n")


def test_what_would_steer_a_terminal_is_not_printed_with_an_error(
    run: Run, failing: Callable[[BaseException], None]
) -> None:
    failing(UsageError("a file called \x1b[2J\x07.onnx\nand a line"))
    assert run("inspect").stderr == "error: a file called \\x1b[2J\\x07.onnx\nand a line\n"


def test_ctrl_c_is_exit_code_130(run: Run, failing: Callable[[BaseException], None]) -> None:
    failing(KeyboardInterrupt())
    result = run("inspect")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr


@posix_only
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_running_command_with_its_exit_code(
    tiny_model: ModelFolder, tmp_path: Path, number: int, exit_code: int
) -> None:
    (tmp_path / "list.txt").write_text("missing.jpg\n" * 100_000)
    words = [*MODULE, "predict", "@list.txt", "--model", str(tiny_model.path), "--backend", "onnxruntime"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=plain_environment()
    ) as process:
        assert process.stdout is not None
        assert "missing.jpg" in process.stdout.readline()
        process.send_signal(number)
        _, messages = process.communicate(timeout=PATIENCE)
    assert process.returncode == exit_code
    assert "Traceback" not in messages


@posix_only
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_a_command_is_imported_ends_it_with_its_exit_code(number: int, exit_code: int) -> None:
    # Stops the import of the command for as long as it takes to send the signal.
    code = (
        "import sys, time\nfrom alexdeploy.cli import app\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'alexdeploy.cli.inspect': print('importing', flush=True); time.sleep(3600)\n"
        "sys.meta_path.insert(0, Slow())\nsys.argv = ['alexdeploy', 'inspect']\napp.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=plain_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        _, messages = process.communicate(timeout=PATIENCE)
    assert (process.returncode, messages) == (exit_code, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_disk_under_stdout_is_exit_code_6(options: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MODULE, "inspect", *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (6, "error: stdout could not be written: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "options", slow_but_for([("predict", "--help")], [("--help",), ("--version",), ("predict", "--help")])
)
def test_help_that_a_full_disk_does_not_take_is_exit_code_6_with_one_line(options: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*MODULE, *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=plain_environment()
        )
    assert done.returncode == 6
    assert done.stderr == "error: stdout could not be written: No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_messages_that_a_full_disk_does_not_take_leave_the_exit_code_as_it_is() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MODULE, "evaluate", "nosuch"], stderr=full, check=False, env=plain_environment())
    assert done.returncode == program("evaluate", "nosuch").returncode == 2


@posix_only
@pytest.mark.parametrize("closed", slow_but_for([">&-", "<&- >&- 2>&-"], ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]))
def test_a_closed_stdout_is_exit_code_6_and_other_closed_streams_are_as_good_as_dev_null(closed: str) -> None:
    def run_in_shell(redirections: str) -> subprocess.CompletedProcess[str]:
        words = ["sh", "-c", f'exec "$@" {redirections}', "sh", *MODULE, "inspect", "alexnet"]
        return subprocess.run(words, capture_output=True, text=True, check=False, env=plain_environment())

    done = run_in_shell(closed)
    if " >" in f" {closed}":
        # The results went nowhere.
        said = "" if "2>" in closed else "error: stdout could not be written: Bad file descriptor\n"
        assert (done.returncode, done.stderr, done.stdout) == (6, said, "")
    else:
        assert (done.returncode, done.stderr, done.stdout) == (0, "", run_in_shell("").stdout)


@posix_only
@pytest.mark.parametrize("words", slow_but_for([("inspect",)], [("inspect",), ("inspect", "--json"), ("--help",)]))
def test_a_reader_that_went_away_ends_the_command_quietly(words: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(
            [*MODULE, *words], stdout=nobody, stderr=subprocess.PIPE, text=True, check=False, env=plain_environment()
        )
        # 128 + SIGPIPE, as a shell says of other tools.
        assert (done.returncode, done.stderr) == (141, "")


@posix_only
def test_a_working_folder_that_was_deleted_is_a_usage_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = run("inspect")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the working folder has been deleted\n")
    assert run("--version").exit_code == 0


def test_an_output_error_leaves_nothing_to_fail_again_at_the_end() -> None:
    code = (
        "import sys; from alexdeploy.cli import app; from alexdeploy.diagnosis import inspect\n"
        "from alexdeploy.core.errors import OutputError\n"
        "def fail(*_, **__): print('half a row'); raise OutputError('stdout is closed')\n"
        "inspect.inspect = fail; sys.argv = ['alexdeploy', 'inspect']; app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=plain_environment()
    )
    assert (done.returncode, done.stderr) == (OutputError.exit_code, "error: stdout is closed\n")


def on_terminal(*args: str, **environment: str) -> str:
    """What the program shows on a terminal of its own, both streams."""
    _, shown = terminal_output([*MODULE, *args], plain_environment(**environment))
    return shown.decode()


COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7])[0-9;]*m")


@posix_only
def test_errors_are_red_on_a_terminal_and_no_color_is_respected() -> None:
    assert COLOUR.search(on_terminal("inspect", "nothing"))
    assert not COLOUR.search(on_terminal("inspect", "nothing", NO_COLOR="1"))


@posix_only
def test_help_respects_no_color() -> None:
    assert COLOUR.search(on_terminal("--help"))
    assert not COLOUR.search(on_terminal("--help", NO_COLOR="1"))


@pytest.mark.parametrize("args", [("inspect",), ("inspect", "nothing"), ("--help",), ("bogus",), ("export", "x")])
def test_there_are_no_escape_codes_where_no_terminal_is(run: Run, args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.stdout + done.stderr
    assert ESCAPE not in done.stdout + done.stderr
