"""Progress of `export_model` and `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.core.errors import DeviceError
from alexdeploy.core.events import Notice, Status
from alexdeploy.export.quantize.sensitivity import MixtureMeasured


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Ranges are measured on `num_done` of `num_total` images."""

    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True)
class EngineBuildFailed:
    """A process that built a TensorRT engine was ended by a signal; others report their errors themselves."""

    error: DeviceError


Event = Status | Notice | Calibrated | MixtureMeasured | EngineBuildFailed


def ignore(event: Event) -> None:
    """For whoever does not watch."""
