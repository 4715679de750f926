"""Progress of `export_model` and `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.core.errors import DeviceError
from alexdeploy.core.events import Notice, Status
from alexdeploy.export.drop import Drop


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Ranges have been measured on `num_done` of `num_total` images."""

    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True)
class MixtureMeasured:
    """`num_done` of about `num_expected` graphs have been measured; about `seconds_left` remain.

    The latest one keeps the layers `fp32` in FP32 and loses `drop`.
    """

    num_done: int
    num_expected: int
    seconds_left: float
    fp32: tuple[str, ...]
    drop: Drop


@dataclass(frozen=True, kw_only=True)
class EngineBuildFailed:
    """A signal ended a process that was building a TensorRT engine. Other failures are reported by that process."""

    error: DeviceError


Event = Status | Notice | Calibrated | MixtureMeasured | EngineBuildFailed
