"""Which jobs may wait: a bounded number of images, and when there is no room, equal shares for the clients."""

from __future__ import annotations

from alexdeploy.core.errors import QueueFullError
from alexdeploy.inference.job import Task


class Admission:
    """The tasks with images that wait, by client. Not thread-safe. `max_images` None: no limit."""

    def __init__(self, max_images: int | None) -> None:
        self._max_images = max_images
        self._clients: dict[str, dict[Task, None]] = {}
        self._shares: dict[str, int] = {}
        self.num_images = 0

    def admit(self, task: Task) -> list[Task]:
        """Count a new task's images, and return the tasks that must leave for it: the caller removes them.

        Those are the newest tasks, of which no image has run, of the clients with the largest shares, as long as the
        newcomer's share stays below theirs. Raises QueueFullError if that does not make enough room.
        """
        displaced = self._displaced(task)
        if not task.num_waiting:
            return displaced
        self._clients.setdefault(task.client, {})[task] = None
        self._count(task.client, task.num_waiting)
        return displaced

    def take(self, task: Task) -> None:
        """One image of the task does not wait any more."""
        task.num_waiting -= 1
        self._count(task.client, -1)
        if not task.num_waiting:
            self._forget(task)

    def leave(self, task: Task) -> None:
        """None of the task's images waits any more."""
        if task.num_waiting:
            self._count(task.client, -task.num_waiting)
            task.num_waiting = 0
            self._forget(task)

    def _displaced(self, task: Task) -> list[Task]:
        if self._max_images is None:
            return []
        num_over = self.num_images + task.num_waiting - self._max_images
        found: list[Task] = []
        if num_over <= 0:
            return found
        others = {client: share for client, share in self._shares.items() if client != task.client}
        own = self._shares.get(task.client, 0) + task.num_waiting
        while num_over > 0:
            client = max(others, key=others.__getitem__, default=None)
            if client is None or own >= others[client]:
                raise QueueFullError(
                    f"the queue is full: {self.num_images:,} images wait, the limit is {self._max_images:,}, "
                    f"{task.num_waiting:,} more were submitted",
                    hint="Try again later.",
                )
            newest = next(
                (each for each in reversed(self._clients[client]) if not each.has_begun and each not in found), None
            )
            if newest is None:
                del others[client]
                continue
            found.append(newest)
            others[client] -= newest.num_waiting
            num_over -= newest.num_waiting
        return found

    def _count(self, client: str, number: int) -> None:
        self.num_images += number
        share = self._shares.get(client, 0) + number
        if share:
            self._shares[client] = share
        else:
            self._shares.pop(client, None)

    def _forget(self, task: Task) -> None:
        tasks = self._clients[task.client]
        del tasks[task]
        if not tasks:
            del self._clients[task.client]
