"""Choose the engine for the given options: one engine on the CPU in this process, else replicas or stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import package_version
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Placement
from alexdeploy.engines.base import (
    ENGINE_BACKENDS,
    Backend,
    Engine,
    EngineBackend,
    EngineOptions,
    can_run,
    check_installed,
    check_uncut,
    choose_backend,
    is_installed,
    open_engine,
    unfit_backends,
)
from alexdeploy.engines.trt.files import NAMES
from alexdeploy.graphs.freshness import newer_weights
from alexdeploy.placement.devices import Device, GpuSurvey, cpu_device, find_devices, survey_gpus
from alexdeploy.placement.memory import check_free_memory, view_bytes, weight_bytes
from alexdeploy.placement.options import BATCH_SIZE, DeviceOptions, PredictOptions
from alexdeploy.placement.plan import GPU_BACKENDS, Demand, NoEngine, Plan, plan_replicas, supports

if TYPE_CHECKING:
    from alexdeploy.placement.pool import Pool

_LIBRARY_BYTES = 600_000_000
"""GPU memory of the CUDA context and libraries, in addition to weights and activations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """An engine that is not yet open, and notes for the user about the choice. `pool` is the engine if it is a Pool."""

    engine: Engine
    pool: Pool | None = None
    notes: tuple[str, ...] = ()

    def cancel(self) -> None:
        """Make running calls of `run` raise DeviceError, if the engine supports it."""
        if self.pool is not None:
            self.pool.cancel()


def place(folder: ModelFolder, options: PredictOptions, layer: str | None = None) -> Placed:
    """Choose devices, backends and batches. Raises UsageError, ModelError, DeviceError and DeviceMemoryError.

    With a `layer`, the engine gives its features instead of probabilities.
    """
    check_uncut(options.backend, layer)
    if options.backend is not None and not can_run(options.backend, options.precision):
        able = [backend for backend in get_args(Backend) if can_run(backend, options.precision)]
        raise UsageError(
            f"{options.backend} does not run {options.precision}", hint=f"Use --backend {' or '.join(able)}."
        )
    survey = survey_gpus()
    named = _named_devices(options, survey)
    if options.placement is not None:
        return _split(folder, options, named, survey)
    is_open = options.devices is None or options.devices.strip().lower() == "all"
    if options.backend in ENGINE_BACKENDS and not survey.devices and is_open:
        check_installed(options.backend)
        name = NAMES[options.backend]
        raise DeviceError(f"{name} needs an NVIDIA GPU, and none was found: {survey.problem}", hint=survey.hint)
    plan = plan_replicas((cpu_device(), *survey.devices), _demand(folder, options, named, survey, layer))
    notes = (*_notes(options, survey, plan), *_unfit(folder, options), *_newer(folder))
    replicas = [replace(each, options=replace(each.options, layer=layer)) for each in plan.replicas]
    first = replicas[0]
    if all(each.device.kind == "cpu" for each in replicas):
        check_free_memory(folder, replace(options, backend=first.backend))
    if len(replicas) == 1 and first.device.kind == "cpu":
        return Placed(engine=open_engine(folder, first.backend, first.options), notes=notes)
    # Imported here because most runs have one engine, in this process.
    from alexdeploy.placement.pool import Pool

    pool = Pool(folder, replicas)
    return Placed(engine=pool, pool=pool, notes=notes)


def check_devices(options: DeviceOptions) -> None:
    """Raise UsageError unless the devices exist, DeviceError for "all" if the driver does not work."""
    _named_devices(options, survey_gpus())


def devices_for(backend: Backend, options: DeviceOptions) -> str | None:
    """The named devices of a kind that the backend supports; all of them if there is none, so that `place` says why."""
    named = _named_devices(options, survey_gpus()) or ()
    return ",".join(str(device) for device in named if supports(backend, device)) or options.devices


def _named_devices(options: DeviceOptions, survey: GpuSurvey) -> tuple[Device, ...] | None:
    if options.devices is None:
        return None
    devices = (cpu_device(), *survey.devices)
    return find_devices(options.devices, devices, survey.problem, is_fault=survey.is_fault)


def _notes(options: PredictOptions, survey: GpuSurvey, plan: Plan) -> tuple[str, ...]:
    """Notes for a user who did not set the backend and devices."""
    if not _may_use_gpu(options, [each.device for each in plan.replicas]):
        return ()
    left_out = [f"{each.device} is skipped: {each.reason}. {each.hint}" for each in plan.left_out]
    slower = [
        f"{each.device} runs {replica.backend} instead of {NAMES[each.backend]}: {each.reason}. {each.hint}"
        for each in plan.without_engine
        if each.backend is not None
        for replica in [replica for replica in plan.replicas if replica.device == each.device][:1]
    ]
    return (*_fault(survey), *survey.notes, *left_out, *slower)


def _unfit(folder: ModelFolder, options: PredictOptions) -> tuple[str, ...]:
    """Notes on backends that do not give this model's answers: skipped, or requested all the same."""
    unfit = unfit_backends(folder, options.precision)
    if options.backend is not None:
        problem = unfit.get(options.backend)
        return (
            ()
            if problem is None
            else (f"{options.backend} was requested, but failed the check of this model: it {problem}",)
        )
    return tuple(f"{backend} is not used for this model: it {problem}" for backend, problem in unfit.items())


def _newer(folder: ModelFolder) -> tuple[str, ...]:
    note = newer_weights(folder)
    return () if note is None else (note,)


def _may_use_gpu(options: PredictOptions, used: Sequence[Device]) -> bool:
    is_open = options.devices is None and (options.backend is None or options.backend in GPU_BACKENDS)
    return is_open or any(device.kind == "cuda" for device in used)


def _fault(survey: GpuSurvey) -> tuple[str, ...]:
    """The note for a driver that does not work; none for a machine without a GPU."""
    if not survey.is_fault:
        return ()
    return (f"Using the CPU, since no GPU can be used: {survey.problem}. {survey.hint or 'Run: alexdeploy doctor'}",)


def _demand(
    folder: ModelFolder,
    options: PredictOptions,
    named: tuple[Device, ...] | None,
    survey: GpuSurvey,
    layer: str | None,
) -> Demand:
    may_use_gpu = bool(survey.devices) and (named is None or any(device.kind == "cuda" for device in named))
    on_gpu = _gpu_backends() if survey.devices else ()
    if layer is not None:
        on_gpu = tuple(backend for backend in on_gpu if backend not in ENGINE_BACKENDS)
    engines: dict[EngineBackend, dict[tuple[int, int], int | NoEngine]] = {}
    for backend in ENGINE_BACKENDS:
        is_asked = options.backend in (None, backend) and can_run(backend, options.precision)
        runs = any(supports(backend, gpu) for gpu in survey.devices)
        if backend in on_gpu and is_asked and runs and may_use_gpu:
            from alexdeploy.placement.engine_fit import local_engines

            engines[backend] = local_engines(folder, survey, options, backend)
    return Demand(
        options=options,
        named=named,
        available={"cpu": _cpu_backend(folder, options, is_needed=not (on_gpu and may_use_gpu)), "cuda": on_gpu},
        engines=engines,
        num_processors=options.num_threads or available_processors(),
        fixed_bytes=_LIBRARY_BYTES + 2 * weight_bytes(folder, options.precision),
        image_bytes=options.num_views * view_bytes(folder.spec()),
    )


def _cpu_backend(folder: ModelFolder, options: PredictOptions, *, is_needed: bool) -> tuple[Backend, ...]:
    """The best CPU backend for the model, as a tuple of one; its own error says if files are missing.

    Empty if none is installed and a GPU may run everything. Raises UsageError if it `is_needed`.
    """
    if options.backend is not None:
        return (options.backend,)
    try:
        return (choose_backend(folder, options.precision),)
    except UsageError:
        if is_needed:
            raise
        return ()


def _gpu_backends() -> tuple[Backend, ...]:
    """The installed backends for GPUs. Whether they work is known only when they are opened."""
    backends: list[Backend] = [backend for backend in ENGINE_BACKENDS if is_installed(backend)]
    return (*backends, "onnxruntime") if package_version("onnxruntime-gpu") else tuple(backends)


def _split(folder: ModelFolder, options: PredictOptions, named: tuple[Device, ...] | None, survey: GpuSurvey) -> Placed:
    from alexdeploy.placement.split_engine import open_split_engine

    assert options.placement is not None
    if options.backend not in (None, "onnxruntime"):
        raise UsageError(f"--placement runs in ONNX Runtime, not in {options.backend}", hint="Leave out --backend.")
    if options.replicas != 1:
        raise UsageError(
            f"--placement {options.placement} runs one network on two devices, and --replicas "
            f"{options.replicas} requests several on each",
            hint="Remove one of them.",
        )
    devices, notes = (named, ()) if named is not None else _two_devices(options.placement, survey)
    if len(devices) != 2:
        raise UsageError(
            f"--placement {options.placement} needs two devices, found {len(devices)}",
            hint="Set them: --devices 0,1 or --devices cpu,cpu",
        )
    engine_options = EngineOptions(
        precision=options.precision,
        num_views=options.num_views,
        batch_size=BATCH_SIZE if options.batch_size == "auto" else options.batch_size,
        num_threads=options.num_threads,
    )
    engine = open_split_engine(folder, options.placement, (devices[0], devices[1]), engine_options)
    return Placed(engine=engine, notes=(*notes, *_newer(folder)))


def _two_devices(placement: Placement, survey: GpuSurvey) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """The first two GPUs, or without GPUs the CPU twice, and a note that says so.

    Raises UsageError for one GPU: the user must choose whether it runs both parts, or the CPU runs one.
    """
    gpus = survey.devices if "onnxruntime" in _gpu_backends() else ()
    if len(gpus) == 1:
        raise UsageError(
            f"--placement {placement} needs two devices, found one GPU, {gpus[0]} ({gpus[0].name})",
            hint="Set them: --devices 0,cpu or --devices 0,0 or --devices cpu,cpu",
        )
    if gpus:
        return gpus[:2], (f"--placement {placement} uses {gpus[0]} and {gpus[1]}; --devices selects others",)
    why = "there is no GPU"
    if survey.devices:
        why = f"onnxruntime-gpu is not installed for {', '.join(map(str, survey.devices))}"
    cpus = f"--placement {placement} uses the CPU twice, with half of the threads each, since {why}"
    return (cpu_device(), cpu_device()), (*_fault(survey), cpus)
