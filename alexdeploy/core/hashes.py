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
"""Smaller files are hashed sooner than looked up."""

_MAX_FILES = 256

_SETTLED_NS = 2_000_000_000
"""A file must have been left alone for so long: within one tick of its file system's clock, which on some is two
seconds, it may change and its times stay as they were."""

_HAS_CHANGE_TIME = os.name == "posix"
"""On Windows ctime is when a file was made: what was changed and dated back would not show."""

_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Memory = dict[str, tuple[int, int, int, _Digest]]
"""Device and inode -> size, mtime_ns, ctime_ns, hash; the file hashed last is the last."""


def remembered_sha256(path: Path) -> str:
    """`sha256_file`, from memory if file, size and times are those of when it was hashed.

    It shows whether the user's own file has changed, as fast as a stat call. Nobody but the user, the
    clock or the disk can deceive it: what must not be believed, like a file from elsewhere, is hashed by `sha256_file`.
    A write through a shared mapping changes the times when a page becomes dirty, and not again before that page was
    written back, some 30 seconds later: what is written in between is not seen until then. On Windows, and where the
    file system has no time of change of its own, it is `sha256_file`.
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
    # The inode and not the name: a file that takes another's place is another. ctime nobody can set back.
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
    """Whether the file system of a file has a ctime of its own; `folders` are where that may be tried.

    squashfs, vfat and many of FUSE give the mtime for it, which any writer of a file can set back: there an image of
    fixed times may take the place of another, file by file with the same inodes. Elsewhere the two are equal as well,
    in a file that nobody renamed or touched since it was written.
    """
    if found.st_ctime_ns > found.st_mtime_ns:
        return True
    for folder in folders:
        with suppress(OSError):
            if folder.stat().st_dev != found.st_dev:
                continue
            # On Linux it has no name, and leaves no trace.
            with TemporaryFile(dir=folder) as file:
                os.utime(file.fileno(), ns=(0, 0))
                tried = os.fstat(file.fileno())
            if tried.st_dev == found.st_dev:
                return tried.st_ctime_ns > tried.st_mtime_ns
    return False


def _state(found: stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path) -> _Memory:
    # Not there, damaged or of another version: then everything is hashed once more.
    with suppress(OSError, msgspec.DecodeError):
        return decode_json(read_regular(file, MAX_TEXT_BYTES), _Memory)
    return {}


def _remember(file: Path, key: str, entry: tuple[int, int, int, str]) -> None:
    """Of two processes that write at once one forgets what the other has hashed, which costs time and no more."""
    memory = _read(file)
    memory.pop(key, None)
    memory[key] = entry
    with atomic_write(file) as output:
        output.write(msgspec.json.encode(dict(list(memory.items())[-_MAX_FILES:])))
