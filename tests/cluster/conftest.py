"""One Ray cluster on loopback, for all tests of this folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

# Ray takes 127.0.0.1 for the machine's address in its network.
_ADDRESS = "127.0.0.2"
_STORE_BYTES = 100 * 2**20


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A ray.cluster_utils.Cluster to which this process is connected: a head with four CPUs, as Ray counts them.

    None is busy for long. Tests may add nodes by `add_node`, and end them.
    """
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    # The actors have the environment that their node was started in.
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # The driver does not leave them behind on a busy machine.
        "RAY_worker_niceness": "0",
        "ALEXDEPLOY_CACHE": str(tmp_path_factory.mktemp("actors")),
        "no_proxy": "127.0.0.1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    handler = signal.getsignal(signal.SIGTERM)
    head = {"num_cpus": 4, "object_store_memory": _STORE_BYTES, "node_ip_address": _ADDRESS, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    for name, value in before.items():
        if name != "RAY_USAGE_STATS_ENABLED":
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})
    # Ray's own would end the process without the fixtures' clean-up.
    signal.signal(signal.SIGTERM, handler)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def cluster(nodes: Any) -> Any:
    """Ray, connected to the cluster."""
    import ray

    return ray
