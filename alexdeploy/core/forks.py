"""Objects opened in one process cannot be used in its forks, which have its memory but not its threads."""

from __future__ import annotations

import ctypes
import os
import weakref

from alexdeploy.core.errors import UsageError

_opened: weakref.WeakSet[object] = weakref.WeakSet()
"""The objects that are open in this process."""


class OpenedHere:
    """Records the process in which `thing` was opened. Check it before `thing` is used or closed.

    In a fork `thing` is never freed, not even at exit: the underlying libraries would wait for threads that do not
    exist there.
    """

    def __init__(self, thing: object) -> None:
        self._process = os.getpid()
        _opened.add(thing)

    @property
    def is_fork(self) -> bool:
        """Whether this is another process. Only the process that opened the object closes it."""
        return os.getpid() != self._process

    def check(self, what: str) -> None:
        """Raise UsageError in a fork; `what` is the kind of object for the message."""
        if self.is_fork:
            raise UsageError(
                f"the {what} was opened in process {self._process}, and this is process {os.getpid()}, forked from it",
                hint=f"Open the {what} in each worker, after the fork. After PyTorch has run, use spawn.",
            )


def _keep_all() -> None:
    for thing in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_all)
