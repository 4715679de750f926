"""The folders of the user's cache, and how large they may grow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """A folder under the user's cache (`ALEXDEPLOY_CACHE`, else XDG's), made if need be; None if it cannot be."""
    try:
        base = (
            os.environ.get("ALEXDEPLOY_CACHE")
            or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "alexdeploy"
        )
        folder = Path(base) / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # RuntimeError: a user without a home folder.
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def limit_folder(folder: Path, limit_bytes: int) -> None:
    """Delete the files of a cache that were used longest ago until it holds at most `limit_bytes`."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    used = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if used <= limit_bytes:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            used -= size
