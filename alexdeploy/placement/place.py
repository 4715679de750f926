"""The engine for what was asked: one on the CPU as it is, everything else as replicas or stages on their devices."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import UsageError
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import (
    Backend,
    Engine,
    EngineOptions,
    NumViews,
    can_run,
    choose_backend,
    is_installed,
    open_engine,
)
from alexdeploy.engines.engine_files import find_engines
from alexdeploy.export.split import Placement
from alexdeploy.network.layers import plan_layers
from alexdeploy.placement.devices import Device, cpu_device, find_devices, survey_gpus
from alexdeploy.placement.plan import CPU_BATCH_SIZE, Demand, Plan, plan_replicas
from alexdeploy.placement.pool import Pool
from alexdeploy.placement.replica import PoolOptions

_VIEW_BYTES = 8_000_000
"""Activations of a view where the architecture is unknown; those of the 2012 network take 5 MB in float32."""

_LIBRARY_BYTES = 600_000_000
"""What CUDA's context and its libraries take on a GPU beside weights and activations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asked for. `devices` None: the GPUs if there are any that can run it, else the CPU.

    `placement` None: replicas, each of which has the whole network.
    """

    precision: Precision = "fp32"
    num_views: NumViews = 1
    batch_size: int | Literal["auto"] = CPU_BATCH_SIZE
    num_threads: int | None = None
    backend: Backend | None = None
    devices: str | None = None
    replicas_per_device: int = 1
    placement: Placement | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """An engine that is not yet open, and what a user should know of the choice."""

    engine: Engine
    notes: tuple[str, ...] = ()


def place(folder: ModelFolder, request: Request) -> Placed:
    """Choose devices, backends and batches. Raises UsageError, ModelError and DeviceError."""
    if request.backend is not None and not can_run(request.backend, request.precision):
        able = [backend for backend in get_args(Backend) if can_run(backend, request.precision)]
        raise UsageError(
            f"{request.backend} does not run {request.precision}", cure=f"Use --backend {' or '.join(able)}."
        )
    survey = survey_gpus()
    devices = (cpu_device(), *survey.devices)
    named = None if request.devices is None else find_devices(request.devices, devices, survey.problem)
    if request.placement is not None:
        return _split(folder, request, named, survey.devices)
    plan = plan_replicas(devices, _demand(folder, request, named, survey.devices))
    left_out = (f"{each.device} is left out: {each.reason}. {each.cure}" for each in plan.left_out)
    return Placed(
        engine=_engine(folder, request, plan),
        notes=(*survey.notes, *left_out),
    )


def _engine(folder: ModelFolder, request: Request, plan: Plan) -> Engine:
    only = plan.replicas[0]
    if len(plan.replicas) == 1 and only.device.kind == "cpu":
        options = EngineOptions(
            precision=request.precision,
            num_views=request.num_views,
            batch_size=only.batch_size,
            num_threads=only.num_threads,
        )
        return open_engine(folder, only.backend, options)
    return Pool(
        folder,
        plan.replicas,
        PoolOptions(precision=request.precision, num_views=request.num_views),
    )


def _demand(folder: ModelFolder, request: Request, named: tuple[Device, ...] | None, gpus: Sequence[Device]) -> Demand:
    spec = folder.spec()
    batches = _engine_batches(folder, request) if gpus else ()
    # The best of those that have what they read: for the CPU it is one, and its own error says what is missing.
    on_cpu = (choose_backend(folder, request.precision) if request.backend is None else request.backend,)
    return Demand(
        precision=request.precision,
        num_views=request.num_views,
        batch_size=request.batch_size,
        replicas_per_device=request.replicas_per_device,
        named=named,
        backend=request.backend,
        available={"cpu": on_cpu, "cuda": _gpu_backends(batches, request) if gpus else ()},
        most_images={"tensorrt": max(batches)} if batches else {},
        num_processors=request.num_threads or available_processors(),
        fixed_bytes=_LIBRARY_BYTES + 2 * _weight_bytes(folder, request.precision),
        image_bytes=request.num_views * _view_bytes(spec),
    )


def _engine_batches(folder: ModelFolder, request: Request) -> tuple[int, ...]:
    """The largest batch of each engine that was built for this; what exactly fits, it says itself when it opens."""
    return tuple(
        record.profile[2]
        for _, record in find_engines(folder)
        if (record.precision, record.num_views) == (request.precision, request.num_views)
    )


def _gpu_backends(batches: Sequence[int], request: Request) -> tuple[Backend, ...]:
    """TensorRT counts where there is an engine, or where it was asked for by name."""
    wants_it = bool(batches) or request.backend == "tensorrt"
    backends: list[Backend] = ["tensorrt"] if is_installed("tensorrt") and wants_it else []
    return (*backends, "onnxruntime") if _has_cuda_provider() else tuple(backends)


def _has_cuda_provider() -> bool:
    """Whether ONNX Runtime is the build for GPUs; that it works there, it says itself when it opens."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _weight_bytes(folder: ModelFolder, precision: Precision) -> int:
    for name in (precision, "fp32"):
        path = folder.onnx_path(name)
        if path.is_file():
            return path.stat().st_size
    return folder.weights_path.stat().st_size if folder.weights_path.is_file() else 0


def _view_bytes(spec: ModelSpec) -> int:
    """Inputs and outputs of all layers in float32: runtimes share memory between them, so it is an upper bound."""
    if spec.architecture is None:
        return _VIEW_BYTES
    total = 0
    for layer in plan_layers(spec.architecture, spec.num_classes):
        size = 4
        for side in layer.output_shape:
            size *= side
        total += size
    return total + 4 * 3 * spec.preprocessing.crop**2


def _split(folder: ModelFolder, request: Request, named: tuple[Device, ...] | None, gpus: Sequence[Device]) -> Placed:
    from alexdeploy.placement.towers import open_split_engine

    if request.backend not in (None, "onnxruntime"):
        raise UsageError(f"--placement runs in ONNX Runtime, not in {request.backend}", cure="Leave out --backend.")
    devices = named or tuple(gpus[:2] if len(gpus) > 1 else (cpu_device(), cpu_device()))
    if len(devices) != 2 or request.replicas_per_device != 1:
        raise UsageError(
            f"--placement {request.placement} takes two devices, found {len(devices)}",
            cure="Name them: --devices 0,1 or --devices cpu,cpu",
        )
    batch_size = CPU_BATCH_SIZE if request.batch_size == "auto" else request.batch_size
    options = EngineOptions(
        precision=request.precision,
        num_views=request.num_views,
        batch_size=batch_size,
        num_threads=request.num_threads,
    )
    engine = open_split_engine(folder, request.placement or "pipeline", (devices[0], devices[1]), options)
    return Placed(engine=engine)
