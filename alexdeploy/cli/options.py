"""Options that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, TypeVar, cast

import typer

from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.core.model_folder import ModelFolder
    from alexdeploy.engines.base import NumViews

_Value = TypeVar("_Value")

ModelArgument = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time, also on Python 3.10
    typer.Argument(metavar="MODEL", help="Model folder, or a name under models/; the newest there if left out."),
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a recipe key, e.g. --set architecture.towers=1. Repeatable.",
    ),
]
ExcludeOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--exclude", metavar="NAME", help="A folder in DATA that is no class. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def model_folder(name: str) -> ModelFolder:
    """The folder models/NAME. Raises UsageError if it would be any other, where no command would look for it."""
    from alexdeploy.core.files import is_name_too_long
    from alexdeploy.core.model_folder import MODELS_FOLDER, ModelFolder

    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(
            f"--name {name!r} is not a name of a folder under {MODELS_FOLDER}/", hint="Give one without / in it."
        )
    folder = ModelFolder(MODELS_FOLDER / name)
    if is_name_too_long(folder.ranges_path):
        raise UsageError(
            f"--name {name!r} is too long: {folder.ranges_path.name} is a file that the model may have",
            hint="Give a shorter one.",
        )
    return folder


def view_count(views: str | None, *, tencrop: bool) -> NumViews:
    """What --views and --tencrop ask for together; one view if neither does. Raises UsageError if they disagree."""
    if tencrop and views not in (None, "10"):
        raise UsageError(f"--tencrop means ten views, --views asks for {views}", hint="Give one of them.")
    return cast("NumViews", 10 if tencrop else int(views or 1))


def pick(option: str, text: str, known: Sequence[_Value]) -> tuple[_Value, ...]:
    """The values in a list with commas, each once. Raises UsageError for one that is none of `known`."""
    by_text = {str(value): value for value in known}
    picked = []
    for word in (word.strip() for word in text.split(",")):
        if word not in by_text:
            near = difflib.get_close_matches(word.lower(), by_text, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"{option} {text}: found {word!r}, expected any of {', '.join(by_text)}{hint}",
                hint=f"Several have commas between: {option} {','.join(list(by_text)[:2])}",
            )
        picked.append(by_text[word])
    return tuple(dict.fromkeys(picked))
