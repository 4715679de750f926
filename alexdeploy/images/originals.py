"""The encoded images of a data set: files, or parts of archives, each with a label."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from alexdeploy.core.errors import DataError, ImageError
from alexdeploy.core.reading import open_regular
from alexdeploy.core.stores.urls import is_url
from alexdeploy.images.class_folders import check_data_folder
from alexdeploy.images.folder import (
    Example,
    LabelledImages,
    check_class_name,
    check_fraction,
    split_examples,
)
from alexdeploy.images.label_list import LIST_FORM, is_number, label_texts, read_label_list
from alexdeploy.images.listed import find_listed
from alexdeploy.images.listing import MAX_FILE_BYTES, describe
from alexdeploy.images.sources import printable_path, read_file
from alexdeploy.images.text_lists import list_lines


class Original(NamedTuple):
    """One encoded image: the file `path` or, if `offset` is given, `num_bytes` of it from there.

    `name` does not depend on the location of the data set; `num_bytes` is -1 for a missing file.
    """

    name: str
    label: int
    path: str
    offset: int | None
    num_bytes: int

    def read(self) -> bytes:
        """The encoded image. Raises ImageError as `read_file`, without the name in the message."""
        if self.offset is None:
            known = self.num_bytes if self.num_bytes >= 0 else None
            return read_file(self.path, known is not None, known)
        if self.num_bytes > MAX_FILE_BYTES:
            raise ImageError(f"has {self.num_bytes:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        try:
            with open_regular(self.path) as file:
                file.seek(self.offset)
                data = file.read(self.num_bytes)
        except OSError as exc:
            raise ImageError(f"{printable_path(self.path)} cannot be read: {describe(exc)}") from exc
        if len(data) != self.num_bytes:
            raise ImageError(f"{printable_path(self.path)} is truncated by {self.num_bytes - len(data):,} bytes")
        return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Originals:
    """A data set before decoding; a label is an index into `classes`."""

    classes: tuple[str, ...]
    train: tuple[Original, ...]
    val: tuple[Original, ...]

    def sha256(self) -> str:
        """A hash of the classes and of every image's split, name, label and size in bytes."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split, originals in (("train", self.train), ("val", self.val)):
            for name, label, _, _, num_bytes in sorted(originals, key=lambda original: original[:2]):
                digest.update(os.fsencode(f"{split}\0{name}\0{label}\0{num_bytes}\n"))
        return digest.hexdigest()


def from_labelled(data: LabelledImages) -> Originals:
    """The same images with their sizes, and with names relative to their longest common folder."""
    folders = {os.path.dirname(os.path.abspath(example.path)) for example in (*data.train, *data.val)}
    root = os.path.commonpath(folders) if folders else ""
    train, val = (tuple(_from_file(example, root) for example in examples) for examples in (data.train, data.val))
    return Originals(classes=data.classes, train=train, val=val)


def from_lists(
    folder: str | os.PathLike[str],
    train_list: str | os.PathLike[str],
    val_list: str | os.PathLike[str] | None = None,
    classes_file: str | os.PathLike[str] | None = None,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> LabelledImages:
    """Read lists of `name label`, names relative to `folder`, labels a class or its index, the first being 0.

    Lists have the format of `read_label_list`. Classes are the lines of `classes_file`, else the labels in the training
    list (single words if image names have no suffix and the list is not CSV), sorted by their bytes, or as numbers if
    all are numbers. Without `val_list`, a fraction of each class is split off as in `read_image_folder`. Missing images
    are kept. Raises DataError, also for an image in both lists, and UsageError for a list whose images are all missing.
    """
    root = os.fspath(folder)
    check_data_folder(root)
    if not is_url(root) and not os.path.isdir(root):
        raise DataError(
            f"{root} is not a folder; the names in the lists are relative to it.", hint="Give their folder."
        )
    check_fraction(val_fraction)
    classes = _listed_classes(train_list) if classes_file is None else read_classes(classes_file)
    if len(classes) < 2:
        raise DataError(f"{os.fspath(classes_file or train_list)} has {len(classes)} classes; expected at least two.")
    train = _read_list(root, train_list, classes)
    if val_list is not None:
        val = _read_list(root, val_list, classes)
        _refuse_shared(train, val, os.fspath(train_list), os.fspath(val_list))
        return LabelledImages(classes=classes, train=train, val=val)
    by_class: list[list[Example]] = [[] for _ in classes]
    for example in train:
        by_class[example.label].append(example)
    train, val = split_examples(by_class, root, val_fraction, seed)
    return LabelledImages(classes=classes, train=train, val=val)


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes in a file with one per line. Raises DataError."""
    classes = tuple(line for _, line in list_lines(path))
    for name in classes:
        check_class_name(name, os.fspath(path))
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise DataError(f"{os.fspath(path)} names the class {twice!r} twice; expected each once.")
    return classes


def _from_file(example: Example, root: str) -> Original:
    num_bytes = -1 if example.num_bytes is None else example.num_bytes
    if not is_url(example.path):
        with suppress(OSError):
            num_bytes = os.path.getsize(example.path)
    name = os.path.relpath(os.path.abspath(example.path), root).replace(os.sep, "/")
    return Original(name, example.label, example.path, None, num_bytes)


def _read_list(root: str, path: str | os.PathLike[str], classes: tuple[str, ...]) -> tuple[Example, ...]:
    examples = find_listed(root, path, read_label_list(path, classes))
    if not examples:
        raise DataError(f"{os.fspath(path)} names no images.", hint=LIST_FORM)
    return examples


def _refuse_shared(train: tuple[Example, ...], val: tuple[Example, ...], train_list: str, val_list: str) -> None:
    shared = sorted({example.path for example in train} & {example.path for example in val}, key=os.fsencode)
    if shared:
        more = f" and {len(shared) - 1:,} more images are" if shared[1:] else " is"
        raise DataError(
            f"{printable_path(shared[0])}{more} in both {train_list} and {val_list}: "
            "validation on training images is meaningless.",
            hint="Put each image into only one of the lists.",
        )


def _listed_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    words = set(label_texts(path))
    for word in words:
        check_class_name(word, os.fspath(path))
    if all(map(is_number, words)):
        return _numbers(path, words)
    return tuple(sorted(words, key=os.fsencode))


def _numbers(path: str | os.PathLike[str], words: Iterable[str]) -> tuple[str, ...]:
    found = {int(word) for word in words}
    # Labels may be identifiers up to 999,999,999, of which there are few.
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        raise DataError(
            f"{os.fspath(path)}: labels go up to {max(found)} and no image has the label {missing}; the first is 0.",
            hint="List the classes, one per line, in the order of their numbers: --classes FILE",
        )
    return tuple(str(number) for number in range(max(found) + 1))
