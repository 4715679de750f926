"""How long tests wait: long enough for a machine that is busy with other work. Only what hangs takes longer."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 200.0
"""Seconds that a test waits for what must come. Less than pytest's own limit."""

HANG = 3600.0
"""Seconds that a fault sleeps which nobody is to wait for."""


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Return when `condition` is true; AssertionError after `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not so after {seconds:.0f} s"
        time.sleep(0.01)
