"""Messages of a library, kept per thread for the error that follows."""

from __future__ import annotations

import threading
from collections import deque

_MOST_LINES = 100


class _Lines(threading.local):
    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_MOST_LINES)


class Complaints:
    """Lines by the thread that logged them. Lines from the library's own threads go to any caller."""

    def __init__(self) -> None:
        self._own = _Lines()
        self._others: deque[str] = deque(maxlen=_MOST_LINES)

    def add(self, line: str) -> None:
        """May be called from any thread of the library. Never raises."""
        # A thread that Python did not start never calls `take`, and its thread-local data ends with it.
        lines = self._own.lines if _is_pythons(threading.get_ident()) else self._others
        lines.append(line)

    def take(self) -> str:
        """The lines from this thread since the last call here; if none, those from the library's own threads."""
        return _drain(self._own.lines) or _drain(self._others)


def _is_pythons(ident: int) -> bool:
    # current_thread() would register an unknown thread as a new Python thread, and keep it.
    return any(thread.ident == ident for thread in threading.enumerate())


def _drain(lines: deque[str]) -> str:
    found = []
    while True:
        try:
            found.append(lines.popleft())
        # Another thread may take some lines meanwhile.
        except IndexError:
            return "\n".join(found)
