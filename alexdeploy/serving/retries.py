"""When to open a model again whose engine has failed. Times are in seconds, of any clock."""

from __future__ import annotations

import math

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 60.0


class Retry:
    """Attempts at intervals that double, from one second to one minute; what ran for longer than that begins again.

    `at` is the time of the next attempt; None: nothing is to be tried.
    """

    def __init__(self) -> None:
        self.at: float | None = None
        self._seconds = _FIRST_SECONDS
        self._since = math.inf

    def failed(self, now: float) -> None:
        """It stopped running, or an attempt failed."""
        if now - self._since > _LONGEST_SECONDS:
            self._seconds = _FIRST_SECONDS
        self.at, self._since = now + self._seconds, math.inf
        self._seconds = min(2 * self._seconds, _LONGEST_SECONDS)

    def succeeded(self, now: float) -> None:
        """It runs from now on."""
        self.at, self._since = None, now

    def is_due(self, now: float) -> bool:
        return self.at is not None and self.at <= now
