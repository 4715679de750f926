"""The user's folders for caches and state, and how large a cache may grow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal


def user_folder(kind: Literal["cache", "state"]) -> Path:
    """`ALEXDEPLOY_CACHE` or `ALEXDEPLOY_STATE`, else alexdeploy/ in the system's folder (on Linux per XDG).

    Raises RuntimeError for a user without a home folder.
    """
    if own := os.environ.get(f"ALEXDEPLOY_{kind.upper()}"):
        return Path(own)
    import platformdirs

    find = platformdirs.user_cache_path if kind == "cache" else platformdirs.user_state_path
    return find("alexdeploy", appauthor=False).expanduser()


def cache_folder(name: str) -> Path | None:
    """A folder in the user's cache, created if necessary; None if it cannot be created or written to."""
    try:
        folder = user_folder("cache") / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def limit_folder(folder: Path, limit_bytes: int) -> None:
    """Delete the least recently used files of a cache until it has at most `limit_bytes`."""
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
