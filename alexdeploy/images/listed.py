"""The files or objects that the names in a list of labels stand for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

from alexdeploy.core.errors import DataError, UsageError
from alexdeploy.core.stores.urls import is_url, join_url
from alexdeploy.images.folder import Example
from alexdeploy.images.label_list import LIST_FORM
from alexdeploy.images.listing import is_image_name, walk_images
from alexdeploy.images.sources import printable_path
from alexdeploy.images.stored import walk_stored


def find_listed(root: str, path: str | os.PathLike[str], rows: Iterable[tuple[str, int]]) -> tuple[Example, ...]:
    """The images of the list `path`, below `root` or, if none of them is there, below the folder of the list.

    A name without an image suffix also matches a file with one. A missing image is kept. Raises UsageError if all
    images are missing, and DataError for two names of one image.
    """
    named = tuple(rows)
    if not named:
        return ()
    for base in (root,) if is_url(root) else (root, os.path.dirname(os.fspath(path))):
        finder = _StoredFinder(base) if is_url(base) else _Finder(base)
        found = [finder.find(name) for name, _ in named]
        if any(file is not None for file in found):
            break
    else:
        first = finder.first(root)
        example = "no images" if first is None else repr(printable_path(os.path.relpath(first, root)))
        raise UsageError(
            f"{root} holds none of the {len(named):,} images that {os.fspath(path)} names: "
            f"the list has {printable_path(named[0][0])!r}, the folder {example}.",
            hint="Names are relative to the data folder or to the folder of the list.",
        )
    paths = [file or finder.path(name) for file, (name, _) in zip(found, named, strict=True)]
    _refuse_twice(paths, [name for name, _ in named], os.fspath(path))
    return tuple(Example(file, label, finder.size(file)) for file, (_, label) in zip(paths, named, strict=True))


class _Finder:
    """Finds files by their names in a list, which may lack the suffix. Each folder is listed once."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._by_stem: dict[str, dict[str, list[str]]] = {}

    def first(self, root: str) -> str | None:
        """An image that is there, to be compared with the names of the list."""
        return next((at for at, problem in walk_images(root) if problem is None), None)

    def size(self, path: str) -> int | None:
        """Files are asked for their sizes when they are needed."""
        return None

    def path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self._base, name))

    def find(self, name: str) -> str | None:
        path = self.path(name)
        is_there = False
        with suppress(ValueError):
            is_there = os.path.lexists(path)
        # A name without suffix may also be that of a folder beside the image.
        if is_image_name(name) or (is_there and not os.path.isdir(path)):
            return path if is_there else None
        folder, stem = os.path.split(path)
        found = self._stems(folder).get(stem, [])
        if len(found) > 1:
            raise _ambiguous(name, found)
        if found:
            return os.path.join(folder, found[0])
        return path if is_there else None

    def _stems(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._by_stem:
            stems = self._by_stem[folder] = {}
            with suppress(OSError, ValueError):
                for name in os.listdir(folder or os.curdir):
                    if is_image_name(name):
                        stems.setdefault(os.path.splitext(name)[0], []).append(name)
        return self._by_stem[folder]


class _StoredFinder:
    """`_Finder` for the objects below a URL, which are all listed, once. Raises DataError if they cannot be."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")
        self._sizes: dict[str, int] = {}
        self._by_stem: dict[str, list[str]] = {}
        for url, problem, num_bytes, _ in walk_stored(base):
            if problem is not None:
                raise DataError(f"{printable_path(base)}: {problem}.")
            self._sizes[url] = num_bytes or 0
            self._by_stem.setdefault(os.path.splitext(url)[0], []).append(url)

    def first(self, root: str) -> str | None:
        return next(iter(self._sizes), None)

    def size(self, path: str) -> int | None:
        return self._sizes.get(path)

    def path(self, name: str) -> str:
        try:
            return join_url(self._base, name)
        except ValueError as exc:
            raise DataError(f"{exc}, which is in a store.", hint=LIST_FORM) from exc

    def find(self, name: str) -> str | None:
        url = self.path(name)
        if url in self._sizes or is_image_name(name):
            return url if url in self._sizes else None
        found = self._by_stem.get(url, [])
        if len(found) > 1:
            raise _ambiguous(name, found)
        return found[0] if found else None


def _ambiguous(name: str, found: Sequence[str]) -> DataError:
    return DataError(
        f"{printable_path(name)!r} is ambiguous: {' or '.join(map(printable_path, sorted(found)))}",
        hint="Write the name with its suffix.",
    )


def _refuse_twice(paths: Sequence[str], names: Sequence[str], place: str) -> None:
    first: dict[str, str] = {}
    for path, name in zip(paths, names, strict=True):
        if path in first:
            raise DataError(
                f"{place} names {printable_path(path)} twice: {printable_path(first[path])!r} and "
                f"{printable_path(name)!r}; expected each image once.",
                hint="Remove one of the lines.",
            )
        first[path] = name
