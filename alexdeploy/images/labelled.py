"""Labelled images for a model: class folders named after its classes, or a list of names and labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alexdeploy.core.errors import DataError, UsageError
from alexdeploy.core.stores.copies import copy_packed
from alexdeploy.core.stores.urls import is_url, printable_url
from alexdeploy.images.class_folders import check_data_folder
from alexdeploy.images.folder import (
    VAL_NAMES,
    Example,
    check_excluded,
    find_splits,
    list_examples,
    walk_folder,
)
from alexdeploy.images.known_classes import KnownClasses
from alexdeploy.images.label_list import LIST_FORM, read_label_list
from alexdeploy.images.listed import find_listed
from alexdeploy.images.packed import PackedImages, is_packed, open_packed
from alexdeploy.images.sources import Source, packed_sources, printable_path


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSources:
    """Images with one label each, an index into the model's classes. No image has been read yet.

    `root` is their folder. `num_unlabelled` images in it have no label and are not included. `notes` are messages about
    the choice for the user.
    """

    root: str
    examples: tuple[Example, ...]
    num_unlabelled: int = 0
    notes: tuple[str, ...] = ()
    was_listed: bool = True
    packed: PackedImages | None = None

    def sources(self) -> Iterator[Source]:
        """One source per example, in order."""
        if self.packed is not None:
            yield from packed_sources(os.path.dirname(self.root), self.packed)
            return
        for path, _, num_bytes in self.examples:
            yield Source(name=printable_path(path), path=path, was_listed=self.was_listed, num_bytes=num_bytes)


def read_labelled(
    folder: str | os.PathLike[str],
    classes: Sequence[str],
    labels: str | os.PathLike[str] | None = None,
    *,
    exclude: Sequence[str] = (),
) -> LabelledSources:
    """Find the images of `folder` and their labels, indices into `classes`.

    Without `labels`, each folder in `folder`, except those in `exclude`, is one of the classes; there may be fewer than
    all. If it contains train/ and val/ with such folders, val/ is used. A folder has the name of its class, or shares
    its WordNet id. With the file `labels`, each line has an image, relative to `folder`, and after a blank its class or
    class index. Missing images of the list are kept in the examples. For a packed set, its validation images are used.
    Raises DataError for an unknown class, no labelled image, or an invalid line; UsageError for a missing path.
    """
    shown = printable_url(os.fspath(folder))
    if labels is None and is_url(os.fspath(folder)):
        folder = copy_packed(os.fspath(folder)) or folder
    if exclude and (labels is not None or is_packed(folder)):
        raise UsageError("--exclude applies to class folders, not to a list or a packed set", hint="Leave it out.")
    if labels is None and is_packed(folder):
        return _read_packed(os.fspath(folder), shown, classes)
    found = (
        _read_folders(os.fspath(folder), classes, exclude) if labels is None else _read_list(folder, classes, labels)
    )
    if not found.examples:
        what = "has no labelled images" if labels is None else f"has no labelled images: {os.fspath(labels)} is empty"
        raise DataError(f"{os.fspath(folder)} {what}.", hint=_LAYOUT if labels is None else LIST_FORM)
    return found


_LAYOUT = "Give a folder that has one folder of images for each class, or a list of labels: --labels FILE"


def _read_folders(folder: str, classes: Sequence[str], exclude: Sequence[str]) -> LabelledSources:
    splits = find_splits(folder, exclude)
    check_excluded(exclude, splits)
    if splits.val is None and splits.train is not splits.top:
        raise DataError(
            f"{folder} contains training images and none of {', '.join(f'{name}/' for name in VAL_NAMES)}",
            hint=f"To measure the error on the training images: alexdeploy evaluate {splits.train.root}",
        )
    chosen = splits.val or splits.top
    notes = splits.notes
    if splits.val is not None:
        notes = (f"{folder} contains training and validation images: using those in {chosen.root}", *notes)
    known = KnownClasses(classes)
    labels = {name: known.find(name) for name in chosen.names}
    if not labels:
        raise DataError(f"{chosen.root} contains no folders; its images have no labels.", hint=_LAYOUT)
    _refuse_unknown(chosen.root, labels, known)
    examples = [
        e for name, label in labels.items() if label is not None for e in list_examples(chosen.root, name, label)
    ]
    return LabelledSources(root=chosen.root, examples=tuple(examples), num_unlabelled=chosen.num_loose, notes=notes)


def _refuse_unknown(root: str, labels: Mapping[str, int | None], known: KnownClasses) -> None:
    unknown = [name for name, label in labels.items() if label is None]
    if unknown:
        shown = ", ".join(f"{printable_path(name)!r}{known.nearest(name)}" for name in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"{root} contains folders that are not classes of the model: {shown}{more}.",
            hint=f"{known.describe()}\nRename the folders, exclude them: --exclude NAME, or give a list: --labels",
        )


def _read_packed(folder: str, shown: str, classes: Sequence[str]) -> LabelledSources:
    """The validation images of the packed set `folder`, whose name for the user is `shown`."""
    opened = open_packed(folder)
    known = KnownClasses(classes)
    labels = {name: known.find(name) for name in opened.classes}
    _refuse_unknown(shown, labels, known)
    indices = [label for label in labels.values() if label is not None]
    names = opened.val.names
    return LabelledSources(
        root=os.path.join(shown, "val"),
        examples=tuple(Example(name, indices[label]) for name, label in zip(names, opened.val.labels, strict=True)),
        notes=(f"{shown} contains training and validation images: using the {len(names):,} for validation",),
        packed=opened.val,
    )


def _read_list(
    folder: str | os.PathLike[str], classes: Sequence[str], labels: str | os.PathLike[str]
) -> LabelledSources:
    root, name = os.fspath(folder), os.fspath(labels)
    check_data_folder(root)
    if not is_url(root) and not os.path.isdir(root):
        raise DataError(f"{root} is not a folder; the names in {name} are relative to it.", hint="Give their folder.")
    examples = find_listed(root, name, read_label_list(name, classes))
    listed = {example.path for example in examples}
    num_unlabelled, notes = 0, []
    for path, problem, _ in walk_folder(root):
        if problem is not None:
            notes.append(f"{printable_path(path)}: {problem}")
        elif (path if is_url(root) else os.path.normpath(path)) not in listed:
            num_unlabelled += 1
    if num_unlabelled:
        notes.append(f"{root}: images that {name} does not name and that have no label, ignored: {num_unlabelled:,}")
    return LabelledSources(
        root=root,
        examples=tuple(examples),
        num_unlabelled=num_unlabelled,
        notes=tuple(notes),
        was_listed=False,
    )
