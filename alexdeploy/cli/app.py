"""The `alexdeploy` program: loads the command that is asked for, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from types import FrameType
from typing import Annotated, Any

import typer

import alexdeploy
from alexdeploy.cli import output
from alexdeploy.cli.one_voice import hush
from alexdeploy.core.errors import AlexDeployError, OutputError

_COMMANDS = {
    "prepare": "prepare",
    "train": "train",
    "calibrate": "calibrate",
    "export": "export",
    "build": "build",
    "predict": "predict",
    "evaluate": "evaluate",
    "verify": "verify",
    "bench": "bench",
    "inspect": "inspect",
    "import": "import_",
    "sample": "sample",
    "devices": "devices",
    "doctor": "doctor",
}
"""Command -> what its module in this package and the function in there are called."""


def command_line(commands: Iterable[str] = _COMMANDS) -> typer.Typer:
    """The program with these commands. One of them is ready 40 ms before all are."""
    program = typer.Typer(
        name="alexdeploy",
        help="AlexNet from training to production inference: train, export, predict.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_options)
    for name in commands:
        module = importlib.import_module(f"alexdeploy.cli.{_COMMANDS[name]}")
        program.command(name)(getattr(module, _COMMANDS[name]))
    return program


def __getattr__(name: str) -> Any:
    # For Typer's own tools, which look for the whole program by this name.
    if name == "app":
        return command_line()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"alexdeploy {alexdeploy.__version__}")
        raise typer.Exit


def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. May stand after the command as well.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if debug:
        os.environ["ALEXDEPLOY_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit: 0 well, 1 bug, 2 usage, 3 inputs, 4 model, 5 device, 6 output, 130/143 stopped."""
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        # Stop as on Ctrl-C, so that whatever saves on the one saves on the other.
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    hush()
    try:
        words = _debug_first(sys.argv[1:])
        asked = set(words[: 2 if words[:1] == ["--debug"] else 1]) & _COMMANDS.keys()
        # Without one that there is: for the help, the completion, and the names that are like a misspelt one.
        command_line(asked or _COMMANDS)(words, prog_name="alexdeploy")
    except AlexDeployError as error:
        if "ALEXDEPLOY_DEBUG" in os.environ:
            traceback.print_exception(error)
        output.fail(error)
        if isinstance(error, OutputError):
            # What still waits in stdout's buffer has nowhere to go; flushing it at exit would only fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        sys.exit(143 if terminated else stop.code)
    except KeyboardInterrupt:
        # Outside of Typer, which would have made an exit of it: while the command was imported.
        sys.exit(143 if terminated else 130)


def _debug_first(arguments: list[str]) -> list[str]:
    """Move --debug, an option of the program, in front of the command. After -- it is an argument like others."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return arguments
    return ["--debug", *(word for word in arguments[:end] if word != "--debug"), *arguments[end:]]
