"""One Ray cluster on loopback, for all tests of this folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node with four CPUs, as Ray counts them: none is busy for long."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Of the actors, which have the environment that the cluster was started in.
    os.environ["ALEXDEPLOY_CACHE"] = str(tmp_path_factory.mktemp("actors"))
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        # Not one that runs here already.
        "local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    del os.environ["ALEXDEPLOY_CACHE"]
    # Ray's own would end the process without the fixtures' clean-up.
    signal.signal(signal.SIGTERM, handler)
    yield ray
    ray.shutdown()
