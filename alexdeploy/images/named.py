"""Checking the inputs that a user names, before any work."""

from __future__ import annotations

import codecs
import glob
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from alexdeploy.core.errors import UsageError
from alexdeploy.core.reading import open_regular
from alexdeploy.core.stores.objects import check_url
from alexdeploy.core.stores.urls import check_not_collapsed, is_http, is_url, local_path, path_of
from alexdeploy.images.globbing import expand
from alexdeploy.images.listing import is_image_name
from alexdeploy.images.sources import STANDARD_INPUT, is_kind, printable_path

_LIST_SUFFIXES = (".txt", ".lst", ".list")


def is_list(text: str) -> bool:
    """Whether an input is a list of images: @FILE, or standard input."""
    return text == STANDARD_INPUT or text.startswith("@")


def is_single_image(inputs: Sequence[str]) -> bool:
    """Whether the inputs are one image, by its name: a file that is there, or a URL."""
    # @FILE is a list, even if a file named "@FILE" exists.
    if len(inputs) != 1 or inputs[0].startswith("@"):
        return False
    if is_url(inputs[0]):
        path = path_of(inputs[0])
        return is_image_name(path) and (is_http(inputs[0]) or not glob.has_magic(path))
    return is_image_name(inputs[0]) and os.path.isfile(local_path(inputs[0]))


def check_named(inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise UsageError for inputs that do not exist, patterns that match nothing, and a list of images without its @.

    For checking the user's inputs before any work. The entries of a list are not checked: each gets a row, with its
    error. Of a URL only the scheme is checked, and that its package is installed; no store is asked.
    """
    named = [os.fspath(given) for given in inputs]
    for text in named:
        if is_url(text.removeprefix("@")):
            check_url(text.removeprefix("@"))
        check_not_collapsed(text)
    missing = [text for text in named if not _is_there(text)]
    if missing:
        shown = ", ".join(map(printable_path, missing[:5])) + (f" and {len(missing) - 5:,} more" * (len(missing) > 5))
        verb = "does" if len(missing) == 1 else "do"
        raise UsageError(f"{shown} {verb} not exist", hint="Correct the path, or remove it.")
    for text in named:
        if _is_bare_list(text):
            raise UsageError(
                f"{printable_path(text)} is a text file, not an image",
                hint=f"If it lists images: @{printable_path(text)}",
            )


def _is_bare_list(text: str) -> bool:
    """Whether it is a text file by its name and also by its content, unlike an image with such a name."""
    if not text.lower().endswith(_LIST_SUFFIXES) or not is_kind(text, stat.S_IFREG):
        return False
    try:
        with open_regular(Path(text)) as file:
            beginning = file.read(512)
        # The last character may be incomplete.
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(beginning) and b"\0" not in beginning


def _is_there(text: str) -> bool:
    path = text.removeprefix("@")
    if is_url(path):
        return True
    path = local_path(path)
    try:
        if text == "-" or os.path.lexists(path):
            return True
        return path == text and glob.has_magic(text) and any(True for _ in expand(text))
    # A NUL, which no path can contain; its row has the error.
    except ValueError:
        return True
