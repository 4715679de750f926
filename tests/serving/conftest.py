"""Fixtures of servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from running import SERVING, Running, running

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.serving.models import Repository


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Every test ends with the threads it began with; a server may run through all tests of a module."""
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not [name for name in left if name.startswith("alexdeploy-")]


@pytest.fixture(scope="session")
def model(exported: Callable[..., ModelFolder]) -> ModelFolder:
    return exported("alexnet")


@pytest.fixture(scope="module")
def server(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Ten views, batches of 4, for all tests of a module."""
    with running(Repository([model], SERVING)) as server:
        yield server
