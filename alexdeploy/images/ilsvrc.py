"""Reading the files of ILSVRC-2012 as downloaded: images are located inside the archives, without extraction.

ILSVRC2012_img_train.tar         one archive for each class, n01440764.tar, with its images
ILSVRC2012_img_val.tar           ILSVRC2012_val_00000001.JPEG and so on
ILSVRC2012_devkit_t12.tar.gz     the classes of those, and what the classes are
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from alexdeploy.core.errors import DataError, UsageError
from alexdeploy.core.matfile import MatError, read_struct
from alexdeploy.core.reading import open_regular
from alexdeploy.images.archives import StrictTarInfo
from alexdeploy.images.label_list import read_label_list
from alexdeploy.images.listing import describe, is_image_name
from alexdeploy.images.originals import Original, Originals
from alexdeploy.images.sources import printable_path

TRAIN_NAME = "ILSVRC2012_img_train.tar"
VAL_NAME = "ILSVRC2012_img_val.tar"
DEVKIT_NAME = "ILSVRC2012_devkit_t12.tar.gz"
_TRUTH_NAME = "data/ILSVRC2012_validation_ground_truth.txt"
_META_NAME = "data/meta.mat"
_CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
_MAX_DEVKIT_FILE_BYTES = 64 << 20
_IMAGES_PER_REPORT = 1000
_VAL_LIST_HINT = "give the labels of the validation images: --val-list FILE"


class _Member(NamedTuple):
    """A file in an uncompressed archive, and the position of its bytes."""

    name: str
    offset: int
    num_bytes: int


class _Devkit(NamedTuple):
    """The class of each validation image, in the order of their names, and the description of each class."""

    wnids: list[str]
    words: dict[str, str]


def is_ilsvrc(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` contains the archive of the training images."""
    return os.path.isfile(Path(folder) / TRAIN_NAME)


def read_ilsvrc(
    folder: str | os.PathLike[str],
    val_list: str | os.PathLike[str] | None = None,
    on_image: Callable[[int], None] = lambda num_found: None,
) -> Originals:
    """Find all images; only the headers of the archives are read.

    Classes are sorted by their WordNet ids, as everywhere except in the devkit itself, and named like
    "n01440764 tench, Tinca tinca". `val_list` replaces the devkit, with lines of `name label`, where a label is an id
    or an index in that order; the class names are then the ids. Raises DataError for files that are missing, truncated
    or inconsistent.
    """
    root = Path(folder)
    for name in (TRAIN_NAME, VAL_NAME) if val_list is not None else (TRAIN_NAME, VAL_NAME, DEVKIT_NAME):
        if not (root / name).is_file():
            hint = "Put it there"
            if name == DEVKIT_NAME:
                hint += f", or {_VAL_LIST_HINT}"
            raise DataError(f"{root} holds {TRAIN_NAME} and no {name}", hint=f"{hint}.")
    train = _train_images(root / TRAIN_NAME, on_image)
    wnids = sorted(train)
    val = sorted(
        member
        for member in _members(root / VAL_NAME, 0, (root / VAL_NAME).stat().st_size)
        if is_image_name(member.name)
    )
    on_image(sum(map(len, train.values())) + len(val))
    words: dict[str, str] = {}
    if val_list is None:
        devkit = _read_devkit(root / DEVKIT_NAME)
        words = devkit.words
        labels = _labels_by_devkit(root, wnids, len(val), devkit)
    else:
        labels = _labels_by_list(root, wnids, val, val_list)
    return Originals(
        classes=tuple(f"{wnid} {words[wnid]}" if wnid in words else wnid for wnid in wnids),
        train=tuple(
            Original(f"train/{wnid}/{member.name}", label, str(root / TRAIN_NAME), member.offset, member.num_bytes)
            for label, wnid in enumerate(wnids)
            for member in train[wnid]
        ),
        val=tuple(
            Original(f"val/{wnids[label]}/{member.name}", label, str(root / VAL_NAME), member.offset, member.num_bytes)
            for label, member in zip(labels, val, strict=True)
        ),
    )


def _train_images(path: Path, on_image: Callable[[int], None]) -> dict[str, list[_Member]]:
    """The images of each class, by class id, in the order of their names."""
    classes: dict[str, list[_Member]] = {}
    num_found = 0
    for archive in _members(path, 0, path.stat().st_size):
        match = _CLASS_ARCHIVE.fullmatch(archive.name)
        if match is None:
            raise DataError(f"{path} contains {archive.name!r}; expected one archive for each class, n01440764.tar")
        images = classes.setdefault(match[1], [])
        for member in _members(path, archive.offset, archive.num_bytes):
            if is_image_name(member.name):
                images.append(member)
                num_found += 1
                if num_found % _IMAGES_PER_REPORT == 0:
                    on_image(num_found)
        if not images:
            raise DataError(f"{path}: {archive.name} contains no images")
        images.sort()
    if len(classes) < 2:
        raise DataError(f"{path} has {len(classes)} classes; a classifier needs at least two.")
    return classes


def _members(path: Path, offset: int, num_bytes: int) -> Iterator[_Member]:
    """The regular files of the archive at `offset` in `path`. Raises DataError if it is truncated or damaged."""
    end = offset + num_bytes
    try:
        with open_regular(path) as file, _open_tar(_Window(file, offset, end)) as archive:
            while (info := archive.next()) is not None:
                # TarFile keeps all headers in memory.
                cast("Any", archive).members.clear()
                if info.size < 0:
                    raise DataError(
                        f"{path} is damaged: {info.name} has {info.size:,} bytes", hint="Download it again."
                    )
                begin = offset + info.offset_data
                if begin + info.size > end:
                    raise DataError(f"{path} is truncated: {info.name} ends after its end", hint="Download it again.")
                if info.isfile():
                    yield _Member(info.name.removeprefix("./"), begin, info.size)
    except tarfile.TarError as exc:
        raise DataError(f"{path} is truncated, damaged or not a tar archive: {exc}", hint="Download it again.") from exc
    except OSError as exc:
        raise DataError(f"{path} cannot be read: {describe(exc)}") from exc


def _open_tar(window: _Window) -> tarfile.TarFile:
    return tarfile.open(fileobj=cast("IO[bytes]", window), mode="r:", tarinfo=StrictTarInfo)


class _Window:
    """Part of a file as a file object, with only the methods that tarfile needs."""

    def __init__(self, file: IO[bytes], begin: int, end: int) -> None:
        self._file, self._begin, self._end = file, begin, end
        file.seek(begin)

    def read(self, size: int) -> bytes:
        return self._file.read(max(0, min(size, self._end - self._file.tell())))

    def seek(self, position: int) -> int:
        return self._file.seek(self._begin + position) - self._begin

    def tell(self) -> int:
        return self._file.tell() - self._begin


def _read_devkit(path: Path) -> _Devkit:
    contents = _devkit_files(path)
    try:
        synsets = read_struct(contents[_META_NAME], "synsets")
        names = {int(entry["ILSVRC2012_ID"]): (str(entry["WNID"]), str(entry["words"])) for entry in synsets}
        numbers = [int(line) for line in contents[_TRUTH_NAME].split()]
        return _Devkit([names[number][0] for number in numbers], dict(names.values()))
    except UsageError as exc:
        raise UsageError(exc.message, hint=f"{exc.hint}\nor {_VAL_LIST_HINT}") from exc
    except (MatError, KeyError, ValueError, TypeError) as exc:
        raise DataError(
            f"{path} is not the devkit of ILSVRC-2012, or damaged: {exc or type(exc).__name__}",
            hint=f"Download it again, or {_VAL_LIST_HINT}",
        ) from exc


def _devkit_files(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with open_regular(path) as opened, tarfile.open(fileobj=opened, mode="r:gz", tarinfo=StrictTarInfo) as archive:
            for info in archive:
                for name in (_TRUTH_NAME, _META_NAME):
                    if info.isfile() and info.name.endswith(name) and info.size <= _MAX_DEVKIT_FILE_BYTES:
                        file = archive.extractfile(info)
                        found[name] = b"" if file is None else file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as exc:
        raise DataError(f"{path} cannot be read: {exc}", hint="Download it again.") from exc
    for name in (_TRUTH_NAME, _META_NAME):
        if name not in found:
            raise DataError(f"{path} contains no {name}", hint="Download the development kit of tasks 1 and 2 again.")
    return found


def _labels_by_devkit(root: Path, wnids: list[str], num_val: int, devkit: _Devkit) -> list[int]:
    if len(devkit.wnids) != num_val:
        raise DataError(
            f"{root / VAL_NAME} holds {num_val:,} images, the devkit has {len(devkit.wnids):,} labels",
            hint="Download both again.",
        )
    indices = {wnid: index for index, wnid in enumerate(wnids)}
    missing = sorted(set(devkit.wnids) - set(indices))
    if missing:
        raise DataError(
            f"{root / TRAIN_NAME} has no class {missing[0]}, which validation images have"
            + (f", and {len(missing) - 1} more are missing" if missing[1:] else ""),
            hint="It may be incomplete; download it again.",
        )
    return [indices[wnid] for wnid in devkit.wnids]


def _labels_by_list(root: Path, wnids: list[str], val: list[_Member], path: str | os.PathLike[str]) -> list[int]:
    # Names in lists may be those in the archive, with class folders before them, or without a suffix.
    labels = {_stem(name.rpartition("/")[2]): label for name, label in read_label_list(path, wnids)}
    missing = [member.name for member in val if _stem(member.name) not in labels]
    if labels and val and len(missing) == len(val):
        raise UsageError(
            f"{root / VAL_NAME} holds none of the {len(labels):,} images that {os.fspath(path)} names: the list has "
            f"{printable_path(next(iter(labels)))!r}, the archive {val[0].name!r}.",
            hint="Give the list of the validation images.",
        )
    if missing or len(labels) != len(val):
        example = f"; {missing[0]} has none" if missing else ""
        raise DataError(
            f"{os.fspath(path)} labels {len(labels):,} images of {len(val):,} in {root / VAL_NAME}{example}"
        )
    return [labels[_stem(member.name)] for member in val]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0] if is_image_name(name) else name
