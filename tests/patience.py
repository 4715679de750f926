"""How long tests wait: long enough for a machine that is busy with other work. Only what hangs takes longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest

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


def slow_but_for(quick: Collection[object], values: Iterable[Any]) -> list[Any]:
    """Parameters of which `make test` runs those in `quick` alone, and `make check` all."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
