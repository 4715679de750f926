from __future__ import annotations

import pytest

from alexdeploy.training import data
from alexdeploy.training.data import half_of_free_memory


@pytest.mark.parametrize(("memory", "expected"), [((6_000, 10_000), 3_000), ((None, None), 2 << 30)])
def test_decoded_pixels_may_take_half_of_what_is_left_and_not_of_what_there_is(
    memory: tuple[int | None, int | None], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "host_memory", lambda: memory)
    assert half_of_free_memory() == expected
