"""Labelled images in folders: DATA/<class>/..., or DATA/train/<class>/... beside DATA/val/<class>/..."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alexdeploy.core.errors import DataError, UsageError
from alexdeploy.images.listing import IMAGE_SUFFIXES, describe, is_hidden, walk_images
from alexdeploy.images.sources import printable_path

TRAIN_NAME = "train"
VAL_NAMES = ("val", "valid", "validation", "test")
_LAYOUT = "Give a folder that has one folder of images for each class: DATA/<class>/*.jpg"


class Example(NamedTuple):
    """One image file and the index of its class."""

    path: str
    label: int


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A data set; a label is an index into `classes`, which are in the order of their names' bytes."""

    classes: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]


def read_image_folder(
    folder: str | os.PathLike[str],
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    val_folder: str | os.PathLike[str] | None = None,
) -> LabelledImages:
    """Find the classes and the images of `folder`; nothing is decoded.

    Validation images are those of `val_folder`, else of val, valid, validation or test beside train, else a
    share `val_fraction` of each class: at least one image of a class that has two, and the same ones
    wherever the folder lies and however its file system lists it. Raises DataError for a folder that is
    missing or cannot be listed, fewer than two classes, a class without images, and validation classes
    that are not the training classes; UsageError for a fraction outside 0 to 1.
    """
    check_fraction(val_fraction)
    train_root, val_root = find_splits(os.fspath(folder))
    if val_folder is not None:
        val_root = os.fspath(val_folder)
    classes = list_class_folders(train_root)
    if len(classes) < 2:
        raise DataError(
            f"{train_root} holds {len(classes)} folders of images; a classifier takes two classes at least.",
            cure=_LAYOUT,
        )
    examples = [list_examples(train_root, name, label) for label, name in enumerate(classes)]
    if val_root is None:
        train, val = split_examples(examples, train_root, val_fraction, seed)
        return LabelledImages(classes=classes, train=train, val=val)
    _check_same_classes(train_root, classes, val_root, list_class_folders(val_root))
    return LabelledImages(
        classes=classes,
        train=_chain(examples),
        val=_chain(list_examples(val_root, name, label) for label, name in enumerate(classes)),
    )


def find_splits(folder: str) -> tuple[str, str | None]:
    """Where the training and the validation images are: DATA/train and DATA/val, else DATA and None."""
    names = list_class_folders(folder)
    # A folder that holds bus, car and train has three classes; one that holds train and val has two splits.
    if TRAIN_NAME not in names or not set(names) <= {TRAIN_NAME, *VAL_NAMES}:
        return folder, None
    val_name = next((name for name in VAL_NAMES if name in names), None)
    return os.path.join(folder, TRAIN_NAME), None if val_name is None else os.path.join(folder, val_name)


def list_class_folders(folder: str) -> tuple[str, ...]:
    """Names of the folders in `folder`, in the order of their bytes.

    Raises DataError if it cannot be listed, and for a name that is not UTF-8, which no model can keep.
    """
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as exc:
        raise DataError(f"{folder} cannot be listed: {describe(exc)}.", cure=_LAYOUT) from exc
    names = tuple(sorted((entry.name for entry in shown if os.path.isdir(entry.path)), key=os.fsencode))
    for name in names:
        check_class_name(name, folder)
    return names


def check_class_name(name: str, place: str) -> None:
    """Raise DataError if the class `name`, found in `place`, is not UTF-8: it could not be written down anywhere."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{printable_path(place)}: the class {printable_path(name)!r} has a name that is not UTF-8",
            cure="Rename it.",
        ) from None


def list_examples(root: str, name: str, label: int) -> tuple[Example, ...]:
    """The images below the class folder `name`. Raises DataError if there are none, or not all can be listed."""
    folder = os.path.join(root, name)
    examples = []
    for path, problem in walk_images(folder):
        if problem is not None:
            raise DataError(f"{path}: {problem}.", cure="Make it readable, or move it out of the data set.")
        examples.append(Example(path, label))
    if not examples:
        raise DataError(
            f"the class {name!r} has no images: {folder} holds no file ending in {' '.join(IMAGE_SUFFIXES)}.",
            cure="Put images there, or remove the folder.",
        )
    return tuple(examples)


def _check_same_classes(train_root: str, train: tuple[str, ...], val_root: str, val: tuple[str, ...]) -> None:
    if train == val:
        return
    missing = ", ".join(sorted(set(train) - set(val))) or "none"
    extra = ", ".join(sorted(set(val) - set(train))) or "none"
    raise DataError(
        f"{train_root} has {len(train)} classes and {val_root} has {len(val)}; expected the same names."
        f" Missing in the second: {missing}. Only in the second: {extra}.",
        cure="Give both the same class folders, or name another folder with --val.",
    )


def check_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}; expected a number between 0 and 1")


def split_examples(
    examples: Sequence[Sequence[Example]], root: str, fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Take a share of each class, chosen by the names below `root`, for validation: training, then validation."""
    train: list[Example] = []
    val: list[Example] = []
    for members in examples:
        num_val = min(max(round(len(members) * fraction), 1), len(members) - 1)
        chosen = set(sorted(members, key=lambda example: _rank(example.path, root, seed))[:num_val])
        train.extend(example for example in members if example not in chosen)
        val.extend(example for example in members if example in chosen)
    return tuple(train), tuple(val)


def _rank(path: str, root: str, seed: int) -> bytes:
    """Draw a number for an image from its name alone, so that adding images hardly moves the others."""
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    return hashlib.blake2b(os.fsencode(f"{seed}/{relative}"), digest_size=16).digest()


def _chain(groups: Iterable[tuple[Example, ...]]) -> tuple[Example, ...]:
    return tuple(example for group in groups for example in group)
