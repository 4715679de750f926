"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from alexdeploy.core.errors import DeviceError, first_line

LOCAL = "local"

_REACH_SECONDS = 10.0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on this machine for "local"; ends what it began.

    A local cluster listens on loopback, without Ray's dashboard and usage statistics. Raises DeviceError if there is
    no cluster at the address.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    own = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == LOCAL else {}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    # Ray raises several kinds, also for an address of a wrong form.
    except Exception as exc:
        if address == LOCAL:
            raise DeviceError(
                f"Ray did not start on this machine: {first_line(exc)}",
                hint="Try again when it is less busy, or leave out --ray.",
            ) from exc
        raise DeviceError(
            f"no connection to a Ray cluster at {address}: {first_line(exc)}",
            hint="Give the address of its head, as in --ray 10.0.0.5:6379, or start one on this machine: --ray local",
        ) from exc
    try:
        if is_main:
            # Ray's own handler ends the process at once.
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray would wait for many minutes."""
    if found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d{1,5})", address):
        socket.create_connection((found[1], int(found[2])), timeout=_REACH_SECONDS).close()
