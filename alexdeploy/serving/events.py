"""Events of a repository of served models, for the log of the server."""

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
