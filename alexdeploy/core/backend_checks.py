"""Which backends give a model's answers: `backends.json` in the model folder, written when graphs are checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from alexdeploy.core.errors import ModelError
from alexdeploy.core.files import atomic_write
from alexdeploy.core.hashes import remembered_sha256
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import backend_version
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, read_regular


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendCheck:
    """The check of one backend on `num_images` images. `artifact` is the SHA-256 of the graph or weights file.

    `error` is the largest error of a logit, as a fraction of the largest logit; None if it could not run.
    `problem` says why the backend failed the check; None if it passed. `version` is the backend's.
    """

    backend: str
    version: str
    precision: str
    artifact: str
    num_images: int
    error: float | None = None
    problem: str | None = None


def read_backend_checks(folder: ModelFolder) -> tuple[BackendCheck, ...]:
    """The recorded checks; empty for a model from before checks existed. Raises ModelError if damaged."""
    path = folder.backends_path
    try:
        return decode_json(read_regular(path, MAX_TEXT_BYTES), tuple[BackendCheck, ...])
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ModelError(
            f"{path} is damaged: {exc}", hint=f"Check the backends again: alexdeploy export {folder.quoted}"
        ) from exc


def backend_checks_json(checks: tuple[BackendCheck, ...]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(checks), indent=2) + b"\n"


def record_backend_checks(folder: ModelFolder, checks: tuple[BackendCheck, ...]) -> None:
    """Write `checks`, keeping the records of other precisions. Raises OutputError."""
    renewed = {each.precision for each in checks}
    kept = tuple(each for each in _readable(folder) if each.precision not in renewed)
    with atomic_write(folder.backends_path) as file:
        file.write(backend_checks_json(kept + checks))


def backend_problem(folder: ModelFolder, backend: str, precision: str, artifact: Path) -> str | None:
    """Why the backend should not run `artifact` in this precision; None if no problem is recorded.

    A record for another hash of `artifact` or another version of the backend is ignored.
    """
    for each in read_backend_checks(folder):
        if each.problem is not None and (each.backend, each.precision) == (backend, precision):
            is_same = artifact.is_file() and remembered_sha256(artifact) == each.artifact
            return each.problem if is_same and each.version == backend_version(backend) else None
    return None


def _readable(folder: ModelFolder) -> tuple[BackendCheck, ...]:
    try:
        return read_backend_checks(folder)
    except ModelError:
        # The checks of other precisions are lost too; exporting those precisions repeats them.
        return ()
