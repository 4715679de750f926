"""Hashing of files, and atomic writes: no reader ever sees half a file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError, OutputError
from alexdeploy.core.reading import MAX_DATA_BYTES, open_regular

_TEMPORARY_BYTES = 128


def sha256_file(path: Path, max_bytes: int = MAX_DATA_BYTES) -> str:
    """SHA-256 of a file as 64 hexadecimal digits. Raises ModelError if it cannot be read, or is larger."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            left = os.fstat(file.fileno()).st_size
            if left > max_bytes:
                raise ModelError(f"{path} has {left:,} bytes; the limit is {max_bytes:,}")
            # Ignore bytes appended meanwhile; a kernel file may have no end.
            while chunk := file.read(min(left, 1 << 20)):
                digest.update(chunk)
                left -= len(chunk)
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    return digest.hexdigest()


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def npy_bytes(array: NDArray[np.generic]) -> bytes:
    """The content of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path` for writing; sync and rename it to `path` if the block succeeds.

    A killed process leaves the old file or the new one. Raises OutputError if `path` cannot be written, for example
    because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of 255 bytes leaves no room for a suffix.
        beginning = os.fsdecode(os.fsencode(path.name)[:_TEMPORARY_BYTES])
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{beginning}.", suffix=".tmp")
    except OSError as exc:
        raise output_error(path, exc) from exc
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as exc:
        raise output_error(path, exc) from exc
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: write all to disk first, then rename them in order.

    A killed process leaves the old files or the new ones; a mix only within the few milliseconds of renaming. Raises
    OutputError.
    """
    with contextlib.ExitStack() as stack:
        # An ExitStack exits in reverse order.
        for path, content in list(files.items())[::-1]:
            file = stack.enter_context(atomic_write(path))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def is_name_too_long(path: Path) -> bool:
    """Whether `path`, or a name in it, is too long for the file system: most allow names of 255 bytes."""
    there = next((folder for folder in path.parents if os.path.isdir(folder)), Path())
    # Below a missing folder the system does not check names, so check each one in the deepest existing folder.
    for tried in (path, *(there / part for part in path.parts if part != path.anchor)):
        try:
            os.lstat(tried)
        except OSError as exc:
            if exc.errno == errno.ENAMETOOLONG:
                return True
        except ValueError:
            # A NUL character, which is never valid.
            return False
    return False


def check_output(path: Path) -> None:
    """Raise OutputError if no file can have this path. Call it before expensive work."""
    if is_name_too_long(path):
        raise OutputError(f"{path} could not be written: the file name is too long")
    there = next((folder for folder in path.parents if os.path.lexists(folder)), None)
    if there is not None and not os.path.isdir(there):
        raise OutputError(f"{path} could not be written: {there} is not a folder")


def remove_file(path: Path) -> None:
    """Remove the file if it exists. Raises OutputError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise output_error(path, exc) from exc


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure, if the system supports it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def output_error(path: Path, exc: OSError) -> OutputError:
    """The OutputError that says why `path` could not be written."""
    full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "Free disk space and run the command again." if full else None
    return OutputError(f"{path} could not be written: {exc.strerror or exc}", hint=hint)


def _umask() -> int:
    # No call only reads the umask: use /proc on Linux; elsewhere set it and restore it.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
