"""Asking a store again: what may pass is tried a few times, with pauses that double, in bounded time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


class PassingError(OSError):
    """A failure that may pass: no connection, a connection that broke, a store that is busy or answered a part.

    `strerror` says what happened, without URL and credentials. `wait_seconds` is what the store asks for.
    """

    def __init__(self, text: str, wait_seconds: float = 0.0) -> None:
        super().__init__(None, text)
        self.strerror = text
        self.wait_seconds = wait_seconds


class Deadline:
    """A point in time, by a monotonic clock."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock() + seconds

    @property
    def seconds_left(self) -> float:
        return self._at - self._clock()

    def check(self) -> None:
        """Raise PassingError once it is over."""
        if self.seconds_left <= 0:
            raise PassingError("the store is too slow")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """At most `num_attempts` within `total_seconds`; the pause before the second is `first_wait_seconds`.

    Each further pause is twice as long, up to `longest_wait_seconds`, less a random part of up to a half, so that many
    readers do not come back at once. A longer pause that the store asks for is kept if there is time for it.
    """

    num_attempts: int = 6
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 8.0
    total_seconds: float = 120.0

    def run(
        self,
        call: Callable[[Deadline], _T],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> _T:
        """The result of `call`, which gets the end of all time. Raises the last PassingError; other errors at once."""
        deadline = Deadline(self.total_seconds, clock)
        wait = self.first_wait_seconds
        for attempt in range(1, self.num_attempts + 1):
            try:
                return call(deadline)
            except PassingError as exc:
                pause = max(wait * random.uniform(0.5, 1.0), exc.wait_seconds)
                if attempt == self.num_attempts or pause >= deadline.seconds_left:
                    raise
                sleep(pause)
                wait = min(2 * wait, self.longest_wait_seconds)
        raise AssertionError("a policy has at least one attempt")
