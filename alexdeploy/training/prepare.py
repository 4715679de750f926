"""The prepare step: find the images of a data set, and pack them for training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from alexdeploy.core.arguments import Count, Natural, check_argument, check_fields
from alexdeploy.core.errors import UsageError
from alexdeploy.core.events import Status, warn_of_notices
from alexdeploy.core.stores.urls import as_path
from alexdeploy.images import ilsvrc
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.originals import Originals, from_labelled, from_lists
from alexdeploy.images.sources import printable_path
from alexdeploy.training.events import Listed, Packed, PrepareEvent
from alexdeploy.training.pack import PackOptions, Prepared, pack_images

_VAL_FRACTION = 0.1
_Path = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """Which images are packed, and how.

    `val` is a folder of validation images; without it, `seed` selects `val_fraction` of each class. Folders in
    `exclude` are not classes. `train_list` and `val_list` are files with lines of `name label`, or CSV, used instead of
    folders, and `classes` is a file with the names of their classes.

    `resize` is the recipe's: the shorter side to 256 and a centre crop, or both sides to 256. `jpeg_quality` None
    keeps raw pixels. `check` compares the hashes of shards that exist, and packs damaged ones again. `overwrite`
    replaces a finished set, and resumes an unfinished one of the same images.
    """

    val: _Path | None = None
    val_fraction: float = _VAL_FRACTION
    exclude: tuple[str, ...] = ()
    seed: Natural = 0
    train_list: _Path | None = None
    val_list: _Path | None = None
    classes: _Path | None = None
    resize: Literal["crop", "warp"] = "crop"
    jpeg_quality: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    num_threads: Count | None = None
    check: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def prepare(
    data: _Path,
    out: _Path,
    options: PrepareOptions | None = None,
    on_event: Callable[[PrepareEvent], None] = warn_of_notices,
) -> Prepared:
    """Decode every image of `data` once and write the packed set `out`, which `train` accepts instead of a folder.

    `data` is a folder, or a URL, with one folder of images per class, or with train/ and val/ folders of this form; or
    a folder with the archives of ILSVRC 2012. The same arguments resume a stopped run. Images that cannot be decoded
    are skipped and listed in the result. Raises UsageError for a folder that contains something else, DataError for a
    split without an image that can be decoded, OutputError for failed writes and where the disk lacks space.
    """
    source = as_path(check_argument("data", data, str))
    folder = Path(check_argument("out", out, str))
    options = check_argument("options", options or PrepareOptions(), PrepareOptions)
    if options.train_list is None:
        _refuse_inside(folder, source, options)
    found = _find(source, options, on_event)
    on_event(
        Status(
            message=f"{len(found.classes):,} classes, {len(found.train):,} training and {len(found.val):,} validation "
            f"images from {printable_path(str(source))}"
        )
    )
    pack_options = PackOptions(
        resize=options.resize,
        jpeg_quality=options.jpeg_quality,
        num_threads=options.num_threads,
        overwrite=options.overwrite,
        check=options.check,
        arguments=_arguments(source, options),
    )
    return pack_images(
        found, folder, pack_options, lambda done, total: on_event(Packed(folder=folder, num_done=done, num_total=total))
    )


def _arguments(data: Path | str, options: PrepareOptions) -> tuple[str, ...]:
    """The arguments of `alexdeploy prepare` for the same set, without its own folder."""
    given = {
        "--val": options.val,
        "--val-fraction": None if options.val_fraction == _VAL_FRACTION else options.val_fraction,
        "--seed": options.seed or None,
        "--train-list": options.train_list,
        "--val-list": options.val_list,
        "--classes": options.classes,
        "--resize": None if options.resize == "crop" else options.resize,
        "--jpeg": options.jpeg_quality,
    }
    pairs = [(option, str(value)) for option, value in given.items() if value is not None]
    pairs += [("--exclude", name) for name in options.exclude]
    return tuple(printable_path(word) for word in (str(data), *(word for pair in pairs for word in pair)))


def _refuse_inside(out: Path, data: Path | str, options: PrepareOptions) -> None:
    """Raise UsageError if the set would lie among class folders, where the next command would take it for a class."""
    if ilsvrc.is_ilsvrc(data):
        return
    for folder in (data, _path(options.val)):
        if isinstance(folder, Path) and folder.resolve() in out.resolve().parents:
            raise UsageError(
                f"{out} lies in {folder}, where each folder is a class of images",
                hint="Name a folder beside it.",
            )


def _find(data: Path | str, options: PrepareOptions, on_event: Callable[[PrepareEvent], None]) -> Originals:
    val_list, classes = _path(options.val_list), _path(options.classes)
    if options.exclude and (options.train_list is not None or ilsvrc.is_ilsvrc(data)):
        raise UsageError("--exclude is for class folders", hint="Leave it out.")
    if options.train_list is not None:
        if options.val is not None:
            raise UsageError("--val is a folder of classes; with --train-list it is a list", hint="Give --val-list.")
        fraction, seed = options.val_fraction, options.seed
        listed = from_lists(data, Path(options.train_list), val_list, classes, val_fraction=fraction, seed=seed)
        return from_labelled(listed)
    if ilsvrc.is_ilsvrc(data):
        if options.val is not None or classes is not None:
            raise UsageError("--val and --classes have no meaning for the files of ILSVRC", hint="Leave them out.")
        return ilsvrc.read_ilsvrc(data, val_list, lambda done: on_event(Listed(num_found=done)))
    if val_list is not None or classes is not None:
        raise UsageError("--val-list and --classes belong to a --train-list", hint="Give --train-list FILE as well.")
    found = read_image_folder(
        data,
        val_fraction=options.val_fraction,
        seed=options.seed,
        val_folder=_path(options.val),
        exclude=options.exclude,
    )
    for note in found.notes:
        on_event(Status(message=note))
    return from_labelled(found)


def _path(path: _Path | None) -> Path | str | None:
    return None if path is None else as_path(path)
