"""The user's inputs as a stream of images: files, folders, globs, lists, archives, packed sets, URLs of stores.

No input is dropped: one that cannot be read becomes a source that raises the error when it is read.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

from alexdeploy.core.errors import DataError, ImageError, UsageError
from alexdeploy.core.reading import UnsuitableFileError, check_regular, read_regular
from alexdeploy.core.stores.urls import folder_of, is_url, join_url, local_path, printable_url
from alexdeploy.images.archives import is_archive_name, iter_members
from alexdeploy.images.globbing import expand
from alexdeploy.images.listing import IMAGE_SUFFIXES, MAX_FILE_BYTES, Skipped, describe, raw_problem, walk_images
from alexdeploy.images.packed import PackedImages, is_packed, open_packed
from alexdeploy.images.stored import find_stored, read_url
from alexdeploy.images.text_lists import split_names

STANDARD_INPUT = "-"
_NO_NAME = "is the root folder or a folder above the list; give such a folder on the command line, not in a list"


class PackedImage(NamedTuple):
    """An image of a packed set."""

    images: PackedImages
    number: int

    def read(self, resize: str | None) -> bytes:
        if resize not in (None, self.images.resize):
            raise ImageError(f"was packed with --resize {self.images.resize}, and the model expects --resize {resize}")
        return self.images.encoded(self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input image, and the origin of its bytes: a path or URL, memory, a packed set, or none.

    `name` is recognizable for the user ("photos.zip!cats/1.jpg" for a member of an archive) and can always be
    encoded as UTF-8; it may contain newlines, as file names may. It has no credentials, which a URL in `path` may have.
    """

    name: str
    path: str | None = None
    data: bytes | None = None
    problem: str | None = None
    was_listed: bool = False
    """The file was found in a folder or by a glob: if it is missing, it was removed since."""
    packed: PackedImage | None = None
    num_bytes: int | None = None
    """The size of an object that was listed in a store."""
    fetched: Callable[[], bytes] | None = field(default=None, compare=False)
    """Takes the bytes that were read ahead, once."""

    @property
    def is_stored(self) -> bool:
        """Whether it is an object of a store, to be read by its URL."""
        return self.path is not None and self.problem is None and is_url(self.path)

    def read(self, resize: str | None = None) -> bytes:
        """The bytes of the file, never empty. Raises ImageError with the reason if it cannot be read.

        An image of a packed set is already square; if `resize` is given, the set must have been made with it.
        """
        if self.problem is not None:
            raise ImageError(self.problem)
        if self.packed is not None:
            return self.packed.read(resize)
        if self.fetched is not None:
            data: bytes | None = self.fetched()
        else:
            data = self.data if self.path is None else read_file(self.path, self.was_listed, self.num_bytes)
        if not data:
            raise ImageError("the file is empty")
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The user's inputs, including the content of standard input; can be iterated more than once.

    `skipped` counts the other files in folders and archives, as far as the last iteration has progressed.
    """

    texts: tuple[str, ...]
    standard_input: bytes = b""
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def __iter__(self) -> Iterator[Source]:
        self.skipped.clear()
        return _iter_sources(self.texts, self.standard_input, self.skipped)

    def count(self, is_wanted: Callable[[], bool] = lambda: True) -> int | None:
        """The number of sources; None if there are archives, which would have to be read to count their images.

        Takes as long as listing the folders, and returns None as soon as `is_wanted` is false. None also for URLs:
        stores charge for listing.
        """
        if any(is_url(text.removeprefix("@")) for text in self.texts):
            return None
        number = 0
        with closing(_iter_sources(self.texts, self.standard_input, Skipped())) as found:
            for source in found:
                if source.data is not None or not is_wanted():
                    return None
                number += 1
        return number


def read_inputs(inputs: Iterable[str | os.PathLike[str]]) -> Inputs:
    """Accepts what `iter_sources` accepts. Reads standard input immediately. Raises UsageError for an invalid path."""
    is_one = isinstance(inputs, (str, bytes, os.PathLike)) or not isinstance(inputs, Iterable)
    given = () if is_one else tuple(inputs)
    if is_one or not all(isinstance(each, (str, os.PathLike)) for each in given):
        shown = given or (os.fspath(inputs) if isinstance(inputs, os.PathLike) else inputs)
        raise UsageError(f"inputs is {shown!r}; expected a list of paths")
    texts = tuple(os.fspath(each) for each in given)
    return Inputs(texts=texts, standard_input=sys.stdin.buffer.read() if STANDARD_INPUT in texts else b"")


def iter_sources(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Source]:
    """Yield the images of `inputs`, in order and on demand.

    An input is a file; a folder (walked recursively, image suffixes only, names sorted by bytes); a .zip or .tar
    archive, plain or compressed; a packed set (training, then validation images); `@list.txt`, with one path per line,
    or separated by NULs, relative to the list; `-`, such a list on standard input, relative to the working folder; or a
    glob pattern; or a URL of an image, an archive, a prefix or a pattern in a store (see docs/stores.md). Write ./@name
    for a file beginning with @. Archives and lists inside folders are not opened.
    Members of archives are yielded with their bytes in memory. No other input is read, except standard input: it is
    read immediately, in the caller's thread, where Ctrl-C can interrupt the wait.
    """
    return iter(read_inputs(inputs))


def _iter_sources(inputs: Iterable[str], standard_input: bytes, skipped: Skipped) -> Generator[Source, None, None]:
    for text in inputs:
        if text == STANDARD_INPUT:
            yield from _from_list(standard_input, "standard input", "", skipped)
        elif text.startswith("@"):
            yield from _from_list_file(local_path(text[1:]), skipped)
        elif is_url(text):
            yield from _from_url(text, skipped)
        elif glob.has_magic(text) and not os.path.lexists(text):
            yield from _from_glob(text, skipped)
        else:
            yield from _from_path(local_path(text), skipped)


def _from_path(path: str, skipped: Skipped, *, was_listed: bool = False) -> Iterator[Source]:
    if not is_kind(path, stat.S_IFDIR) and is_archive_name(path) and is_kind(path, stat.S_IFREG):
        yield from _from_archive(path, skipped)
    elif is_kind(path, stat.S_IFDIR):
        yield from _from_folder(path, skipped)
    else:
        yield Source(name=printable_path(path), path=path, was_listed=was_listed)


def _from_url(url: str, skipped: Skipped) -> Iterator[Source]:
    for found in find_stored(url, skipped):
        if found.is_archive:
            yield from _from_archive(found.url, skipped)
            continue
        yield Source(
            name=printable_path(found.url),
            path=found.url,
            problem=found.problem,
            was_listed=found.was_listed,
            num_bytes=found.num_bytes,
        )


def _from_folder(folder: str, skipped: Skipped) -> Iterator[Source]:
    if is_packed(folder):
        yield from _from_packed(folder)
        return
    is_empty = True
    for path, problem in walk_images(folder, skipped):
        is_empty = False
        if problem is None:
            yield Source(name=printable_path(path), path=path, was_listed=True)
        else:
            yield Source(name=printable_path(path), problem=problem)
    if is_empty:
        suffixes = " ".join(IMAGE_SUFFIXES)
        yield Source(name=printable_path(folder), problem=f"no images in folder; looked for {suffixes}")


def _from_packed(folder: str) -> Iterator[Source]:
    try:
        opened = open_packed(folder)
        for images in (opened.train, opened.val):
            yield from packed_sources(folder, images)
    except DataError as exc:
        yield Source(name=printable_path(folder), problem=f"{exc.message}; {exc.hint}")


def packed_sources(folder: str, images: PackedImages) -> Iterator[Source]:
    """The images of one split of the packed set `folder`, named like "set!train/cats/1.jpg"."""
    for number, name in enumerate(images.names):
        yield Source(name=f"{printable_path(folder)}!{name}", packed=PackedImage(images, number))


def _from_archive(path: str, skipped: Skipped) -> Iterator[Source]:
    archive = printable_path(path)
    # A caller that stops early closes this generator, and so the archive.
    with closing(iter_members(path, skipped)) as members:
        for name, data, problem in members:
            shown = archive if name is None else f"{archive}!{printable_path(name)}"
            yield Source(name=shown, data=data, problem=problem)


def _from_glob(pattern: str, skipped: Skipped) -> Iterator[Source]:
    try:
        found = sorted(set(expand(pattern)), key=lambda match: os.fsencode(match.path))
    # A NUL, or half of a character in UTF-16.
    except ValueError as exc:
        yield Source(name=printable_path(pattern), problem=f"invalid pattern: {exc}")
        return
    if "**" in pattern:
        # ** has already entered every folder; walking its matches would yield their images twice.
        folders = {match for match in found if match.problem is None and os.path.isdir(match.path)}
        if any(match.problem is None and match not in folders for match in found):
            found = [match for match in found if match not in folders]
    if not found:
        yield Source(name=printable_path(pattern), problem="no such file, and no file matches the pattern")
    for path, problem in found:
        if problem is None:
            yield from _from_path(path, skipped, was_listed=True)
        else:
            yield Source(name=printable_path(path), problem=problem)


def _from_list_file(path: str, skipped: Skipped) -> Iterator[Source]:
    try:
        data = read_file(path)
    except ImageError as exc:
        yield Source(name=printable_path(f"@{path}"), problem=f"the list cannot be read: {exc.message}")
        return
    folder = folder_of(path) if is_url(path) else os.path.dirname(path)
    yield from _from_list(data, f"@{printable_url(path)}", folder, skipped)


def _from_list(data: bytes, name: str, base: str, skipped: Skipped) -> Iterator[Source]:
    try:
        entries = split_names(data, name)
    except DataError as exc:
        yield Source(name=printable_path(name), problem=f"{exc.message} {exc.hint}")
        return
    if not entries:
        yield Source(name=printable_path(name), problem="the list names no images")
    for entry in entries:
        if is_url(entry):
            yield from _from_url(entry, skipped)
        elif _has_no_name(entry):
            yield Source(name=printable_path(entry), problem=_NO_NAME)
        elif is_url(base):
            yield from _from_relative(base, entry, skipped)
        else:
            yield from _from_path(os.path.join(base, local_path(entry)), skipped)


def _from_relative(base: str, entry: str, skipped: Skipped) -> Iterator[Source]:
    """An entry of a list in a store, which names no files of this machine."""
    try:
        url = join_url(base, entry)
    except ValueError:
        yield Source(name=printable_path(entry), problem="is not below the folder of the list, which is in a store")
        return
    yield from _from_url(url, skipped)


def _has_no_name(entry: str) -> bool:
    """Whether an entry of a list is the root, the list's folder or one above it: not an image, but a tree of them."""
    _, tail = os.path.splitdrive(os.path.normpath(entry))
    return set(tail.replace(os.sep, "/").split("/")) <= {"", os.curdir, os.pardir}


def read_file(path: str, was_listed: bool = False, num_bytes: int | None = None) -> bytes:
    """Read at most MAX_FILE_BYTES from a regular file, never blocking on a FIFO or a device; or from a store.

    `was_listed`: the file was found in a folder, so if it is missing, it was removed since; of an object in a store
    `num_bytes` is the listed size. Raises ImageError with the reason, without the path.
    """
    try:
        if is_url(path):
            return read_url(path, was_listed, num_bytes, MAX_FILE_BYTES)
        if (problem := raw_problem(path)) is not None:
            check_regular(path)
            raise ImageError(problem)
        return read_regular(path, MAX_FILE_BYTES)
    except OSError as exc:
        raise ImageError(_explain(exc, path, was_listed)) from exc


def _explain(exc: OSError, path: str, was_listed: bool) -> str:
    if isinstance(exc, UnsuitableFileError):
        return exc.strerror or "cannot be read"
    if exc.errno == errno.ENOENT and os.path.islink(path):
        return f"broken symbolic link to {printable_path(os.readlink(path))}"
    if exc.errno == errno.ENOENT and was_listed:
        return "vanished after the folder was listed"
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return "not found: no such file"
    if exc.errno in (errno.EACCES, errno.EPERM):
        return "permission denied"
    return f"cannot be read: {describe(exc)}"


def is_kind(path: str, kind: int) -> bool:
    """Whether there is a file of this kind, stat.S_IFREG for example."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode) == kind
    except (OSError, ValueError):
        return False


def printable_path(path: str) -> str:
    r"""Escape bytes of a path that are not UTF-8 as \xff, so that the name can be encoded for printing.

    A URL is shown without credentials.
    """
    path = printable_url(path)
    try:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    # A surrogate that does not represent a byte: Windows names can contain these.
    except UnicodeEncodeError:
        return path.encode("utf-8", "backslashreplace").decode("utf-8")
