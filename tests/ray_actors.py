"""The processes of `classify` on a Ray cluster of this machine."""

from __future__ import annotations

import psutil


def actor_processes() -> set[int]:
    """The ids of the processes of actors that this process' cluster runs: Ray names them after the class."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if name.startswith("ray::Actor"):
            found.add(process.pid)
    return found


def process_with_port(port: int) -> psutil.Process | None:
    """The actor that has this port of its own in a TCP connection."""
    for pid in actor_processes():
        try:
            process = psutil.Process(pid)
            if any(each.laddr and each.laddr.port == port for each in process.net_connections("tcp4")):
                return process
        except psutil.Error:
            continue
    return None
