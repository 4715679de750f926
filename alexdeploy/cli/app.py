"""The `alexdeploy` program: registers one command per module, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

import alexdeploy
from alexdeploy.cli import (
    bench,
    build,
    calibrate,
    devices,
    doctor,
    evaluate,
    export,
    import_,
    inspect,
    output,
    predict,
    prepare,
    sample,
    train,
    verify,
)
from alexdeploy.cli.one_voice import hush
from alexdeploy.core.errors import AlexDeployError, OutputError

app = typer.Typer(
    name="alexdeploy",
    help="AlexNet from training to production inference: train, export, predict.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prepare.prepare)
app.command()(train.train)
app.command()(calibrate.calibrate)
app.command()(export.export)
app.command()(build.build)
app.command()(predict.predict)
app.command()(evaluate.evaluate)
app.command()(verify.verify)
app.command()(bench.bench)
app.command()(inspect.inspect)
app.command("import")(import_.import_)
app.command()(sample.sample)
app.command()(devices.devices)
app.command()(doctor.doctor)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"alexdeploy {alexdeploy.__version__}")
        raise typer.Exit


@app.callback()
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
        app(_debug_first(sys.argv[1:]), prog_name="alexdeploy")
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


def _debug_first(arguments: list[str]) -> list[str]:
    """Move --debug, an option of the program, in front of the command. After -- it is an argument like others."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return arguments
    return ["--debug", *(word for word in arguments[:end] if word != "--debug"), *arguments[end:]]
