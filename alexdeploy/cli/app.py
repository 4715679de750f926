"""The `alexdeploy` program: loads the requested command, and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from alexdeploy.cli import output, synonyms
from alexdeploy.cli.command import Command, Group, help_text, summary
from alexdeploy.cli.rank_output import silence_nonzero_ranks
from alexdeploy.core.errors import AlexDeployError, DeviceMemoryError, UsageError, first_line
from alexdeploy.core.interrupts import InterruptGuard
from alexdeploy.core.version import __version__

_GROUPS = {
    "Make": ("train", "prepare", "import", "ensemble", "calibrate", "export", "build", "triton", "card", "sample"),
    "Check": ("evaluate", "verify"),
    "Run": ("predict", "embed", "similar", "serve", "bench"),
    "Look": ("explain", "inspect", "figures", "devices", "doctor"),
}
"""The commands as the help groups them."""

_PANELS = {name: panel for panel, names in _GROUPS.items() for name in names}
_EXAMPLES = (
    "alexdeploy train",
    "alexdeploy export --fp16",
    "alexdeploy predict images/ --tencrop",
)
_EPILOG = """
Environment variables:

`ALEXDEPLOY_CACHE`: folder of compiled models, remembered hashes and other files that can be made again. Default: the
user's cache folder.

`ALEXDEPLOY_STATE`: folder of the key that signs TensorRT engines, which says which of them this installation runs.
Default: the user's state folder.

`ALEXDEPLOY_DEBUG`: set to anything, it shows the traceback of every error, as `--debug` does.
"""
_CANNOT_BE_WRITTEN = (errno.EBADF, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE, errno.EIO)


def command_line(commands: Iterable[str] = _PANELS) -> typer.Typer:
    """The program with these commands. Loading one takes 40 ms less than loading all."""
    program = typer.Typer(
        name="alexdeploy",
        cls=Group,
        help=help_text(_EXAMPLES, "AlexNet from training to production inference: train, export, predict."),
        epilog="\n\n".join(" ".join(paragraph.split()) for paragraph in _EPILOG.strip().split("\n\n")),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    program.callback()(_options)
    for name in commands:
        # "import" is a Python keyword; the module and its function are called import_.
        word = f"{name}_" * (name == "import") or name
        module = importlib.import_module(f"alexdeploy.cli.{word}")
        function = getattr(module, word)
        program.command(
            name,
            cls=Command,
            help=help_text(module.EXAMPLES, function.__doc__),
            short_help=summary(function),
            rich_help_panel=_PANELS[name],
        )(function)
    return program


def __getattr__(name: str) -> Any:
    # For Typer's own tools, which look up the whole program under this name.
    if name == "app":
        return command_line()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"alexdeploy {__version__}")
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
    """Run the command line and exit with one of the codes in docs/exit-codes.md."""
    _open_closed_streams()
    silence_nonzero_ranks()
    with InterruptGuard() as guard:
        code = _run(guard)
    _leave(code)


def _run(guard: InterruptGuard) -> str | int | None:
    """Run the requested command and return its exit code."""
    output.set_quiet(False)
    output.set_verbose(False)
    try:
        words = _debug_first(sys.argv[1:])
        _refuse_foreign(words)
        asked = set(words[: 2 if words[:1] == ["--debug"] else 1]) & _PANELS.keys()
        if asked:
            _check_working_folder()
        with _own_errors():
            # Without a known command: for help, completion, and suggestions for misspelt commands.
            command_line(asked or _PANELS)(words, prog_name="alexdeploy")
    except AlexDeployError as error:
        if "ALEXDEPLOY_DEBUG" in os.environ:
            traceback.print_exception(error)
        if not isinstance(error, output.ReaderGoneError):
            output.fail(error)
        return error.exit_code
    except SystemExit as stop:
        return guard.exit_code or stop.code
    except KeyboardInterrupt:
        # Raised while the command's module was imported, outside Typer, which would have turned it into an exit.
        return guard.exit_code or 130
    return 0


def _refuse_foreign(words: list[str]) -> None:
    """Raise UsageError for another program's word, naming the equivalent here."""
    synonyms.refuse_command(words, _PANELS.keys())
    synonyms.refuse_urls(words)
    name = next((word for word in words if word in _PANELS), None)
    if name is None or synonyms.foreign_option(words, set()) is None:
        return
    word = synonyms.foreign_option(words, options_of([name])[name])
    if word is not None:
        raise synonyms.option_error(word, name, options_of(_PANELS))


def _check_working_folder() -> None:
    """Raise UsageError if the folder in which the command was started has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError as exc:
        raise UsageError("the working folder has been deleted", hint="Change into a folder that is there.") from exc


def options_of(commands: Iterable[str]) -> dict[str, set[str]]:
    """Command -> its options, under all their names."""
    group: Any = typer.main.get_command(command_line(commands))
    return {name: {word for param in each.params for word in param.opts} for name, each in group.commands.items()}


def _open_closed_streams() -> None:
    """Open the standard streams that a shell has closed (`2>&-`; None in Python): messages are dropped, results fail.

    Each stream gets its own descriptor, which is the lowest free one. Otherwise the next file opened, perhaps a
    result, would get it, and libraries' output with it.
    """
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            stream = open(os.open(os.devnull, flags), mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise OutputError where click cannot write the help, the version or a completion script.

    Raise DeviceMemoryError where memory runs out.
    """
    try:
        try:
            yield
        except SystemExit as stop:
            # click turns a broken pipe into exit code 1.
            if isinstance(stop.__context__, BrokenPipeError):
                raise stop.__context__ from None
            sys.stdout.flush()
            raise
    except MemoryError as exc:
        raise DeviceMemoryError(
            f"not enough memory: {first_line(exc)}", hint="Use a smaller --batch-size or fewer --threads."
        ) from exc
    except OSError as exc:
        # An error with a file is about that file.
        if exc.filename is not None or exc.errno not in _CANNOT_BE_WRITTEN:
            raise
        raise output.stdout_error(exc) from exc


def _leave(code: str | int | None) -> NoReturn:
    """Exit. Output still buffered in a stream that cannot be written is dropped: flushing at exit would fail again."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    sys.exit(code)


def _debug_first(arguments: list[str]) -> list[str]:
    """Move --debug, an option of the program, in front of the command. After -- it is an ordinary argument."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--debug" not in arguments[:end]:
        return arguments
    return ["--debug", *(word for word in arguments[:end] if word != "--debug"), *arguments[end:]]
