"""What `import alexdeploy` gives: the same steps as the command line, named alike."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import alexdeploy
from alexdeploy import AlexDeployError, AlexDeployWarning, ModelFolder
from alexdeploy.cli.app import command_line
from alexdeploy.core import errors, python_words
from alexdeploy.core.events import Notice, Status, warn_of_notices
from alexdeploy.core.recipe import Training
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import Backend, EngineBackend, NumViews
from alexdeploy.serving.triton.config import TritonBackend

STEPS = ("bench", "build", "calibrate", "evaluate", "export_model", "verify", "write_triton_repository")
OPEN = (
    *("Explainer", "Predictor", "bench", "build", "calibrate", "evaluate", "explain", "export_model", "figures"),
    *("Embedder", "embed", "similar", "find_model", "predict", "verify", "write_card"),
    "write_triton_repository",
)
"""These take a path as well as a ModelFolder."""

CLASSES = [kind for name in alexdeploy.__all__ if isinstance(kind := getattr(alexdeploy, name), type)]
FUNCTIONS = [each for name in alexdeploy.__all__ if inspect.isfunction(each := getattr(alexdeploy, name))]


def test_every_public_name_can_be_imported_and_is_shown() -> None:
    assert {name for name in alexdeploy.__all__ if getattr(alexdeploy, name).__name__ != name} == set()
    assert set(dir(alexdeploy)) == {*alexdeploy.__all__, "__version__"}
    assert sorted(name for names in alexdeploy._HOMES.values() for name in names) == sorted(alexdeploy.__all__)
    with pytest.raises(AttributeError):
        _ = alexdeploy.no_such_name


def test_editors_see_the_names_that_python_gives() -> None:
    tree = ast.parse(Path(str(alexdeploy.__file__)).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        (node.module, name.name) for node in guarded.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    given = {(f"alexdeploy.{module}", name) for module, names in alexdeploy._HOMES.items() for name in names}
    assert imported == given


def test_every_error_is_exported() -> None:
    defined = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, (AlexDeployError, AlexDeployWarning))
    }
    assert defined <= set(alexdeploy.__all__)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_takes_a_model_first_and_only_what_is_public(name: str) -> None:
    step = getattr(alexdeploy, name)
    hints = hints_of(step)
    first, *_ = inspect.signature(step).parameters
    assert ModelFolder in (hints[first], *typing.get_args(hints[first]))
    del hints["return"]
    taken = {kind for hint in hints.values() for kind in made_by_the_caller(hint)}
    assert taken == {kind for kind in taken if getattr(alexdeploy, kind.__name__, None) is kind}


@pytest.mark.parametrize("name", OPEN)
def test_a_model_is_a_folder_a_path_or_a_name(name: str) -> None:
    hints = hints_of(taker(getattr(alexdeploy, name)))
    assert set(typing.get_args(hints["model"])) == {ModelFolder, str, os.PathLike[str], type(None)}


def made_by_the_caller(hint: Any) -> Iterator[type]:
    """The dataclasses in a parameter and in their fields; not those that a callback is called with."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
        inner = typing.get_type_hints(hint).values()
    else:
        inner = () if callable(hint) else typing.get_args(hint)
    for each in inner:
        yield from made_by_the_caller(each)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    # A class of a module that imports TensorRT.
    return typing.get_type_hints(function, localns={"BuiltEngine": object})


def taker(public: Any) -> Callable[..., Any]:
    return public.__init__ if isinstance(public, type) else public


def parameters() -> Iterator[tuple[str, str, Any]]:
    """Whose, the name and the type of every parameter and field that is public; errors have none that are options."""
    for public in (*CLASSES, *FUNCTIONS):
        if isinstance(public, type) and issubclass(public, (Exception, Warning)):
            continue
        kinds = hints_of(taker(public))
        for name in inspect.signature(public).parameters:
            yield public.__name__, name, kinds.get(name)


NAMES = {
    "precision": (Precision,),
    "precisions": (tuple[Precision, ...],),
    "num_views": (NumViews, typing.Literal[1, 10], tuple[NumViews, ...]),
    "backend": (Backend, EngineBackend, TritonBackend),
    "backends": (tuple[Backend, ...],),
    "devices": (str,),
}
"""What an option is called, and the types that are called so."""


def test_the_same_thing_has_the_same_name() -> None:
    wrong = []
    for whose, name, hint in parameters():
        inner = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        kinds = [kind for kind in inner if kind is not type(None)]
        called = [each for each, those in NAMES.items() if any(kind in those for kind in kinds if kind is not str)]
        if (name in NAMES and not all(kind in NAMES[name] for kind in kinds)) or (called and name not in called):
            wrong.append((whose, name, hint))
    assert wrong == []
    others = {"views", "threads", "gpu", "gpus", "device_ids", "batch", "workers", "dtype"}
    assert [(whose, name) for whose, name, _ in parameters() if name in others] == []


def test_who_passes_no_on_warning_is_warned() -> None:
    found = {}
    for each in FUNCTIONS:
        taken = inspect.signature(each).parameters
        found |= {(each.__name__, name): taken[name].default for name in ("on_warning", "on_event") if name in taken}
    warned = {"on_warning": errors.warn, "on_event": warn_of_notices}
    assert {("import_model", "on_warning"), ("export_model", "on_event"), ("calibrate", "on_event")} <= found.keys()
    assert found == {(whose, name): warned[name] for whose, name in found}


def test_a_warning_is_of_the_callers_line_and_in_the_words_of_python() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        errors.warn("choose with --output-name")
        warn_of_notices(Notice(message="see --labels FILE"))
        warn_of_notices(Status(message="working"))
    assert [str(each.message) for each in caught] == ["choose with output_name", "see labels=FILE"]
    assert {(each.category, each.filename) for each in caught} == {(AlexDeployWarning, __file__)}


SHELL_ONLY = {
    "format",
    "help",
    "html",
    "json",
    "layers",
    "output",
    "plots",
    "quiet",
    "ray",
    "sbom",
    "trust-engine",
    "verbose",
}
"""Options that only the command line has: what it prints, which files it writes, and a cluster to connect to."""
IN_RECIPE = {"epochs", "learning-rate"}
"""Options that are overrides of the recipe in Python."""
OF_SAMPLE = {"num-train", "num-val"}
"""Options of the command that has no function."""
OF_SERVER = {
    "drain-seconds",
    "grpc-port",
    "host",
    "log-format",
    "max-body-mib",
    "max-memory-mib",
    "no-grpc",
    "port",
} | {*("allowed-hosts", "model-control-mode", "no-log-probes", "tls-cert", "tls-key", "token-file", "watch")}
"""Options of the server; in Python the application is mounted in another's."""


def test_every_option_has_its_word_in_python_or_none() -> None:
    program = typer.main.get_command(command_line())
    options = {
        word[2:]
        for command in program.commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for word in parameter.opts
        if word.startswith("--")
    }
    known = python_words._KEYWORDS.keys() | python_words._SWITCHES.keys()
    assert sorted(options - known - SHELL_ONLY - IN_RECIPE - OF_SAMPLE - OF_SERVER) == []


def test_every_call_that_a_hint_names_is_there() -> None:
    for call in python_words._CALLS.values():
        function = getattr(alexdeploy, call.function)
        assert inspect.isfunction(function)
        fields = set(inspect.signature(function).parameters)
        if call.options:
            fields |= {field.name for field in dataclasses.fields(getattr(alexdeploy, call.options))}
        inner = {
            f"{kind.__name__}.{field.name}"
            for kind in (alexdeploy.Budget, alexdeploy.Limits)
            for field in dataclasses.fields(kind)
        }
        inner |= {f"training.{field.name}" for field in dataclasses.fields(Training)}
        for option, field in (each.rstrip("*").partition(":")[::2] for each in call.fields.split()):
            switch = python_words._SWITCHES.get(option, "").partition("=")[0]
            assert (field or switch or python_words._KEYWORDS[option]) in fields | inner, (call.function, option)
