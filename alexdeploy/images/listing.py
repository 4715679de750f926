"""Finding the image files below a folder, for sources and labelled folders alike."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

IMAGE_SUFFIXES = (
    ".apng",
    ".bmp",
    ".dib",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".mpo",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""Suffixes of image files; the format itself is detected from the bytes."""

_OTHER_SUFFIXES = (
    ".avif",
    ".exr",
    ".heic",
    ".heif",
    ".hif",
    ".j2c",
    ".j2k",
    ".jp2",
    ".jpc",
    ".jpf",
    ".jpx",
    ".jxl",
    ".jxr",
    ".pam",
    ".pcx",
    ".pfm",
    ".psd",
    ".qoi",
    ".tga",
)
_RAW_SUFFIXES = (
    ".3fr",
    ".arw",
    ".cr2",
    ".cr3",
    ".crw",
    ".dcr",
    ".dng",
    ".erf",
    ".iiq",
    ".kdc",
    ".mef",
    ".mrw",
    ".nef",
    ".nrw",
    ".orf",
    ".pef",
    ".raf",
    ".rw2",
    ".rwl",
    ".sr2",
    ".srf",
    ".srw",
    ".x3f",
)
_LISTED_SUFFIXES = IMAGE_SUFFIXES + _OTHER_SUFFIXES + _RAW_SUFFIXES

CONVERT_IT = "not read here; convert it to JPEG"

MAX_FILE_BYTES = 256 << 20

_HIDDEN_NAMES = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db")
)
"""Files and folders that operating systems and network drives add: @eaDir contains a thumbnail of each photograph."""

_MOST_SUFFIXES = 100


@dataclass(slots=True, kw_only=True)
class Skipped:
    """Counts of what folder walks skipped: files that are not images, by suffix, and hidden names."""

    suffixes: Counter[str] = field(default_factory=Counter)
    num_hidden: int = 0

    def add_file(self, name: str) -> None:
        suffix = os.path.splitext(name)[1].lower() or "no suffix"
        is_kept = suffix in self.suffixes or len(self.suffixes) < _MOST_SUFFIXES
        self.suffixes[suffix if is_kept else "others"] += 1

    def add(self, other: Skipped) -> None:
        """Add the counts of another walk."""
        self.suffixes.update(other.suffixes)
        self.num_hidden += other.num_hidden

    def clear(self) -> None:
        self.suffixes.clear()
        self.num_hidden = 0

    def __str__(self) -> str:
        """A description; empty if nothing was skipped."""
        parts = []
        if num_files := self.suffixes.total():
            common = ", ".join(f"{suffix} {number:,}" for suffix, number in self.suffixes.most_common(5))
            more = ", ..." if len(self.suffixes) > 5 else ""
            what = "file that is not an image" if num_files == 1 else "files that are not images"
            parts.append(f"{num_files:,} {what} ({common}{more})")
        if self.num_hidden:
            parts.append(f"{self.num_hidden:,} hidden or system name{'s' * (self.num_hidden != 1)}")
        return " and ".join(parts)


class Found(NamedTuple):
    """An image file, or a folder that could not be listed and why."""

    path: str
    problem: str | None


class _Entry(NamedTuple):
    order: bytes
    path: str
    is_folder: bool
    is_link: bool = False


def is_image_name(name: str) -> bool:
    """Whether a file in a folder or an archive counts as an image, by its suffix.

    A photograph of an unsupported type counts: it gets an error row instead of being skipped silently.
    """
    return name.lower().endswith(_LISTED_SUFFIXES)


def raw_problem(name: str) -> str | None:
    """The problem of a camera raw file, recognized by its suffix; None for any other.

    By their bytes, many raw files are TIFFs whose first image is a thumbnail.
    """
    if not name.lower().endswith(_RAW_SUFFIXES):
        return None
    return f"is a camera raw file ({os.path.splitext(name)[1]}), {CONVERT_IT}"


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or a system file: .DS_Store, ._cat.jpg, __MACOSX, @eaDir."""
    return name.startswith(".") or name in _HIDDEN_NAMES


def walk_images(folder: str, skipped: Skipped | None = None) -> Iterator[Found]:
    """Find the image files below `folder`, depth first, with the names in each folder sorted by bytes.

    Links to folders are followed, except into a folder that the walk is inside of, and only one link per folder:
    folders that link to each other have as many paths as there are orders of them. Only the names in the folders on the
    current path are in memory. A folder that cannot be listed is yielded with its problem, without raising. `skipped`
    counts skipped files.
    """
    # A stack instead of recursion: a tree may be deeper than Python's recursion limit.
    ancestors: list[tuple[int, int]] = []
    linked: set[tuple[int, int]] = set()
    pending: list[Iterator[_Entry]] = [iter((_Entry(b"", folder, True),))]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            if ancestors:
                ancestors.pop()
        elif not entry.is_folder:
            yield Found(entry.path, None)
        else:
            try:
                status = os.stat(entry.path)
                identity = (status.st_dev, status.st_ino)
                if identity in ancestors or (entry.is_link and identity in linked):
                    continue
                if entry.is_link:
                    linked.add(identity)
                entries = _list_folder(entry.path, skipped)
            except OSError as exc:
                yield Found(entry.path, f"cannot list the folder: {describe(exc)}")
                continue
            ancestors.append(identity)
            pending.append(iter(entries))


def describe(exc: OSError) -> str:
    """Describe an operating system error, without the path in its own text."""
    return (exc.strerror or type(exc).__name__).lower()


def _list_folder(folder: str, skipped: Skipped | None) -> list[_Entry]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                if skipped is not None:
                    skipped.num_hidden += 1
                continue
            is_inner = is_folder(entry)
            if is_inner or is_image_name(entry.name):
                found.append(_Entry(os.fsencode(entry.name), entry.path, is_inner, is_inner and entry.is_symlink()))
            elif skipped is not None:
                skipped.add_file(entry.name)
    found.sort()
    return found


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a folder, or a link to one."""
    try:
        return entry.is_dir()
    # A link to itself; reading it raises the error.
    except OSError:
        return False
