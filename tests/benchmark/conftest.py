from __future__ import annotations

from collections.abc import Iterator

import pytest

from alexdeploy.benchmark import worker


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Every test ends with the processes that it began with."""
    psutil = pytest.importorskip("psutil")
    yield
    assert [each for each in psutil.Process().children() if worker.__name__ in each.cmdline()] == []
