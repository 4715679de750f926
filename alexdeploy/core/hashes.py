"""Hashes of large files, cached while the files are unchanged, by the same criteria as git's index."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from os import stat_result
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import msgspec

from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import OutputError
from alexdeploy.core.files import atomic_write, sha256_file
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, read_regular

_MIN_BYTES = 1 << 20
"""Hashing a smaller file is faster than looking it up."""

_MAX_FILES = 256

_SETTLED_NS = 2_000_000_000
"""A file must have been unchanged for this long: within one tick of the file system's clock, which is two seconds on
some, a file may change without a change of its times."""

_HAS_CHANGE_TIME = os.name == "posix"
"""On Windows ctime is the creation time: a change with a restored mtime would not be detected."""

_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Memory = dict[str, tuple[int, int, int, _Digest]]
"""Device and inode -> size, mtime_ns, ctime_ns, hash; in the order of hashing."""


def remembered_sha256(path: Path) -> str:
    """`sha256_file`, cached while device, inode, size and times of the file are unchanged.

    It detects changes to the user's own files at the cost of a stat call. Only the user, the clock or the disk can
    deceive it. For files that are not trusted, such as downloads, use `sha256_file`.
    A write through a shared mapping changes the times when a page becomes dirty, and not again until the page has been
    written back, about 30 seconds later; writes in between are not detected until then. On Windows, and on file
    systems without a separate ctime, it always calls `sha256_file`.
    """
    if not _HAS_CHANGE_TIME:
        return sha256_file(path)
    try:
        found = path.stat()
    except OSError:
        return sha256_file(path)
    folder = cache_folder("hashes")
    if folder is None or found.st_size < _MIN_BYTES or not found.st_ino:
        return sha256_file(path)
    file = folder / "sha256.json"
    # The inode, not the name, because a file may be replaced. ctime cannot be set back.
    key, state = f"{found.st_dev}:{found.st_ino}", _state(found)
    known = _read(file).get(key)
    if known is not None and known[:3] == state:
        return known[3]
    settled = time.time_ns() - _SETTLED_NS
    digest = sha256_file(path)
    with suppress(OSError, OutputError):
        now = path.stat()
        is_same = (now.st_dev, now.st_ino, *_state(now)) == (found.st_dev, found.st_ino, *state)
        is_settled = max(found.st_mtime_ns, found.st_ctime_ns) < settled
        if is_same and is_settled and _keeps_change_time(found, folder, path.parent):
            _remember(file, key, (*state, digest))
    return digest


def _keeps_change_time(found: stat_result, *folders: Path) -> bool:
    """Whether the file system of a file has a separate ctime; `folders` are where this can be tried.

    squashfs, vfat and many FUSE file systems report the mtime as ctime. Any writer can set the mtime back, and an image
    with fixed times may replace another with the same inodes. On other file systems the two are also equal for a file
    that has not been renamed or touched since it was written.
    """
    if found.st_ctime_ns > found.st_mtime_ns:
        return True
    for folder in folders:
        with suppress(OSError):
            if folder.stat().st_dev != found.st_dev:
                continue
            # On Linux the temporary file has no name, so nothing is left behind.
            with TemporaryFile(dir=folder) as file:
                os.utime(file.fileno(), ns=(0, 0))
                tried = os.fstat(file.fileno())
            if tried.st_dev == found.st_dev:
                return tried.st_ctime_ns > tried.st_mtime_ns
    return False


def _state(found: stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path) -> _Memory:
    # Missing, damaged or of another version: hash everything again.
    with suppress(OSError, msgspec.DecodeError):
        return decode_json(read_regular(file, MAX_TEXT_BYTES), _Memory)
    return {}


def _remember(file: Path, key: str, entry: tuple[int, int, int, str]) -> None:
    """Record a hash. If two processes write at once, one entry may be lost, which only costs time."""
    memory = _read(file)
    memory.pop(key, None)
    memory[key] = entry
    with atomic_write(file) as output:
        output.write(msgspec.json.encode(dict(list(memory.items())[-_MAX_FILES:])))
