"""Progress of `export_model` and `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.core.errors import DeviceError
from alexdeploy.core.events import Notice, Status
from alexdeploy.export.drop import Drop


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Ranges are measured on `num_done` of `num_total` images."""

    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True)
class MixtureMeasured:
    """`num_done` of about `num_expected` graphs are measured; about `seconds_left` remain.

    The last one has the layers `fp32` in FP32 and loses `drop`.
    """

    num_done: int
    num_expected: int
    seconds_left: float
    fp32: tuple[str, ...]
    drop: Drop


@dataclass(frozen=True, kw_only=True)
class EngineBuildFailed:
    """A process that built a TensorRT engine was ended by a signal; others report their errors themselves."""

    error: DeviceError


Event = Status | Notice | Calibrated | MixtureMeasured | EngineBuildFailed
