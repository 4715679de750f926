"""The kernels of conv1 after each epoch, small files beside the checkpoint; `figures` shows them as an animation."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError
from alexdeploy.core.files import atomic_write, npy_bytes, remove_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import MAX_TEXT_BYTES, read_regular


def write_kernels(folder: ModelFolder, epoch: int, kernels: NDArray[np.float32]) -> None:
    """Write the kernels [C, 3, K, K] after `epoch`; epoch 0 is before the first step. Raises OutputError."""
    with atomic_write(_path(folder, epoch)) as file:
        file.write(npy_bytes(kernels))


def kernel_epochs(folder: ModelFolder) -> tuple[int, ...]:
    """The epochs whose kernels were kept, in order; earlier versions kept none."""
    names = (path.name for path in _path(folder, 0).parent.glob("*.npy"))
    return tuple(sorted(int(name[:-4]) for name in names if re.fullmatch(r"\d{4,}\.npy", name)))


def read_kernels(folder: ModelFolder, epoch: int) -> NDArray[np.float32]:
    """The kernels after `epoch`, float32 [C, 3, K, K]. Raises ModelError for a damaged file."""
    path = _path(folder, epoch)
    try:
        kernels: NDArray[np.float32] = np.load(io.BytesIO(read_regular(path, MAX_TEXT_BYTES)), allow_pickle=False)
    except OSError as exc:
        raise ModelError(
            f"{path} cannot be read: {exc.strerror}", hint=f"Remove {path.name}: it is one frame."
        ) from exc
    # np.load raises any exception of its header parsers.
    except Exception as exc:
        raise ModelError(f"{path} is damaged: {exc}", hint=f"Remove {path.name}: it is one frame.") from exc
    if kernels.dtype != np.float32 or kernels.ndim != 4 or kernels.shape[1] != 3 or not np.isfinite(kernels).all():
        raise ModelError(
            f"{path} is {kernels.dtype} {list(kernels.shape)}, expected finite float32 [C, 3, K, K]",
            hint=f"Remove {path.name}: it is one frame.",
        )
    return kernels


def drop_kernels(folder: ModelFolder, after: int) -> None:
    """Remove what a killed run wrote after the epoch of its checkpoint. Raises OutputError."""
    for epoch in kernel_epochs(folder):
        if epoch > after:
            remove_file(_path(folder, epoch))


def _path(folder: ModelFolder, epoch: int) -> Path:
    return folder.checkpoints / "kernels" / f"{epoch:04}.npy"
