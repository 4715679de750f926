"""Rows with their photographs: the page of `--sheet` and the files of `--annotate`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import Count, check_fields
from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.images.decode import ResizePolicy, decode, decode_whole
from alexdeploy.images.sources import Source
from alexdeploy.inference.annotate import MAX_SIDE, Annotator, check_beside, check_folder
from alexdeploy.inference.row import Row
from alexdeploy.inference.sheet import Sheet
from alexdeploy.reports.page import check_page_path

if TYPE_CHECKING:
    from alexdeploy.engines.base import EngineInfo
    from alexdeploy.inference.predictor import Predictor


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureOptions:
    """What is made of the photographs beside their rows. Raises UsageError for an invalid value.

    `sheet` is the file of a page with the photographs and their best answers, the `sheet_images` most doubtful ones if
    there are more. `annotate` is a folder for pictures with the answer written below them, one for each classified
    image; it must be empty or absent. With `overwrite`, both may exist, and pictures of an earlier run are deleted;
    with `resume` they stay. A folder with any other file is refused.
    """

    sheet: str | os.PathLike[str] | None = None
    sheet_images: Count = 200
    annotate: str | os.PathLike[str] | None = None
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_done(self) -> bool:
        """Whether what is asked for seems to be there, from an earlier run."""
        has_sheet = self.sheet is None or os.path.isfile(self.sheet)
        return has_sheet and (self.annotate is None or os.path.isdir(self.annotate))

    def check(self, inputs: Iterable[str | os.PathLike[str]]) -> None:
        """Raise UsageError or OutputError if the page or the pictures cannot be written. Call it before any work."""
        if self.sheet is not None:
            sheet = Path(self.sheet)
            check_page_path(sheet, "--sheet", has_figures=False)
            if not (self.overwrite or self.resume) and sheet.is_file() and sheet.stat().st_size:
                raise UsageError(
                    f"--sheet {sheet} exists already", hint="Replace it: --overwrite\nOr name another file."
                )
        if self.annotate is None:
            return
        folder = Path(self.annotate)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--annotate {folder} is a file; expected a folder")
        check_beside(folder, inputs, "--annotate")
        if folder.is_dir():
            check_folder(folder, may_have_own=self.overwrite or self.resume)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image for people: `square` uint8 [256, 256, 3], as the network got it, and `whole` uint8 [H, W, 3]."""

    square: NDArray[np.uint8]
    whole: NDArray[np.uint8] | None = None


class Pictures:
    """Makes what PictureOptions ask for while rows are read: a context manager. `finish` writes the page."""

    def __init__(self, options: PictureOptions, resize: ResizePolicy, num_threads: int) -> None:
        self._options = options
        self._sheet = None if options.sheet is None else Sheet(options.sheet_images)
        self._annotator = None if options.annotate is None else Annotator(Path(options.annotate), num_threads)
        self._resize: ResizePolicy = resize

    def __enter__(self) -> Pictures:
        if self._annotator is not None:
            self._annotator.__enter__()
            if self._options.overwrite or self._options.resume:
                self._annotator.clear(unfinished_only=self._options.resume)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._annotator is not None:
            self._annotator.__exit__(kind, error, trace)

    @property
    def num_bytes(self) -> int:
        """The largest memory of one picture beyond its square."""
        return 0 if self._annotator is None else MAX_SIDE * MAX_SIDE * 3

    @property
    def num_annotated(self) -> int:
        """Pictures that were written, or are being written."""
        return 0 if self._annotator is None else self._annotator.num_written

    def take(self, data: bytes, square: NDArray[np.uint8]) -> Picture:
        """The picture of an image file that was decoded to `square`. Raises ImageError. Thread-safe."""
        return Picture(square=square, whole=None if self._annotator is None else decode_whole(data, MAX_SIDE))

    def show(self, row: Row, info: EngineInfo, view_classes: NDArray[np.int32] | None, picture: Picture | None) -> None:
        """Use the picture of a row, which has none if it is an error. Rows come in order, from one thread.

        Raises UsageError and OutputError where a picture cannot be written.
        """
        if self._sheet is not None:
            self._sheet.add(row, info.classes, view_classes, None if picture is None else lambda: picture.square)
        if self._annotator is not None and picture is not None and picture.whole is not None and row.error is None:
            self._annotator.add(row, picture.whole)

    def show_kept(self, row: Row, source: Source, info: EngineInfo) -> None:
        """The same for a row of an earlier run: the image is read again, if its picture is needed.

        An image that cannot be read any more is grey in the page, and no file.
        """
        if self._sheet is not None:
            self._sheet.add(row, info.classes, None, lambda: self._read(source))
        if self._annotator is not None and row.error is None and not self._annotator.has(row):
            with contextlib.suppress(ImageError):
                self._annotator.add(row, decode_whole(source.read(self._resize), MAX_SIDE))

    def finish(self, model: str, info: EngineInfo) -> None:
        """Write the page, after the last row. Raises OutputError."""
        if self._sheet is not None and self._options.sheet is not None:
            self._sheet.write(Path(self._options.sheet), model, info)

    def _read(self, source: Source) -> NDArray[np.uint8]:
        try:
            return decode(source.read(self._resize), self._resize)
        except ImageError:
            return np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 128, np.uint8)


def open_pictures(options: PictureOptions | None, predictor: Predictor) -> AbstractContextManager[Pictures | None]:
    """A context manager that gives the Pictures that are asked for, or None."""
    if options is None:
        return contextlib.nullcontext()
    return Pictures(options, predictor.preprocessing.resize, predictor.num_decoders)
