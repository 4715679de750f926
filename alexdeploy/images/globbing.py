"""Expanding glob patterns step by step, safe for cyclic links and deep trees, and interruptible with Ctrl-C.

Python's own glob follows cyclic links, and recurses once per level of a tree.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import deque
from collections.abc import Iterator

from alexdeploy.images.listing import Found, describe, is_folder, is_hidden

_SEPARATORS = re.compile(f"[{re.escape(os.sep + (os.altsep or ''))}]+")
_RECURSIVE = "**"

_Identity = tuple[int, int]


def expand(pattern: str) -> Iterator[Found]:
    """Yield the matches of `pattern`, unordered; a folder that could not be listed comes with the reason.

    As in a shell, a leading dot must be matched explicitly. `**` matches any number of folders except hidden ones; a
    folder that several links point to is entered once.
    """
    drive, tail = os.path.splitdrive(pattern)
    parts = _SEPARATORS.split(tail)
    root = drive if parts[0] else drive + os.sep
    parts = parts if parts[0] else parts[1:]
    entered: list[set[_Identity]] = [set() for _ in parts]
    # A stack instead of recursion, as in `walk_images`: entry n yields the matches of the first n parts.
    pending = [iter((Found(root, None),))]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
        elif found.problem is not None or len(pending) > len(parts):
            if found.path:
                yield found
        else:
            level = len(pending) - 1
            pending.append(_step(found.path, parts[level], entered[level], is_last=level == len(parts) - 1))


def _step(folder: str, part: str, entered: set[_Identity], *, is_last: bool) -> Iterator[Found]:
    if part == _RECURSIVE:
        yield from _descend(folder, entered, with_files=is_last)
    elif not glob.has_magic(part):
        path = os.path.join(folder, part)
        # An empty part comes from a trailing slash, which only folders match.
        if os.path.lexists(path) if part else os.path.isdir(folder):
            yield Found(path, None)
    elif os.path.isdir(folder or os.curdir):
        yield from _match(folder, part, is_last=is_last)


def _match(folder: str, part: str, *, is_last: bool) -> Iterator[Found]:
    fits = re.compile(fnmatch.translate(os.path.normcase(part))).match
    entries, problem = _list(folder)
    if problem is not None:
        yield problem
    for entry in entries:
        is_shown = not entry.name.startswith(".") or part.startswith(".")
        if is_shown and fits(os.path.normcase(entry.name)) and (is_last or is_folder(entry)):
            yield Found(os.path.join(folder, entry.name), None)


def _descend(top: str, entered: set[_Identity], *, with_files: bool) -> Iterator[Found]:
    """`top` and the folders below it not yet `entered`; links last, so that folders appear under their own names."""
    pending, linked = deque([top] if os.path.isdir(top or os.curdir) else []), deque[str]()
    while pending or linked:
        folder = pending.pop() if pending else linked.popleft()
        try:
            status = os.stat(folder or os.curdir)
        except OSError as exc:
            yield _not_listed(folder, exc)
            continue
        if (identity := (status.st_dev, status.st_ino)) in entered:
            continue
        entered.add(identity)
        yield Found(folder, None)
        entries, problem = _list(folder)
        if problem is not None:
            yield problem
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if is_folder(entry):
                if not is_hidden(entry.name):
                    (linked if entry.is_symlink() else pending).append(path)
            elif with_files and not entry.name.startswith("."):
                yield Found(path, None)


def _list(folder: str) -> tuple[list[os.DirEntry[str]], Found | None]:
    """The entries of `folder`, links last; no entries and the reason if it cannot be listed."""
    try:
        with os.scandir(folder or os.curdir) as entries:
            return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name)), None
    except OSError as exc:
        return [], _not_listed(folder, exc)


def _not_listed(folder: str, exc: OSError) -> Found:
    return Found(folder, f"cannot list the folder: {describe(exc)}")
