"""Events of a server and of its models, for its log."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.engines.base import EngineInfo


@dataclass(frozen=True, kw_only=True)
class ModelLoaded:
    """The model answers from now on. `replaced` is the artifact that answered before, None if there was none."""

    name: str
    info: EngineInfo
    seconds: float
    replaced: str | None


@dataclass(frozen=True, kw_only=True)
class ModelRefused:
    """The model could not be loaded. `is_served`: what was loaded before goes on answering."""

    name: str
    error: Exception
    is_served: bool


@dataclass(frozen=True, kw_only=True)
class ModelFailed:
    """The model does not answer any more, as its engine is lost; it will be opened again."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ModelUnloaded:
    """The model does not answer any more: it was unloaded on request."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ServerStopping:
    """The server accepts nothing more. `num_requests` have no answer yet, which they get within `seconds`."""

    num_requests: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ServerStopped:
    """The server has ended. `all_answered`: every request that was accepted has its answer."""

    all_answered: bool
