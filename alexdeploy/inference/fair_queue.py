"""A queue of several clients' jobs that serves the clients in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

_ItemT = TypeVar("_ItemT")


class FairQueue(Generic[_ItemT]):
    """Items of jobs. Each client has its turn for one item, that of its oldest job. Not thread-safe."""

    def __init__(self) -> None:
        # The client whose turn it is comes first.
        self._clients: dict[str, dict[Hashable, deque[_ItemT]]] = {}
        self._num_items = 0

    def __len__(self) -> int:
        return self._num_items

    def add(self, client: str, job: Hashable, items: Iterable[_ItemT]) -> None:
        """Append items to a job, which has a place behind the client's earlier ones."""
        queue = self._clients.setdefault(client, {}).setdefault(job, deque())
        before = len(queue)
        queue.extend(items)
        self._num_items += len(queue) - before
        if not queue:
            self.remove(client, job)

    def pop(self) -> _ItemT:
        """Remove and return the next item; IndexError if there is none."""
        client = next(iter(self._clients), None)
        if client is None:
            raise IndexError("the queue is empty")
        jobs = self._clients.pop(client)
        job, items = next(iter(jobs.items()))
        item = items.popleft()
        self._num_items -= 1
        if not items:
            del jobs[job]
        if jobs:
            self._clients[client] = jobs
        return item

    def remove(self, client: str, job: Hashable) -> list[_ItemT]:
        """Remove and return the items of a job that are still there."""
        jobs = self._clients.get(client, {})
        items = jobs.pop(job, deque())
        if client in self._clients and not jobs:
            del self._clients[client]
        self._num_items -= len(items)
        return list(items)
