"""Image members of zip and tar archives, streamed in archive order, never extracted to disk."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Generator
from contextlib import ExitStack, closing
from io import BufferedReader
from typing import Any, NamedTuple, cast

from alexdeploy.core.reading import open_regular
from alexdeploy.core.stores.seekable import StoreFile
from alexdeploy.core.stores.urls import is_url, path_of
from alexdeploy.images.listing import MAX_FILE_BYTES, Skipped, is_hidden, is_image_name, raw_problem

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

# tarfile reads long names and extended attributes into memory as a whole, before a member's size can be checked.
_MAX_TAR_HEADER_BYTES = 1 << 20
_TAR_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_TAR_MODES = ((b"\x1f\x8b", "r:gz"), (b"BZh", "r:bz2"), (b"\xfd7zXZ\x00", "r:xz"))
_LONGEST_MAGIC = 6
_BUFFER_BYTES = 1 << 16
# zipfile can limit the decompressed size of these two; with the others, a few bytes may fill the memory.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_TRUNCATED = "the archive is truncated or damaged here"


class Member(NamedTuple):
    """One image of an archive: its bytes, or its problem. Without a name, the problem is the archive's."""

    name: str | None
    data: bytes | None
    problem: str | None


def is_archive_name(path: str) -> bool:
    """Whether a file is read as an archive, by its suffix."""
    return path.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES)


def iter_members(path: str, skipped: Skipped | None = None) -> Generator[Member, None, None]:
    """Yield the image members of the archive at `path`, a regular file or an object's URL, reading each on demand.

    `skipped` counts the other files.

    Links, encrypted members and members above MAX_FILE_BYTES have a problem instead of bytes. If the archive is
    damaged, the last member yielded has the problem and no name.
    """
    name = path_of(path) if is_url(path) else path
    read = _zip_members if name.lower().endswith(ZIP_SUFFIXES) else _tar_members
    members = read(path, Skipped() if skipped is None else skipped)
    found = False
    with closing(members):
        for member in members:
            found = True
            yield member
    if not found:
        yield Member(None, None, "no images in archive")


def _zip_members(path: str, skipped: Skipped) -> Generator[Member, None, None]:
    # zipfile raises BadZipFile, ValueError, OSError, NotImplementedError, UnicodeDecodeError and more.
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_open_stored(path)) if is_url(path) else path
            archive = stack.enter_context(zipfile.ZipFile(file))
        except Exception as exc:
            yield Member(None, None, f"not a readable zip archive, or truncated: {_reason(exc)}")
            return
        for info in archive.infolist():
            # Some Windows programs write backslashes; zipfile replaces them only on Windows.
            name = info.filename.replace("\\", "/")
            if not name.endswith("/") and _is_wanted(name, skipped):
                yield _read_zip_member(archive, info, name)


def _open_stored(url: str) -> BufferedReader:
    return BufferedReader(StoreFile(url), _BUFFER_BYTES)


def _read_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Member:
    problem = None
    if stat.S_ISLNK(info.external_attr >> 16):
        problem = "is a symbolic link; links in archives are not followed"
    elif info.flag_bits & 0x1:
        problem = "is encrypted"
    elif info.file_size > MAX_FILE_BYTES:
        problem = _too_large(info.file_size)
    elif info.compress_type not in _ZIP_METHODS:
        problem = f"uses compression method {info.compress_type}; supported are stored and deflated"
    else:
        problem = raw_problem(name)
    if problem is not None:
        return Member(name, None, problem)
    try:
        # Given a length, zipfile decompresses no more than that, even if the directory states a wrong size.
        with archive.open(info) as file:
            data = file.read(info.file_size)
        if len(data) != info.file_size:
            return Member(name, None, f"{_TRUNCATED}: {len(data):,} of {info.file_size:,} bytes")
        return Member(name, data, None)
    except Exception as exc:
        return Member(name, None, f"cannot be read from the archive: {_reason(exc)}")


def _tar_members(path: str, skipped: Skipped) -> Generator[Member, None, None]:
    with ExitStack() as stack:
        try:
            archive = _open_tar(stack.enter_context(_open_stored(path) if is_url(path) else open_regular(path)))
            stack.enter_context(archive)
        except Exception as exc:
            yield Member(None, None, f"not a readable tar archive, or truncated: {_reason(exc)}")
            return
        while True:
            try:
                info = archive.next()
            except Exception as exc:
                yield Member(None, None, f"{_TRUNCATED}: {_reason(exc)}")
                return
            if info is None:
                return
            # TarFile keeps all headers for lookups by name, which a stream never makes.
            cast("Any", archive).members.clear()
            if info.isdir() or not _is_wanted(info.name, skipped):
                continue
            member, is_intact = _read_tar_member(archive, info)
            yield member
            if not is_intact:
                return


def _open_tar(file: BufferedReader) -> tarfile.TarFile:
    """Open a tar with the compression detected from its bytes, with `seek` and not as a tarfile stream ("r|*").

    A stream copies a whole decompressed block for each 10 KB that it skips, and reads only one member of a gzip file.
    """
    start = file.peek(_LONGEST_MAGIC)
    mode = next((mode for magic, mode in _TAR_MODES if start.startswith(magic)), "r:")
    opened: tarfile.TarFile = cast("Any", tarfile).open(fileobj=file, mode=mode, tarinfo=StrictTarInfo)
    return opened


def _read_tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> tuple[Member, bool]:
    """Return the member, and whether the stream can be read further."""
    if info.issym() or info.islnk():
        return Member(info.name, None, "is a link; links in archives are not followed"), True
    if not info.isfile():
        return Member(info.name, None, "is not a regular file"), True
    if info.size > MAX_FILE_BYTES:
        return Member(info.name, None, _too_large(info.size)), True
    if (problem := raw_problem(info.name)) is not None:
        return Member(info.name, None, problem), True
    try:
        file = archive.extractfile(info)
        return Member(info.name, b"" if file is None else file.read(), None), True
    except Exception as exc:
        return Member(info.name, None, f"{_TRUNCATED}: {_reason(exc)}"), False


class StrictTarInfo(tarfile.TarInfo):
    """Raises an error for a missing or damaged header; tarfile takes both for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> StrictTarInfo:
        try:
            info = super().frombuf(buf, cast("str", encoding), errors)
        except tarfile.HeaderError as exc:
            if buf and not any(buf):
                raise
            raise tarfile.ReadError(f"no end-of-archive mark, {exc}") from exc
        if info.size < 0:
            # tarfile would look for the next header before this one, in an endless loop.
            raise tarfile.ReadError(f"a member of {info.size:,} bytes")
        if info.type in _TAR_HEADER_TYPES and info.size > _MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {info.size:,} bytes")
        return info


def _is_wanted(name: str, skipped: Skipped) -> bool:
    if any(is_hidden(part) for part in name.split("/") if part not in (".", "..")):
        skipped.num_hidden += 1
        return False
    if not is_image_name(name):
        skipped.add_file(name)
        return False
    return True


def _too_large(num_bytes: int) -> str:
    return f"has {num_bytes:,} bytes; the limit is {MAX_FILE_BYTES:,}"


def _reason(exc: Exception) -> str:
    # Errors of a store have no text but this.
    return (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__
