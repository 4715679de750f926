"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from alexdeploy.core.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.core.artifacts import ModelFolder

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
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def model_folder(name: str) -> ModelFolder:
    """The folder models/NAME. Raises UsageError if it would be any other, where no command would look for it."""
    from alexdeploy.core.artifacts import MODELS_FOLDER, ModelFolder

    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(
            f"--name {name!r} is not a name of a folder under {MODELS_FOLDER}/", cure="Give one without / in it."
        )
    return ModelFolder(MODELS_FOLDER / name)
