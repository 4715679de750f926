"""Photographs with their answers written below them, as files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import atomic_write, remove_file
from alexdeploy.inference.row import Row
from alexdeploy.reports.lettering import fit, font, legible

MAX_SIDE: Final = 800
"""The longer side of a picture in pixels; larger photographs are reduced."""

_MIN_SIDE = 320
"""Smaller pictures are enlarged or framed, so that the answer has room."""

_STEM = 60
_LARGE, _SMALL, _GAP = 22, 14, 8
_INK, _PALE, _PAPER = (255, 255, 255), (190, 190, 190), (24, 24, 24)
_COMMENT: Final = "alexdeploy predict: "
"""What the comment in each file begins with; no other file is replaced."""

_UNFINISHED = re.compile(r"\.\d{6,}[A-Za-z0-9_-]*\.jpg\.[^.]+\.tmp")
"""The name of a file that a killed process was writing."""


class Annotator:
    """Writes one JPEG for each classified image into a folder, in threads of its own: a context manager.

    Files are called by the row's index and the image's name, "000012-tulip.jpg": in the order of the inputs, whatever
    archives and folders those come from.
    """

    def __init__(self, folder: Path, num_threads: int) -> None:
        self._folder = folder
        self._num_threads = num_threads
        self.num_written = 0

    def __enter__(self) -> Annotator:
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="alexdeploy-annotate")
        # Each waiting picture is held in memory. Not a semaphore: Ctrl-C inside of Condition.wait can leave its lock in
        # an inconsistent state.
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(2 * self._num_threads):
            self._room.put(None)
        self._failed: list[Future[None]] = []
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._check()

    def add(self, row: Row, pixels: NDArray[np.uint8]) -> None:
        """Write the picture of a row soon; `pixels` uint8 [H, W, 3] is the image, upright.

        Raises UsageError and OutputError of this picture or of an earlier one.
        """
        self._check()
        self._room.get()
        future = self._pool.submit(self._write, row, pixels)
        self.num_written += 1
        future.add_done_callback(self._done)

    def clear(self, *, unfinished_only: bool = False) -> None:
        """Delete the pictures of earlier runs, or only what a killed one left of a picture. Raises OutputError."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if _UNFINISHED.fullmatch(path.name) or (not unfinished_only and is_annotated(path)):
                    remove_file(path)

    def has(self, row: Row) -> bool:
        """Whether the file of this row is there, with this answer."""
        return _comment_of(self._path(row)) == _comment(row)

    def _path(self, row: Row) -> Path:
        return self._folder / file_name(row)

    def _done(self, future: Future[None]) -> None:
        self._room.put(None)
        if not future.cancelled() and future.exception() is not None:
            self._failed.append(future)

    def _check(self) -> None:
        if self._failed:
            self._failed[0].result()

    def _write(self, row: Row, pixels: NDArray[np.uint8]) -> None:
        path = self._path(row)
        if path.exists() and not is_annotated(path):
            raise _foreign(path)
        drawn = annotated(row, pixels)
        with atomic_write(path) as file:
            drawn.save(file, "JPEG", quality=88, comment=_comment(row).encode())


def check_folder(folder: Path, *, may_have_own: bool) -> None:
    """Raise UsageError if there is anything in a folder but, where it `may_have_own`, pictures of an Annotator."""
    for path in folder.iterdir():
        if not is_annotated(path) and not _UNFINISHED.fullmatch(path.name):
            raise _foreign(path)
        if not may_have_own:
            raise UsageError(
                f"--annotate {folder} has pictures of an earlier run",
                hint="Replace them: --overwrite\nOr name another folder.",
            )


def check_beside(folder: Path, inputs: Iterable[str | os.PathLike[str]], option: str) -> None:
    """Raise UsageError if pictures in `folder`, named by `option`, would be inputs of the next run."""
    target = os.path.realpath(folder)
    for each in inputs:
        root = os.path.realpath(each)
        if os.path.isdir(root) and os.path.commonpath([root, target]) == root:
            raise UsageError(
                f"{option} {folder} is inside of {each}, whose images are the input", hint="Name a folder beside it."
            )


def is_annotated(path: Path) -> bool:
    """Whether an Annotator wrote this file."""
    return _comment_of(path).startswith(_COMMENT)


def _foreign(path: Path) -> UsageError:
    return UsageError(
        f"{path} is no picture that --annotate wrote", hint="Name a folder for them alone: --annotate DIR"
    )


def file_name(row: Row) -> str:
    """A name that no other row of the run has, without separators, of letters, digits, and few signs."""
    return f"{row.index:06}{file_stem(row.source)}.jpg"


def file_stem(source: str) -> str:
    """ "-tulip" for "flowers.zip!a/tulip.jpg", to be put after a number; empty if nothing is left."""
    last = re.split(r"[/\\!]", source)[-1]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", last.rpartition(".")[0] or last).strip("_")[:_STEM]
    return f"-{stem}" if stem else ""


def annotated(row: Row, pixels: NDArray[np.uint8]) -> Image.Image:
    """The image with a strip below it: the answer and its probability, then the votes and the following answers."""
    image = Image.fromarray(pixels)
    scale = _MIN_SIDE / max(image.size)
    if scale > 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    width, height = max(image.width, _MIN_SIDE), image.height
    sheet = Image.new("RGB", (width, height + _LARGE + _SMALL + 3 * _GAP), _PAPER)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    room = width - 2 * _GAP
    probability = f"{100 * row.top[0].probability:.1f} %"
    taken = font(_LARGE).getlength(probability)
    draw.text((width - _GAP - taken, height + _GAP), probability, _INK, font(_LARGE))
    draw.text((_GAP, height + _GAP), fit(row.top[0].label, _LARGE, room - taken - _GAP), _INK, font(_LARGE))
    draw.text((_GAP, height + 2 * _GAP + _LARGE), _second_line(row, room), _PALE, font(_SMALL))
    return sheet


def _second_line(row: Row, room: float) -> str:
    """How the views voted, and as many of the following answers as fit completely, at least one."""
    votes = [f"{row.views_agreeing} of {row.num_views} views"] if row.num_views > 1 else []
    following = [f"{choice.label} {100 * choice.probability:.1f} %" for choice in row.top[1:]]
    for number in range(len(following), 1, -1):
        line = legible(", ".join([*votes, *following[:number]]))
        if font(_SMALL).getlength(line) <= room:
            return line
    return fit(", ".join([*votes, *following[:1]]), _SMALL, room)


def _comment(row: Row) -> str:
    """The row's answer in one printable line of ASCII, as the file has it."""
    answers = ", ".join(f"{choice.label[:100]!a} {choice.probability}" for choice in row.top[:5])
    return f"{_COMMENT}{row.model} {row.artifact} {row.source[-1000:]!a} {answers}"


def _comment_of(path: Path) -> str:
    """The comment of a JPEG file; empty if it has none, or cannot be read."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            found: Any = image.info.get("comment", b"")
            return bytes(found).decode("latin-1")
    # Pillow raises many kinds of errors for what is no JPEG.
    except Exception:
        return ""
