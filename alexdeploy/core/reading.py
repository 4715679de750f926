"""Opening files for reading: only regular files, without blocking, and at most a limit of bytes."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from typing import Any, TypeVar

import msgspec

from alexdeploy.core.errors import UsageError, first_line

MAX_TEXT_BYTES = 64 << 20
"""Limit for specs, recipes, ranges, sidecars, labels: a thousand times the largest of them."""

MAX_DATA_BYTES = 4 << 30
"""Limit for graphs, weights, engines, arrays: ONNX files have at most 2 GiB; optimizer state adds twice the weights."""

_MAX_SIZELESS_BYTES = 16 << 20
"""A file with size 0 that is not empty, as in /proc; some have no end."""

_CHUNK_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 16
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)

# A shell's <(command), and standard input: the other end is already open, so opening it does not block.
_OWN_DESCRIPTOR = re.compile(r"/dev/stdin|/(dev|proc/self)/fd/[0-9]+")

_T = TypeVar("_T")


class NonWaitingReader(io.BufferedReader):
    """Raises OSError if a file that was opened as non-blocking has no data, such as /proc/kmsg; the base class returns
    None."""

    def read(self, size: int | None = -1, /) -> bytes:
        data: Any = super().read(size)
        if data is None:
            raise UnsuitableFileError(errno.EAGAIN, "has no data to read")
        return bytes(data)


class UnsuitableFileError(OSError):
    """The file exists but is not read; `strerror` says why."""

    def __str__(self) -> str:
        return str(self.strerror)


class TooLargeError(UnsuitableFileError):
    """The file has more bytes than the limit: `num_bytes`, None if that is not known."""

    def __init__(self, num_bytes: int | None, max_bytes: int) -> None:
        found = "" if num_bytes is None else f"has {num_bytes:,} bytes; the limit is {max_bytes:,}"
        super().__init__(errno.EFBIG, found or f"has more than {max_bytes:,} bytes")


def check_exists(path: str | os.PathLike[str], *, hint: str | None = None) -> None:
    """Raise UsageError for a path that does not exist. A broken link exists."""
    try:
        is_there = os.path.lexists(path)
    # Not a valid path: opening it raises an error with the reason.
    except ValueError:
        is_there = True
    if not is_there:
        raise missing_path(path, hint)


def missing_path(path: str | os.PathLike[str], hint: str | None = None) -> UsageError:
    """The error for a path that does not exist."""
    # Bytes that are not UTF-8 could not be printed.
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return UsageError(f"{shown} does not exist", hint=hint)


def check_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """Check a path for a library that opens files by name. Raises OSError as `open_regular`."""
    try:
        status = os.stat(path)
    # A NUL character in the path.
    except ValueError as exc:
        raise _unsuitable(errno.EINVAL, f"not a path: {exc}", path) from exc
    _refuse_others(status, path)
    return status


def open_regular(path: str | os.PathLike[str], *, own_pipe: bool = False) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading bytes. Never blocks, for any kind of path.

    With `own_pipe` also a pipe that this process was started with, by its name in /dev/fd. Raises OSError, whose
    `strerror` says why, for a file that cannot be opened, a folder, a fifo, a socket, a device, and a file of /proc
    with more bytes than its reported size.
    """
    file = _open(path, own_pipe)
    status = os.fstat(file.fileno())
    # Some of these files have no end.
    if stat.S_ISREG(status.st_mode) and status.st_size == 0 and file.peek(1):
        file.close()
        raise _unsuitable(errno.EINVAL, "is a kernel file without a size, such as those in /proc", path)
    return file


def read_regular(path: str | os.PathLike[str], max_bytes: int, *, own_pipe: bool = False) -> bytes:
    """The bytes of a file, opened by `open_regular`. Allocates memory for the content, not for `max_bytes`.

    Raises OSError for a file with more than `max_bytes`, and if there is not enough memory.
    """
    with _open(path, own_pipe) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        if size > max_bytes:
            raise _unsuitable(errno.EFBIG, f"has {size:,} bytes; the limit is {max_bytes:,}", path)
        if size == 0 and stat.S_ISREG(status.st_mode):
            max_bytes = min(max_bytes, _MAX_SIZELESS_BYTES)
        parts: list[bytes] = []
        wanted = size + 1
        try:
            while chunk := file.read(wanted):
                parts.append(chunk)
                if sum(map(len, parts)) > max_bytes:
                    raise _unsuitable(errno.EFBIG, f"has more than {max_bytes:,} bytes", path)
                if len(chunk) < wanted:
                    break
                # The file grew, or did not report its size.
                wanted = _CHUNK_BYTES
            return parts[0] if len(parts) == 1 else b"".join(parts)
        except MemoryError as exc:
            raise _unsuitable(errno.ENOMEM, f"not enough memory to read its {size:,} bytes", path) from exc


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """A file of at most MAX_TEXT_BYTES, UTF-8, its lines ending in newlines; or a pipe as for `open_regular`.

    Raises OSError as `read_regular`, and for text that is not UTF-8.
    """
    content = read_regular(path, MAX_TEXT_BYTES, own_pipe=True)
    try:
        return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as exc:
        text = f"not UTF-8: byte {content[exc.start]:#04x} at offset {exc.start:,}"
        raise _unsuitable(errno.EILSEQ, text, path) from exc


def decode_json(content: bytes | str, kind: type[_T]) -> _T:
    """Like msgspec.json.decode, but every error in `content` is a msgspec.DecodeError."""
    try:
        return msgspec.json.decode(content, type=kind)
    # Not UTF-8, or nested too deeply.
    except (UnicodeError, RecursionError) as exc:
        raise msgspec.DecodeError(first_line(exc)) from exc


def _open(path: str | os.PathLike[str], own_pipe: bool) -> io.BufferedReader:
    if own_pipe and _OWN_DESCRIPTOR.fullmatch(os.fspath(path)) and stat.S_ISFIFO(os.stat(path).st_mode):
        return io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
    # Check before opening, because opening starts some devices and the writer of a fifo.
    check_regular(path)
    descriptor = os.open(path, _FLAGS | getattr(os, "O_NONBLOCK", 0))
    try:
        # Check again after opening: the file may have been replaced.
        _refuse_others(os.fstat(descriptor), path)
        return NonWaitingReader(io.FileIO(descriptor), _BUFFER_BYTES)
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_others(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _unsuitable(errno.EISDIR, "is a directory", path)
    if not stat.S_ISREG(status.st_mode):
        raise _unsuitable(errno.ENXIO, "is not a regular file", path)


def _unsuitable(code: int, why: str, path: str | os.PathLike[str]) -> UnsuitableFileError:
    return UnsuitableFileError(code, why, os.fspath(path))
