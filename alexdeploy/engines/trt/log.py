"""Messages of a library, kept per thread for the error that follows."""

from __future__ import annotations

import threading
from collections import deque

_MOST_LINES = 100


class _Lines(threading.local):
    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_MOST_LINES)


class Complaints:
    """Lines by the thread that said them; those of threads that the library started are anyone's."""

    def __init__(self) -> None:
        self._own = _Lines()
        self._others: deque[str] = deque(maxlen=_MOST_LINES)

    def add(self, line: str) -> None:
        """Called in any thread of the library. Never raises."""
        # A thread that Python did not start asks for nothing, and with it what is local to it ends.
        lines = self._own.lines if _is_pythons(threading.get_ident()) else self._others
        lines.append(line)

    def take(self) -> str:
        """All that the library said in this thread since it was last asked here, else in threads of its own."""
        return _drain(self._own.lines) or _drain(self._others)


def _is_pythons(ident: int) -> bool:
    # Not current_thread(), which takes a thread that it does not know for a new one of Python's, and keeps it.
    return any(thread.ident == ident for thread in threading.enumerate())


def _drain(lines: deque[str]) -> str:
    found = []
    while True:
        try:
            found.append(lines.popleft())
        # Another thread may take some of them meanwhile.
        except IndexError:
            return "\n".join(found)
