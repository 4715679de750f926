"""Events that every room may send to its `on_event`; others are in the room's own `events.py`."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.core.errors import warn


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A warning: something that does not stop the work and that somebody should know."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """A step that begins, or what the last one found."""

    message: str


def warn_of_notices(event: object) -> None:
    """The `on_event` of who passes none: a Notice is an AlexDeployWarning, all others are nothing."""
    if isinstance(event, Notice):
        warn(event.message)
