"""Labelled images in folders: DATA/<class>/..., or DATA/train/<class>/... beside DATA/val/<class>/..."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from alexdeploy.core.errors import DataError, UsageError
from alexdeploy.core.stores.urls import is_url
from alexdeploy.images.class_folders import (
    FOLDERS_HINT,
    ClassFolders,
    join_folder,
    list_class_folders,
    shown_names,
)
from alexdeploy.images.listing import (
    IMAGE_SUFFIXES,
    Skipped,
    walk_images,
)
from alexdeploy.images.sources import printable_path
from alexdeploy.images.stored import walk_stored

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing")
"""Names of a validation folder, case-insensitive; if there are several, the first in this order is used."""


class Example(NamedTuple):
    """One image file, or object by its URL, and the index of its class. Of an object, the size if it was listed."""

    path: str
    label: int
    num_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A data set; a label is an index into `classes`, which are sorted by the bytes of their names.

    `notes` describe what was ignored in the folders.
    """

    classes: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The folders of training and validation images; `val` is None if they are not separate, both in `top`."""

    top: ClassFolders
    train: ClassFolders
    val: ClassFolders | None
    notes: tuple[str, ...]


def read_image_folder(
    folder: str | os.PathLike[str],
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    val_folder: str | os.PathLike[str] | None = None,
    exclude: Sequence[str] = (),
) -> LabelledImages:
    """Find the classes and the images of `folder`; nothing is decoded.

    Validation images are those of `val_folder`, else of the validation folder that `find_splits` finds, else a fraction
    `val_fraction` of each class: at least one image of a class that has two, chosen independently of the folder's
    location and listing order. Folders named in `exclude` are not classes. Raises DataError for a folder that cannot be
    listed, fewer than two classes, a class without images or with folders only, and validation classes that differ from
    the training classes; UsageError for a fraction outside 0 to 1, and for a missing folder, to read or to exclude.
    """
    check_fraction(val_fraction)
    splits = find_splits(os.fspath(folder), exclude)
    root, val = splits.train.root, splits.val
    if val_folder is not None:
        val = _checked(list_class_folders(os.fspath(val_folder), exclude))
    check_excluded(exclude, splits, *(() if val is None else (val,)))
    classes = splits.train.names
    if len(classes) < 2:
        raise DataError(
            f"{root} has {len(classes)} class folder(s) with images; a classifier needs at least two classes.",
            hint=FOLDERS_HINT,
        )
    if val is not None:
        _check_same_classes(root, classes, val.root, val.names)
    skipped = Skipped()
    examples = [list_examples(root, name, label, skipped) for label, name in enumerate(classes)]
    _refuse_nested(root, classes, examples)
    if val is None:
        train, held_back = split_examples(examples, root, val_fraction, seed)
    else:
        train = _chain(examples)
        held_back = _chain(list_examples(val.root, name, label, skipped) for label, name in enumerate(classes))
    notes = splits.notes if val is None or val is splits.val else (*splits.notes, *val.notes())
    if text := str(skipped):
        notes = (*notes, f"skipped {text} in the class folders")
    return LabelledImages(classes=classes, train=train, val=held_back, notes=notes)


def find_splits(folder: str, exclude: Sequence[str] = ()) -> Splits:
    """Find the folders of training and validation images: DATA/train and DATA/val, else only DATA.

    A folder with the name of a split is one if it contains folders and, beside other folders, only if training and
    validation share some folder names: a folder with bus, car and train has three classes. Raises DataError if a folder
    cannot be listed.
    """
    top = list_class_folders(folder, exclude)
    train_names, val_names = (_named(top.names, split) for split in (TRAIN_NAMES, VAL_NAMES))
    inner = {name: list_class_folders(join_folder(folder, name), exclude) for name in (*train_names, *val_names)}
    is_alone = set(top.names) == set(inner) and bool(train_names)
    train_name = next((name for name in train_names if inner[name].names), train_names[0] if is_alone else None)
    if train_name is None:
        return Splits(top=top, train=_checked(top), val=None, notes=top.notes())
    train = inner[train_name]
    val_name = next(
        (name for name in val_names if (inner[name].names if is_alone else {*inner[name].names} & {*train.names})), None
    )
    if val_name is None and not is_alone:
        return Splits(top=top, train=_checked(top), val=None, notes=top.notes())
    val = None if val_name is None else _checked(inner[val_name])
    notes = [*top.notes(), *train.notes(), *(() if val is None else val.notes())]
    unused = tuple(name for name in top.names if name not in (train_name, val_name))
    flat = tuple(name for name in unused if name in val_names and not inner[name].names)
    if flat:
        notes.append(f"{folder}: not a split, since it has no class folders: {shown_names(flat)}")
    if others := tuple(name for name in unused if name not in flat):
        used = train_name if val_name is None else f"{train_name} and {val_name}"
        notes.append(f"{folder}: folders beside {used} ignored: {shown_names(others)}")
    return Splits(top=top, train=_checked(train), val=val, notes=tuple(notes))


def check_excluded(exclude: Sequence[str], splits: Splits, *others: ClassFolders) -> None:
    """Raise UsageError for an excluded folder that does not exist: the name may be misspelt."""
    places = (splits.top, splits.train, *(() if splits.val is None else (splits.val,)), *others)
    found = {name for place in places for name in place.excluded}
    for name in exclude:
        if name not in found:
            raise UsageError(f"--exclude {name}: no such folder in {splits.top.root}", hint="Remove the option.")


def _checked(folders: ClassFolders) -> ClassFolders:
    for name in folders.names:
        check_class_name(name, folders.root)
    return folders


def _named(names: Sequence[str], split: Sequence[str]) -> list[str]:
    """The `names` of a split, in the order of `split`."""
    return sorted((name for name in names if name.casefold() in split), key=lambda name: split.index(name.casefold()))


def _refuse_nested(root: str, classes: Sequence[str], examples: Sequence[Sequence[Example]]) -> None:
    """Raise DataError for a class folder that contains classes: a split, or a copy of the data.

    That is a folder with all images in sub-folders; or with most images in sub-folders, if it has the name of a split
    or they have names of other classes; or with two or more sub-folders named as other classes. Other sub-folders are
    allowed in a class.
    """
    for name, members in zip(classes, examples, strict=True):
        folder = join_folder(root, name)
        inner = [_inner_folders(example.path, folder) for example in members]
        others = {*classes} - {name}
        num_nested = sum(map(bool, inner))
        num_in_others = sum(not others.isdisjoint(names) for names in inner)
        found = sorted(others.intersection(itertools.chain.from_iterable(inner)))
        if num_nested == len(inner):
            problem = "contains no images, only folders with images"
        elif len(found) > 1 or num_in_others * 2 > len(inner):
            problem = f"contains folders with names of other classes: {shown_names(found)}"
        elif num_nested * 2 > len(inner) and _is_called_as_split(name):
            problem = (
                f"has the name of a split, and most of its images are in folders: {num_nested:,} of {len(inner):,}"
            )
        else:
            continue
        raise DataError(
            f"the class folder {folder} {problem}.",
            hint="Give the folder in which each folder is one class, "
            f"or exclude this one: --exclude {shlex.quote(name)}",
        )


def _inner_folders(path: str, folder: str) -> tuple[str, ...]:
    """The folders between `folder` and the file `path` below it."""
    separator = "/" if is_url(folder) else os.sep
    return tuple(path[len(folder) :].strip(separator).split(separator)[:-1])


def _is_called_as_split(name: str) -> bool:
    """Whether a word of `name` is the name of a split: train, test_set, val-2017."""
    return not {*TRAIN_NAMES, *VAL_NAMES}.isdisjoint(re.split(r"[\W\d_]+", name.casefold()))


def check_class_name(name: str, place: str) -> None:
    """Raise DataError if the class `name`, found in `place`, is not UTF-8: no output file could contain it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{printable_path(place)}: the class {printable_path(name)!r} has a name that is not UTF-8",
            hint="Rename it.",
        ) from None


def list_examples(root: str, name: str, label: int, skipped: Skipped | None = None) -> tuple[Example, ...]:
    """The images below the class folder `name`. Raises DataError if there are none, or not all can be listed."""
    folder = join_folder(root, name)
    examples = []
    for path, problem, num_bytes in walk_folder(folder, skipped):
        if problem is not None:
            raise DataError(f"{path}: {problem}.", hint="Make it readable, or move it out of the data set.")
        examples.append(Example(path, label, num_bytes))
    if not examples:
        raise DataError(
            f"the class {name!r} has no images: {folder} contains no file with suffix {' '.join(IMAGE_SUFFIXES)}.",
            hint=f"Put images there, or exclude the folder: --exclude {shlex.quote(name)}",
        )
    return tuple(examples)


def walk_folder(folder: str, skipped: Skipped | None = None) -> Iterator[tuple[str, str | None, int | None]]:
    """Path or URL, problem and size of each image below a folder or a URL; the size is that of an object."""
    if is_url(folder):
        yield from ((found.url, found.problem, found.num_bytes) for found in walk_stored(folder, skipped))
    else:
        yield from ((path, problem, None) for path, problem in walk_images(folder, skipped))


def _check_same_classes(train_root: str, train: tuple[str, ...], val_root: str, val: tuple[str, ...]) -> None:
    if train == val:
        return
    missing = ", ".join(sorted(set(train) - set(val))) or "none"
    extra = ", ".join(sorted(set(val) - set(train))) or "none"
    raise DataError(
        f"{train_root} has {len(train)} classes and {val_root} has {len(val)}; expected the same names."
        f" Missing in the second: {missing}. Only in the second: {extra}.",
        hint="Give both the same class folders, or another folder: --val FOLDER",
    )


def check_both_splits(num_train: int, num_val: int) -> None:
    """Raise DataError for no training or no validation images, such as of classes that have one image each."""
    if not num_train or not num_val:
        raise DataError(
            f"{num_train:,} training and {num_val:,} validation images; both are required",
            hint="Give at least one class a second image, or name validation images: --val, or --val-list for a list.",
        )


def check_fraction(val_fraction: float) -> None:
    if not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction is {val_fraction}; expected a number between 0 and 1")


def split_examples(
    examples: Sequence[Sequence[Example]], root: str, fraction: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split off a fraction of each class for validation, chosen by names below `root`: (training, validation)."""
    train: list[Example] = []
    val: list[Example] = []
    for members in examples:
        num_val = min(max(round(len(members) * fraction), 1), len(members) - 1)
        chosen = set(sorted(members, key=lambda example: _rank(example.path, root, seed))[:num_val])
        train.extend(example for example in members if example not in chosen)
        val.extend(example for example in members if example in chosen)
    return tuple(train), tuple(val)


def _rank(path: str, root: str, seed: int) -> bytes:
    """A pseudorandom number from an image's name only, so that adding images hardly changes the choice of others."""
    relative = os.path.relpath(path, root).replace(os.sep, "/")
    return hashlib.blake2b(os.fsencode(f"{seed}/{relative}"), digest_size=16).digest()


def _chain(groups: Iterable[tuple[Example, ...]]) -> tuple[Example, ...]:
    return tuple(example for group in groups for example in group)
