"""Events that every room may send to its `on_event`; others are in the room's own `events.py`."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.core.errors import warn


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A warning: something that the user should know but that does not stop the work."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """The start of a step, or the result of the last one."""

    message: str


def warn_of_notices(event: object) -> None:
    """The default `on_event`: issue an AlexDeployWarning for a Notice, and ignore other events."""
    if isinstance(event, Notice):
        warn(event.message)
