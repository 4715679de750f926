"""Which files below a folder are images: the one walk that sources and labelled folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

IMAGE_SUFFIXES = (
    ".bmp",
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
"""Of what is read; what a file really is, its bytes tell."""

_OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".hif", ".j2k", ".jp2", ".jpx", ".jxl", ".jxr", ".psd", ".tga")
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
    """Tell by its suffix whether a file found in a folder or an archive counts as an image.

    A photograph of a kind that is not read counts: it is told when it is read, and is not left out in silence.
    """
    return name.lower().endswith(_LISTED_SUFFIXES)


def raw_problem(name: str) -> str | None:
    """What is wrong with a camera's raw file, told by its suffix; None for any other.

    By its bytes many a raw file is a TIFF, the first image of which is a thumbnail.
    """
    if not name.lower().endswith(_RAW_SUFFIXES):
        return None
    return f"is a camera raw file ({os.path.splitext(name)[1]}), {CONVERT_IT}"


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is one that people do not see: .DS_Store, ._cat.jpg, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def walk_images(folder: str) -> Iterator[Found]:
    """Find the image files below `folder`, depth first, each folder in the order of its names' bytes.

    Links to folders are followed, except back into a folder that the walk is inside of, and one link to each folder:
    folders that link to each other have as many paths as there are orders of them. Only the names in the folders on the
    way down are in memory. A folder that cannot be listed is told, not raised.
    """
    # A stack and not recursion: a tree may be deeper than Python's frames.
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
                entries = _list_folder(entry.path)
            except OSError as exc:
                yield Found(entry.path, f"cannot list the folder: {describe(exc)}")
                continue
            ancestors.append(identity)
            pending.append(iter(entries))


def describe(exc: OSError) -> str:
    """Say what an operating system error means, without the path that its own text repeats."""
    return (exc.strerror or type(exc).__name__).lower()


def _list_folder(folder: str) -> list[_Entry]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            is_inner = is_folder(entry)
            if is_inner or is_image_name(entry.name):
                found.append(_Entry(os.fsencode(entry.name), entry.path, is_inner, is_inner and entry.is_symlink()))
    found.sort()
    return found


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a folder, or a link to one."""
    try:
        return entry.is_dir()
    # A link that leads to itself. Whoever reads it will be told.
    except OSError:
        return False
