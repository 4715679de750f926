"""Files in the place of TensorRT engines, signed by this installation: none of what looks after them reads a plan."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.trt.files import EngineKey, EngineRecord, engine_path, write_engine

GPU = "NVIDIA H100 80GB HBM3"
PLAN = bytes(range(256)) * 40
KEY = EngineKey(
    graph_sha256="a" * 64,
    weights_sha256="f" * 64,
    contract_sha256="b" * 64,
    precision="fp16",
    num_views=10,
    profile=(1, 32, 32),
    version="10.16.1.11",
    compute_capabilities=((9, 0),),
    cuda="13.0",
    builder={"workspace_bytes": 0, "tactic_sources": ""},
)


def make_record(key: EngineKey = KEY) -> EngineRecord:
    return EngineRecord(
        **{field.name: getattr(key, field.name) for field in dataclasses.fields(EngineKey)},
        key=key.sha256,
        gpu=GPU,
        engine_sha256="",
        engine_bytes=0,
        built_at="2026-01-01T00:00:00+00:00",
        build_seconds=1.5,
        alexdeploy="0.1.0",
    )


def make_engine(folder: ModelFolder, plan: bytes = PLAN, **changes: object) -> Path:
    """An engine of `KEY` with these parts changed, where it belongs."""
    key = dataclasses.replace(KEY, **changes)  # type: ignore[arg-type]
    path = engine_path(folder, key, GPU)
    write_engine(path, plan, make_record(key))
    return path
