"""Machines with GPUs that are not there, and engine files that could run on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from made_engines import KEY, make_engine

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.engines.trt.choose import engine_requirements
from alexdeploy.placement.devices import Device, GpuSurvey

TENSORRT = KEY.version
NAMES = {(9, 0): "NVIDIA H100", (8, 0): "NVIDIA A100", (8, 9): "NVIDIA GeForce RTX 4090"}
RTX: dict[str, Any] = {
    "backend": "tensorrt-rtx",
    "version": "1.7.1.116",
    "compute_capabilities": ((8, 6), (8, 9), (12, 0)),
    "cuda": "",
}
"""What makes an engine one of TensorRT-RTX, for RTX 30, 40 and 50."""


def machine(*capabilities: tuple[int, int]) -> GpuSurvey:
    """GPUs of these compute capabilities, each with 80 GB, and a driver that runs CUDA 13.0."""
    gpus = (
        Device(
            kind="cuda",
            index=index,
            uuid=f"GPU-{index}",
            name=NAMES[capability],
            compute_capability=capability,
            free_bytes=80_000_000_000,
            total_bytes=85_000_000_000,
            driver="580.65.06",
        )
        for index, capability in enumerate(capabilities)
    )
    return GpuSurvey(devices=tuple(gpus), driver="580.65.06", cuda_version=(13, 0))


JETSON = "54d0709b-558d-5a59-9f4c-0123456789ab"
"""A GPU's UUID as NVML gives it on an Orin: no GPU- before it."""


def jetson() -> GpuSurvey:
    """An Orin, which does not tell its memory."""
    orin = Device(kind="cuda", index=0, uuid=JETSON, name="Orin (nvgpu)", compute_capability=(8, 7), driver="540.4.0")
    return GpuSurvey(devices=(orin,), driver="540.4.0", cuda_version=(13, 0))


def put_engine(
    folder: ModelFolder,
    *,
    capability: tuple[int, int] = (9, 0),
    precision: Precision = "fp16",
    num_views: NumViews = 10,
    max_batch: int = 32,
    **changes: object,
) -> Path:
    """A file in the place of an engine of the model as it is, signed by this installation; `changes` to its key."""
    wanted = engine_requirements(
        folder,
        precision=precision,
        num_views=num_views,
        batch_size=max_batch,
        version=TENSORRT,
        compute_capability=capability,
        cuda="13.0",
    )
    fields = {field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted)}
    del fields["batch_size"]
    fields["compute_capabilities"] = (fields.pop("compute_capability"),)
    return make_engine(folder, **{**fields, "profile": (1, max_batch, max_batch), **changes})
