"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

ModelArgument = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation at run time, also on Python 3.10
    typer.Argument(metavar="[MODEL]", help="Model folder, or a name under models/; the newest there if left out."),
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
