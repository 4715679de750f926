"""Making a folder of files completely or not at all: everything is written beside it and renamed into place."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alexdeploy.core.errors import ModelError, StaleArtifactError
from alexdeploy.core.files import output_error, remove_file, sync_folder
from alexdeploy.core.interrupts import deferred_interrupts
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import open_regular

_CHUNK_BYTES = 1 << 20


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, on the same disk, to fill and to `publish`. Raises OutputError."""
    # Beside the folder itself where `target` is a link to it, or the working folder.
    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target if target.is_dir() and target.stat().st_dev != target.parent.stat().st_dev else target.parent
        with tempfile.TemporaryDirectory(dir=beside, prefix=f".{target.name[:64]}.", suffix=".tmp") as temporary:
            # Not the temporary folder itself, which only this user may read.
            staged = Path(temporary) / "staged"
            staged.mkdir()
            yield staged
    except OSError as exc:
        raise output_error(target, exc) from exc


def copy_file(source: Path, target: Path, sha256: str) -> None:
    """Copy a file to disk, into a staged folder, whose errors say why it could not be written.

    Raises ModelError if it cannot be read, StaleArtifactError if its content has not this hash.
    """
    digest = hashlib.sha256()
    with open(target, "wb") as copy:
        for chunk in _chunks(source):
            digest.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    if digest.hexdigest() != sha256:
        raise StaleArtifactError(f"{source} changed while it was copied", hint="Run the command again.")


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc


def write_file(target: Path, content: bytes) -> None:
    """Write a file to disk, into a staged folder."""
    with open(target, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def publish(
    staged: Path, folder: ModelFolder, *, with_folders: bool = True, check: Callable[[], object] | None = None
) -> None:
    """Rename the staged folder to `folder`, or its files into it where it has files. Raises OutputError.

    Before anything is replaced there, `check` raises for files that another command has written meanwhile.

    Files of a model that is there are removed or replaced, with its engines and checkpoints if `with_folders`;
    unrelated files stay. Killed in between, it leaves a folder without a spec, which is no model.
    """
    target = folder.path.resolve()
    with deferred_interrupts():
        try:
            try:
                # Also over an empty folder.
                os.rename(staged, target)
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EBUSY):
                    raise
                if check is not None:
                    check()
                remove_file(folder.spec_path)
                names = sorted(path.name for path in staged.iterdir())
                # The spec last.
                for name in sorted(names, key=lambda name: name == folder.spec_path.name):
                    os.replace(staged / name, target / name)
                if with_folders:
                    folder.clear(keep={folder.path / name for name in names})
                for path in folder.portable_files:
                    if path.name not in names:
                        remove_file(path)
                sync_folder(target)
            sync_folder(target.parent)
        except OSError as exc:
            raise output_error(folder.path, exc) from exc
