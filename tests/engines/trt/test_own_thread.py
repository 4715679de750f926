"""Work in a thread of its own: its results and errors are the caller's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, ModelError
from alexdeploy.engines.trt.own_thread import in_own_thread


def test_the_result_is_of_another_thread() -> None:
    assert in_own_thread(threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (ModelError("no graph"), ModelError, "no graph"),
        (MemoryError("12 GB"), DeviceMemoryError, "memory ran out: 12 GB"),
        (RuntimeError("first\nsecond"), DeviceError, "RuntimeError: first"),
    ],
)
@pytest.mark.parametrize("place", ["work", "context"])
def test_an_exception_is_an_error_of_ours(
    raised: Exception, kind: type[AlexDeployError], message: str, place: str
) -> None:
    def fail() -> None:
        raise raised

    @contextmanager
    def context() -> Iterator[None]:
        if place == "context":
            fail()
        yield

    work: Callable[[], object] = fail if place == "work" else threading.get_ident
    with pytest.raises(AlexDeployError) as caught:
        in_own_thread(work, context=context)
    assert (type(caught.value), caught.value.message) == (kind, message)
