"""What whoever hands a model on says of it, which no file records."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from alexdeploy.core.arguments import check_fields
from alexdeploy.core.errors import UsageError

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class CardOptions:
    """What the card says beside the facts of the model; whatever is None is said to be not stated.

    `license` is an identifier such as apache-2.0, `language` that of the names of the classes, such as en. `dataset` is
    the Hub's identifier, or the name, of the training data. `about` is a file of Markdown by the author, which becomes
    part of the card as it is. `overwrite` replaces files of the same names in a folder that is there.
    """

    license: str | None = None
    title: str | None = None
    author: str | None = None
    language: str | None = None
    dataset: str | None = None
    about: str | os.PathLike[str] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for option, pattern, example in (
            ("license", _LICENCE, "apache-2.0"),
            ("language", _LANGUAGE, "en"),
            ("dataset", _DATASET, "flowers or owner/flowers"),
        ):
            given = getattr(self, option)
            if given is not None and not pattern.fullmatch(given):
                raise UsageError(f"--{option} {given!r} is no identifier", hint=f"Write it as --{option} {example}")
        for option in ("title", "author"):
            given = getattr(self, option)
            if given is not None and not (given.strip() and given.isprintable()):
                raise UsageError(f"--{option} {given!r} is not a line of text")
