"""The rendered data set: ten classes of shapes, for training without other data."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.core.reading import MAX_TEXT_BYTES, read_regular
from alexdeploy.images.shapes import CLASSES, render_image

MANIFEST_NAME = "sample.json"
# The manifest of an unfinished sample, renamed to MANIFEST_NAME after the last image.
STARTED_NAME = "sample.json.part"
_VERSION = 1

# Part of the random seed of every image, so that splits have no images in common.
_TRAIN, _VAL, _PHOTOGRAPHS = 0, 1, 2

_ORIENTATION_TAG = 0x0112
# For each EXIF orientation, how a camera held that way stores an upright picture.
_STORED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """Everything that the bytes of a sample depend on; counts are images per class."""

    version: int
    seed: int
    num_train: int
    num_val: int
    classes: tuple[str, ...]


def write_sample(
    folder: str | os.PathLike[str],
    *,
    num_train: int,
    num_val: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Render a data set to folder/train/<class> and folder/val/<class>, and return the folder.

    `num_train` and `num_val` are images per class, of ten classes. With the same Pillow and NumPy, the same seed gives
    the same bytes for each image, whatever the counts. The same arguments complete an interrupted run; a finished
    sample is returned at once. `progress` gets the number of images done and the total. Raises UsageError if the folder
    contains anything else, OutputError if it cannot be written.
    """
    if num_train < 1 or num_val < 1 or seed < 0:
        raise UsageError(
            f"num_train is {num_train}, num_val {num_val}, seed {seed};"
            " expected at least one image of each and a seed of at least 0"
        )
    root = Path(folder)
    manifest = _Manifest(version=_VERSION, seed=seed, num_train=num_train, num_val=num_val, classes=CLASSES)
    try:
        if _is_finished(root, manifest):
            return root
        for done, (path, key) in enumerate(_plan(root, manifest)):
            if progress is not None:
                progress(done, (num_train + num_val) * len(CLASSES))
            _write_if_missing(path, key)
        if progress is not None:
            progress(*((num_train + num_val) * len(CLASSES),) * 2)
        os.replace(root / STARTED_NAME, root / MANIFEST_NAME)
    except OSError as exc:
        raise _not_written(root, exc) from exc
    return root


def write_photographs(folder: str | os.PathLike[str], *, num: int, seed: int = 0) -> Path:
    """Render `num` JPEGs, disc-01.jpg and so on, cycling through the classes, none of them in a sample of that seed.

    Existing files are kept. Raises OutputError if the folder cannot be written.
    """
    if num < 1 or seed < 0:
        raise UsageError(f"num is {num}, seed {seed}; expected at least one photograph and a seed of at least 0")
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        for count in range(num):
            index, label = divmod(count, len(CLASSES))
            _write_if_missing(root / f"{CLASSES[label]}-{index + 1:02d}.jpg", (seed, _PHOTOGRAPHS, label, index))
    except OSError as exc:
        raise _not_written(root, exc) from exc
    return root


def _is_finished(root: Path, manifest: _Manifest) -> bool:
    """Whether the sample is finished; if not, create the folder with the unfinished manifest."""
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    if (root / MANIFEST_NAME).is_file():
        _check_same(root, _read(root / MANIFEST_NAME), text)
        return True
    if (root / STARTED_NAME).is_file():
        _check_same(root, _read(root / STARTED_NAME), text)
        return False
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(
            f"{root} contains files that are not a rendered sample; nothing was written.",
            hint="Give an empty or a new folder.",
        )
    root.mkdir(parents=True, exist_ok=True)
    _write_bytes(root / STARTED_NAME, text.encode())
    return False


def _read(path: Path) -> str:
    return read_regular(path, MAX_TEXT_BYTES).decode(errors="replace")


def _check_same(root: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UsageError(
            f"{root} contains a sample with other settings.\nfound: {_compact(found)}\nexpected: {_compact(expected)}",
            hint=f"Give another folder, or remove this one: rm -r {root}",
        )


def _compact(text: str) -> str:
    return " ".join(text.split())


def _plan(root: Path, manifest: _Manifest) -> Iterator[tuple[Path, tuple[int, int, int, int]]]:
    splits = (("train", _TRAIN, manifest.num_train), ("val", _VAL, manifest.num_val))
    for split_name, split, num_images in splits:
        for label, name in enumerate(CLASSES):
            folder = root / split_name / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(num_images):
                yield folder / f"{name}-{index + 1:04d}.jpg", (manifest.seed, split, label, index)


def _write_if_missing(path: Path, key: tuple[int, int, int, int]) -> None:
    if not path.is_file() or path.stat().st_size == 0:
        _write_bytes(path, _render_jpeg(key))


def _render_jpeg(key: tuple[int, int, int, int]) -> bytes:
    """Render the image (seed, split, class, index); some are stored like those of cameras and scanners."""
    rng = np.random.default_rng(key)
    image = render_image(key[2], rng)
    if rng.random() < 0.05:
        image = image.convert("L")
    exif = Image.Exif()
    if rng.random() < 0.08:
        orientation = int(rng.choice(tuple(_STORED)))
        exif[_ORIENTATION_TAG] = orientation
        image = image.transpose(_STORED[orientation])
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(60, 96)), exif=exif)
    return file.getvalue()


def _write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _not_written(root: Path, exc: OSError) -> OutputError:
    return OutputError(
        f"{exc.filename or root} could not be written: {(exc.strerror or str(exc)).lower()}.",
        hint="Free disk space or give another folder. The same command resumes.",
    )
