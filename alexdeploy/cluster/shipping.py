"""A model folder, sent to each node once, in the user's cache there under a hash of its content."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import OutputError
from alexdeploy.core.files import sha256_bytes, sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.stores.copies import MODEL_FILES, remove_unused, whole_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class ShippedModel:
    """The files of a model in Ray's object store, by name, and a hash of all of them."""

    sha256: str
    files: dict[str, Any]


def ship(folder: ModelFolder) -> ShippedModel:
    """Put spec, weights, mean and graphs into the object store: engines are code, and signed for their machine."""
    paths = sorted(path for path in folder.path.iterdir() if MODEL_FILES.fullmatch(path.name))
    hashes = "".join(f"{path.name}\0{sha256_file(path)}\n" for path in paths)
    return ShippedModel(
        sha256=sha256_bytes(hashes.encode()),
        files={path.name: ray.put(path.read_bytes()) for path in paths},
    )


def unpack(model: ShippedModel) -> ModelFolder:
    """The model on this node. Raises OutputError if it cannot be written to the cache."""
    models = cache_folder("cluster")
    if models is None:
        raise OutputError("there is no cache folder for the model", hint="Name one: ALEXDEPLOY_CACHE=FOLDER")
    version = models / model.sha256[:16]
    if version.is_dir():
        with suppress(OSError):
            os.utime(version)
    else:
        try:
            with whole_folder(version) as temporary:
                for name, reference in model.files.items():
                    with (temporary / name).open("wb") as file:
                        file.write(ray.get(reference))
                        file.flush()
                        os.fsync(file.fileno())
        except OSError as exc:
            raise OutputError(f"{version} could not be written: {exc.strerror or exc}") from exc
        remove_unused(models, version)
    return ModelFolder(version)
