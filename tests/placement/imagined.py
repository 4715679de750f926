"""Machines with GPUs that are not there, and engine files that could run on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.engines.engine_files import EngineKey, EngineRecord, engine_path, wanted_engine, write_engine
from alexdeploy.placement.devices import Device, GpuSurvey

TENSORRT = "10.16.1.11"
NAMES = {(9, 0): "NVIDIA H100", (8, 0): "NVIDIA A100"}


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
    wanted = wanted_engine(
        folder,
        precision=precision,
        num_views=num_views,
        batch_size=max_batch,
        tensorrt=TENSORRT,
        compute_capability=capability,
        cuda="13.0",
    )
    fields = {field.name: getattr(wanted, field.name) for field in dataclasses.fields(wanted)}
    del fields["batch_size"]
    fields |= {"profile": (1, max_batch, max_batch), "builder": {}, **changes}
    key = EngineKey(**fields)
    path = engine_path(folder, key, NAMES[capability])
    record = EngineRecord(
        **fields,
        key=key.sha256,
        gpu=NAMES[capability],
        engine_sha256="",
        engine_bytes=0,
        built_at="2026-01-01T00:00:00+00:00",
        build_seconds=1.0,
        alexdeploy="0.1.0",
    )
    write_engine(path, b"a plan", record)
    return path
