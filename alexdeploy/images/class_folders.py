"""The class folders in a folder of a disk or a store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alexdeploy.core.errors import DataError, UsageError
from alexdeploy.core.reading import check_exists, missing_path
from alexdeploy.core.stores.objects import check_url, list_folder
from alexdeploy.core.stores.urls import is_http, is_url
from alexdeploy.images.listing import describe, is_folder, is_hidden, is_image_name
from alexdeploy.images.sources import printable_path
from alexdeploy.images.written import is_written

FOLDERS_HINT = "Give a folder that has one folder of images for each class: DATA/<class>/*.jpg"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFolders:
    """The class folders in `root`, sorted by the bytes of their names, and the other folders.

    `excluded` folders were excluded by the user; `hidden` includes system folders; `written` are folders that
    alexdeploy wrote; `num_loose` images are outside of class folders and have no label.
    """

    root: str
    names: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    num_loose: int = 0

    def notes(self) -> tuple[str, ...]:
        """Describe what is ignored."""
        found = [
            f"{self.root}: {what} ignored: {shown_names(names)}"
            for what, names in (("hidden and system folders", self.hidden), ("alexdeploy's own folders", self.written))
            if names
        ]
        if self.num_loose:
            text = "images beside the class folders, which have no label, ignored"
            found.append(f"{self.root}: {text}: {self.num_loose:,}")
        return tuple(found)


def list_class_folders(folder: str, exclude: Sequence[str] = ()) -> ClassFolders:
    """The folders in `folder`, except hidden ones, those that alexdeploy wrote and those in `exclude`.

    In a store, none is taken for one that alexdeploy wrote. Raises UsageError if it does not exist, DataError if it
    cannot be listed.
    """
    if is_url(folder):
        check_data_folder(folder)
    names: list[str] = []
    hidden: list[str] = []
    num_loose = 0
    try:
        for name, is_inner in _entries(folder):
            if is_inner:
                (hidden if is_hidden(name) else names).append(name)
            else:
                num_loose += is_image_name(name) and not is_hidden(name)
    except FileNotFoundError as exc:
        raise missing_path(folder, FOLDERS_HINT) from exc
    except OSError as exc:
        raise DataError(f"{folder} cannot be listed: {describe(exc)}.", hint=FOLDERS_HINT) from exc
    shown = sorted(set(names) - set(exclude), key=os.fsencode)
    written = tuple(name for name in shown if not is_url(folder) and is_written(os.path.join(folder, name)))
    return ClassFolders(
        root=folder,
        names=tuple(name for name in shown if name not in written),
        excluded=tuple(name for name in exclude if name in names),
        hidden=tuple(sorted(hidden, key=os.fsencode)),
        written=written,
        num_loose=num_loose,
    )


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """The names in a folder or a prefix, each with whether it is a folder. Raises OSError."""
    if is_url(folder):
        for entry in list_folder(folder):
            yield entry.url.rstrip("/").rpartition("/")[2], entry.is_folder
        return
    with os.scandir(folder) as entries:
        for found in entries:
            yield found.name, is_folder(found)


def check_data_folder(root: str) -> None:
    """Raise UsageError for a path that does not exist, or a URL that cannot be listed."""
    if not is_url(root):
        check_exists(root)
        return
    check_url(root)
    if is_http(root):
        raise UsageError(f"{printable_path(root)}: web servers cannot list folders", hint="Give a bucket, or a folder.")


def join_folder(root: str, name: str) -> str:
    """The path or URL of the folder `name` in `root`."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else os.path.join(root, name)


def shown_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(map(printable_path, names[:5])) + more
