"""Which engine files TensorRT and TensorRT-RTX can run on which GPU, according to their sidecars. Imports neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import backend_version
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import EngineBackend, NumViews
from alexdeploy.engines.trt.choose import (
    EngineRequirements,
    build_command,
    choose_engine,
    differences_from,
    engine_requirements,
    fitting_engines,
)
from alexdeploy.engines.trt.files import DEFAULT_MAX_BATCH, EngineRecord, load_engine, read_record
from alexdeploy.placement.devices import Device, GpuSurvey
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.plan import NoEngine


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFile:
    """An engine file and the GPUs here that can run it; if there are none, the reason for the closest GPU."""

    path: Path
    devices: tuple[Device, ...] = ()
    reasons: tuple[str, ...] = ()


def local_engines(
    folder: ModelFolder,
    survey: GpuSurvey,
    options: PredictOptions,
    backend: EngineBackend = "tensorrt",
) -> dict[tuple[int, int], int | NoEngine]:
    """For each compute capability here: the largest batch of an engine that can run there, or why there is none.

    Engines are ranked as in `open_engine`; "auto" takes the largest batch of the best rank. For several GPUs of one
    capability, it is the smallest of their batches. An engine that fits but is not trusted counts as none; the hint
    says how to trust it.
    """
    gpus: dict[tuple[int, int], dict[str, Device]] = {}
    for gpu in survey.devices:
        if gpu.compute_capability is not None:
            gpus.setdefault(gpu.compute_capability, {}).setdefault(gpu.name, gpu)
    try:
        required = _required(folder, survey, backend, options.precision, options.num_views)
    except AlexDeployError as exc:
        return dict.fromkeys(gpus, NoEngine(reason=exc.message, hint=exc.hint or "See: alexdeploy inspect"))
    is_auto = options.batch_size == "auto"
    if options.batch_size != "auto":
        required = replace(required, batch_size=options.batch_size)
    found: dict[tuple[int, int], int | NoEngine] = {}
    for capability, by_name in gpus.items():
        here = replace(required, compute_capability=capability)
        engines = [_engine_for(folder, here, gpu, is_auto=is_auto) for gpu in by_name.values()]
        without = [each for each in engines if isinstance(each, NoEngine)]
        found[capability] = without[0] if without else min(each for each in engines if not isinstance(each, NoEngine))
    return found


def _engine_for(folder: ModelFolder, required: EngineRequirements, gpu: Device, *, is_auto: bool) -> int | NoEngine:
    fitting: list[tuple[Path, EngineRecord]] = []
    try:
        fitting = fitting_engines(folder, required, gpu=gpu.name, is_largest_first=is_auto)
        # If none fits, this raises an error that says how the nearest differs.
        path = fitting[0][0] if fitting else choose_engine(folder, required)
        return load_engine(path)[0].profile[2]
    except AlexDeployError as exc:
        most = max(required.batch_size, DEFAULT_MAX_BATCH)
        build = build_command(folder, replace(required, batch_size=most), str(gpu))
        hint = exc.hint if fitting else f"Build one there: {build}"
        return NoEngine(reason=exc.message, hint=hint or f"Build it again: {build}")


def match_engines(folder: ModelFolder, survey: GpuSurvey) -> Iterator[EngineFile]:
    """The engine files of the model, sorted by name. Reads and hashes the model's files and the engines that fit."""
    required: dict[tuple[EngineBackend, Precision], EngineRequirements | AlexDeployError] = {}
    for path in sorted(folder.engines.glob("*.engine")):
        try:
            record = read_record(path)
            kind = (record.backend, record.precision)
            if kind not in required:
                required[kind] = _required_or_why_not(folder, survey, *kind)
            found = required[kind]
            if isinstance(found, AlexDeployError):
                raise found
            yield _match(path, record, replace(found, num_views=record.num_views), survey.devices)
        except AlexDeployError as exc:
            yield EngineFile(path=path, reasons=(_without(path, exc),))


def _match(path: Path, record: EngineRecord, required: EngineRequirements, gpus: tuple[Device, ...]) -> EngineFile:
    differences = {
        gpu: differences_from(record, replace(required, compute_capability=gpu.compute_capability or (0, 0)))
        for gpu in gpus
    }
    fitting = tuple(gpu for gpu in gpus if not differences[gpu])
    if not fitting:
        return EngineFile(path=path, reasons=min(differences.values(), key=len, default=()))
    try:
        load_engine(path)
    except AlexDeployError as exc:
        return EngineFile(path=path, reasons=(f"it is not trusted here; it {_without(path, exc)}",))
    return EngineFile(path=path, devices=fitting)


def _required_or_why_not(
    folder: ModelFolder, survey: GpuSurvey, backend: EngineBackend, precision: Precision
) -> EngineRequirements | AlexDeployError:
    try:
        return _required(folder, survey, backend, precision, 1)
    except AlexDeployError as exc:
        return exc


def _required(
    folder: ModelFolder, survey: GpuSurvey, backend: EngineBackend, precision: Precision, num_views: NumViews
) -> EngineRequirements:
    """Requirements for an engine on this machine; the caller sets the compute capability of each GPU."""
    return engine_requirements(
        folder,
        precision=precision,
        num_views=num_views,
        batch_size=1,
        backend=backend,
        version=backend_version(backend),
        compute_capability=(0, 0),
        cuda="none" if survey.cuda_version is None else ".".join(map(str, survey.cuda_version)),
    )


def _without(path: Path, error: AlexDeployError) -> str:
    return error.message.removeprefix(f"{path} ")
