"""One process at a time: system locks, which are released when their process ends in any way."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import output_error

_MOST_SECONDS = 60.0
"""For processes that only write a few files."""


def take_lock(descriptor: int, path: Path) -> bool:
    """Lock the open file `path` until it is closed; False if another process has it, or has just removed it.

    True without a lock where the system, or the file system, has none.
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
    # The other process may have renamed or removed the file between the opening and the lock.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def hold_folder(folder: Path, busy: UsageError) -> Iterator[None]:
    """Have `folder` for this process while the block runs. Raises `busy` if another one has it, or OutputError.

    What says so is a file in it, and the folder is made for that; both are gone afterwards, unless the block has
    written to the folder. A kill leaves the file, but not the lock.
    """
    path = folder / ".lock"
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # To be written, though nothing is: NFS locks no others.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as exc:
        raise output_error(path, exc) from exc
    try:
        if not take_lock(descriptor, path):
            raise busy
        try:
            yield
        finally:
            # While it is locked: later it might be another's.
            with contextlib.suppress(OSError):
                path.unlink()
                if is_new:
                    folder.rmdir()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def wait_for_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; wait at most a minute for another process that has it.

    The folder must exist. The file is gone afterwards. Raises UsageError after a minute, or OutputError.
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
