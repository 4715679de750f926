"""The images that a URL names: one object, an archive, the objects below a prefix, or those that match a pattern."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from typing import NamedTuple

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.core.stores.objects import check_url, list_objects, read_object
from alexdeploy.core.stores.urls import bucket_url, is_http, path_of
from alexdeploy.images.archives import is_archive_name
from alexdeploy.images.listing import IMAGE_SUFFIXES, Skipped, is_hidden, is_image_name, raw_problem

_NO_FOLDERS = "a web server has no folders to list; give URLs of images, or a list of them: @list.txt"


class Stored(NamedTuple):
    """An object, or why it cannot be found. `num_bytes` is known where it was listed."""

    url: str
    problem: str | None = None
    num_bytes: int | None = None
    is_archive: bool = False

    @property
    def was_listed(self) -> bool:
        return self.num_bytes is not None


def find_stored(url: str, skipped: Skipped) -> Iterator[Stored]:
    """The images that `url` names, in the order of the bytes of their names; lists lazily.

    A URL whose path ends as an image or an archive does is one object. Another one is a prefix of whole names of
    folders if there is something below it, else one object. `skipped` counts the other objects. Errors are yielded.
    """
    try:
        check_url(url)
    except UsageError as exc:
        yield Stored(url, exc.text)
        return
    path = path_of(url)
    if is_http(url):
        is_folder = not path or path.endswith("/")
        yield Stored(url, _NO_FOLDERS if is_folder else None, is_archive=is_archive_name(path))
    elif glob.has_magic(path):
        yield from _matching(url, skipped)
    elif is_archive_name(path) or is_image_name(path):
        yield Stored(url, is_archive=is_archive_name(path))
    else:
        yield from _below(url, skipped)


def walk_stored(url: str, skipped: Skipped | None = None) -> Iterator[Stored]:
    """The images below the folder `url`, like `walk_images`. A failure is the last one yielded, as its problem."""
    folder = url.rstrip("/") + "/"
    skipped = Skipped() if skipped is None else skipped
    try:
        for entry in list_objects(folder):
            if is_counted(entry.url[len(folder) :], skipped):
                yield Stored(entry.url, num_bytes=entry.num_bytes)
    except OSError as exc:
        yield Stored(url, not_listed(exc))


def _below(url: str, skipped: Skipped) -> Iterator[Stored]:
    is_empty = True
    counted = Skipped()
    for found in walk_stored(url, counted):
        is_empty = False
        yield found
    skipped.add(counted)
    if is_empty and not str(counted) and path_of(url) and not url.endswith("/"):
        yield Stored(url)
    elif is_empty:
        yield Stored(url, f"no images below this prefix; looked for {' '.join(IMAGE_SUFFIXES)}")


def _matching(url: str, skipped: Skipped) -> Iterator[Stored]:
    """The objects whose names match the pattern; as in a shell, ** matches any folders, and * none."""
    path = path_of(url)
    literal = re.split(r"[*?[]", path, maxsplit=1)[0].rpartition("/")[0]
    base = bucket_url(url) + "/"
    fits = re.compile(_pattern(path), re.DOTALL).fullmatch
    is_empty = True
    try:
        for entry in list_objects(base + literal):
            name = entry.url[len(base) :]
            if not fits(name):
                continue
            if is_archive_name(name) or is_counted(name[len(literal) :], skipped):
                is_empty = False
                yield Stored(entry.url, num_bytes=entry.num_bytes, is_archive=is_archive_name(name))
    except OSError as exc:
        yield Stored(url, not_listed(exc))
        return
    if is_empty:
        yield Stored(url, "no object matches the pattern")


_TOKEN = re.compile(r"(?:(?<=/)|^)\*\*(/|$)|\*+|\?|\[(!?)(\]?[^\]/]*)\]|.", re.DOTALL)


def _pattern(path: str) -> str:
    """The regular expression of a shell's pattern."""
    return _TOKEN.sub(_translated, path)


def _translated(token: re.Match[str]) -> str:
    text = token[0]
    if token[1] is not None:
        return "(?:[^/]+/)*" if token[1] else ".*"
    if token[3] is not None:
        return f"(?!/)[{'^' if token[2] else ''}{re.escape(token[3]).replace(chr(92) + '-', '-')}]"
    return {"*": "[^/]*", "?": "[^/]"}.get(text[0], re.escape(text))


def read_url(url: str, was_listed: bool, num_bytes: int | None, max_bytes: int) -> bytes:
    """The bytes of an object; `num_bytes` is its size if it was listed.

    Raises ImageError with the reason, without the URL; OSError for other failures, TooLargeError for more than
    `max_bytes`.
    """
    if (problem := raw_problem(path_of(url))) is not None:
        raise ImageError(problem)
    try:
        return read_object(url, max_bytes, num_bytes)
    except UsageError as exc:
        raise ImageError(exc.message) from exc
    except FileNotFoundError as exc:
        raise ImageError("vanished after it was listed" if was_listed else "not found: no such object") from exc
    except PermissionError as exc:
        raise ImageError("permission denied by the store") from exc


def is_counted(name: str, skipped: Skipped) -> bool:
    """Whether the object `name`, relative to the listed folder, is an image that is not hidden; counts others."""
    if any(is_hidden(part) for part in name.split("/")):
        skipped.num_hidden += 1
        return False
    if not is_image_name(name):
        skipped.add_file(name)
        return False
    return True


def not_listed(exc: OSError) -> str:
    """Why a prefix could not be listed, as text without the URL."""
    if isinstance(exc, FileNotFoundError):
        return "not found: no such bucket or prefix"
    if isinstance(exc, PermissionError):
        return "cannot be listed: permission denied by the store"
    return f"cannot be listed: {exc.strerror or type(exc).__name__}"
