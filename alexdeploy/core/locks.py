"""Locks between processes: system locks, which are released however the process ends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import output_error

_MOST_SECONDS = 60.0
"""Enough for processes that only write a few files."""


def take_lock(descriptor: int, path: Path) -> bool:
    """Lock the open file `path` until it is closed; False if another process has locked or just removed it.

    True without a lock if the system or file system does not support locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    # Another process may have renamed or removed the file between opening and locking.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def hold_folder(folder: Path, busy: UsageError) -> Iterator[None]:
    """Lock `folder` for this process while the block runs. Raises `busy` if another process has it, or OutputError.

    Uses a lock file in the folder; both are created if necessary. Afterwards the file is removed, and a new folder too
    if it is empty. A killed process leaves the file, but not the lock.
    """
    path = folder / ".lock"
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Open for writing, though nothing is written: NFS requires it for locks.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as exc:
        raise output_error(path, exc) from exc
    try:
        if not take_lock(descriptor, path):
            raise busy
        try:
            yield
        finally:
            # Remove it while it is locked: afterwards another process may have it.
            with contextlib.suppress(OSError):
                path.unlink()
                if is_new:
                    folder.rmdir()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Lock the file `path` while the block runs; wait at most a minute for another process.

    The folder must exist. The file is removed afterwards. Raises UsageError after a minute, or OutputError.
    """
    end = time.monotonic() + _MOST_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as exc:
            raise output_error(path, exc) from exc
        try:
            if take_lock(descriptor, path):
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        path.unlink()
                return
        finally:
            os.close(descriptor)
        if time.monotonic() > end:
            raise UsageError(f"another process has been writing {path.parent} for a minute", hint="Wait for it.")
        time.sleep(0.05)
