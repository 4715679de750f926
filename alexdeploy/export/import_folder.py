"""The folder that an import fills: refused while it is in use, written last and whole, cleared of an earlier model."""

from __future__ import annotations

import datetime
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import alexdeploy
from alexdeploy.core.artifacts import ModelFolder, atomic_write, sha256_bytes
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec
from alexdeploy.network.caffe import read_binaryproto

MeanImage = NDArray[np.float32]


def refuse_used(folder: ModelFolder, *, overwrite: bool) -> None:
    """Raise UsageError if something is there already and may not be replaced."""
    if not overwrite and folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise UsageError(
            f"{folder.path} already holds a model or other files", cure="Choose another --name, or --overwrite it."
        )


def class_names(given: tuple[str, ...] | None, num_classes: int, path: Path) -> tuple[str, ...]:
    """The labels, or class-0, class-1 ... where there are none. Raises ModelError if they do not fit."""
    if given is None:
        return tuple(f"class-{index}" for index in range(num_classes))
    if len(given) != num_classes:
        raise ModelError(
            f"{path} has {num_classes} classes, the labels are {len(given)}",
            cure="Give one label per line, in the order of the output.",
        )
    return given


def origin(path: Path, sha256: str) -> dict[str, str | int | float | None]:
    """The provenance that every import writes."""
    return {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "alexdeploy": alexdeploy.__version__,
        "imported_from": path.name,
        "imported_sha256": sha256,
    }


def read_mean_image(path: Path) -> MeanImage:
    """A mean image in pixels of 0 to 255, from a .binaryproto of Caffe or a .npy: float32 [3, 256, 256].

    Its channels are in the order that the network has. Raises ModelError for another shape or kind.
    """
    if path.suffix.lower() == ".npy":
        try:
            mean = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as exc:
            raise ModelError(f"{path} cannot be read as a NumPy array: {exc}") from exc
    else:
        mean = read_binaryproto(path)
    found = mean.shape
    while mean.ndim > 3 and len(mean) == 1:
        mean = mean[0]
    if mean.shape != (3, IMAGE_SIZE, IMAGE_SIZE) or mean.dtype.kind not in "fiu":
        cure = None
        if mean.ndim == 3 and len(mean) == 3 and mean.dtype.kind in "fiu":
            values = ",".join(f"{value:.3f}" for value in mean.mean(axis=(1, 2)))
            cure = f"Its means per channel may do instead: --mean {values}"
        raise ModelError(
            f"{path} holds {mean.dtype} {list(found)}; a mean image is [3, {IMAGE_SIZE}, {IMAGE_SIZE}]", cure=cure
        )
    result: MeanImage = np.ascontiguousarray(mean, np.float32)
    if not np.isfinite(result).all():
        raise ModelError(f"{path} holds values that are not finite")
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanFile:
    """What becomes `mean.npy`: the mean of scaled pixels, and the bytes of the file."""

    image: MeanImage
    content: bytes

    @property
    def sha256(self) -> str:
        return sha256_bytes(self.content)


def mean_file(image: MeanImage, scale: float) -> MeanFile:
    """From a mean in pixels of 0 to 255, whose bits stay what they are where `scale` is 1."""
    scaled: MeanImage = image if scale == 1 else image * np.float32(scale)
    file = io.BytesIO()
    np.save(file, scaled, allow_pickle=False)
    return MeanFile(image=scaled, content=file.getvalue())


def write_model(folder: ModelFolder, files: Mapping[Path, bytes], spec: ModelSpec) -> None:
    """Write the files, then the spec, and remove what belonged to an earlier model; or leave no new folder behind."""
    is_new = not folder.path.exists()
    try:
        for path, content in files.items():
            with atomic_write(path) as file:
                file.write(content)
        folder.write_spec(spec)
    except BaseException:
        if is_new:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise
    derived = (folder.onnx_path(), folder.weights_path, folder.mean_path, *folder.path.glob("model.*.onnx"))
    for stale in set(derived) - set(files):
        stale.unlink(missing_ok=True)
    for stale in (folder.checkpoints, folder.path / "engines"):
        shutil.rmtree(stale, ignore_errors=True)
