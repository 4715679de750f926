"""Builds engines: the deployment graph in, a plan and its signed sidecar out.

TensorRT builds in the context of a GPU, which takes pycuda; TensorRT-RTX on any machine that it is installed on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, OutputError, UsageError, first_line
from alexdeploy.core.files import atomic_write
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import MAX_DATA_BYTES, read_regular
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.core.version import __version__
from alexdeploy.engines.trt.files import (
    BuildOptions,
    EngineKey,
    EngineRecord,
    check_can_write,
    engine_path,
    find_engines,
    key_differences,
    load_engine,
    sm,
    timing_cache_path,
    write_engine,
)
from alexdeploy.engines.trt.inspector import check_half
from alexdeploy.engines.trt.library import Library, load_library
from alexdeploy.engines.trt.network import allow_precision, read_network
from alexdeploy.engines.trt.target import Target, find_target
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.tensorrt import DERIVATION, engine_graph, opset_for

if TYPE_CHECKING:
    import tensorrt as trt

OnProgress = Callable[[str, int, int], None]
"""Called with a phase of the build, its completed steps, and its number of steps (0 if unknown)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """An engine that was built, or already existed. `notes` say why existing engines do not fit."""

    path: Path
    record: EngineRecord
    reused: bool
    notes: tuple[str, ...] = ()


def build_engine(
    folder: ModelFolder,
    options: BuildOptions,
    on_progress: OnProgress = lambda phase, done, total: None,
) -> BuiltEngine:
    """Build the engine of a model, or return the existing one.

    Raises UsageError for an invalid profile, tactic source or compute capability, ModelError for a graph that the
    library cannot read or build, DeviceMemoryError if memory runs out, and for TensorRT DeviceError without a GPU.
    `on_progress` may be called from another thread; an interrupt ends the build at its next step (from TensorRT 10 on).
    """
    if options.precision == "bf16":
        raise UsageError("engines are not built in bf16", hint="Build another precision: fp32, fp16 or int8.")
    library = load_library(options.backend)
    spec = folder.spec()
    tactics = _tactic_sources(library, options.tactic_sources)
    target = find_target(library, options)
    graph = load_graph(folder, options.precision, spec)
    opset = opset_for(library.interface[0])
    key = EngineKey(
        graph_sha256=graph.sha256,
        weights_sha256=graph.network_sha256,
        contract_sha256=spec.contract_sha256,
        precision=options.precision,
        num_views=options.num_views,
        profile=options.profile,
        backend=library.backend,
        version=library.version,
        compute_capabilities=target.compute_capabilities,
        cuda=target.cuda,
        builder={
            "workspace_bytes": options.workspace_bytes or 0,
            "tactic_sources": ",".join(sorted(options.tactic_sources or ())),
            "typing": "strong" if library.is_strongly_typed else "weak by the graph",
            "opset": opset,
            "derivation": DERIVATION,
            "preview": "PROFILE_SHARING_0806" if library.interface < (10, 0) else "",
        },
    )
    path = engine_path(folder, key, target.name)
    if path.is_file():
        found, why = _reusable(path, key)
        if found is not None:
            return BuiltEngine(path=path, record=found, reused=True)
        notes: tuple[str, ...] = (f"{path} is built again: {why}",)
    else:
        notes = _others(folder, key)
    check_can_write(path)
    model = engine_graph(graph.model, spec, options.num_views, folder.mean_image(spec), opset)
    content: bytes = model.SerializeToString()
    del model
    job = _Job(
        library=library,
        content=content,
        target=target,
        key=key,
        workspace_bytes=options.workspace_bytes,
        tactics=tactics,
    )
    stop = threading.Event()
    began = time.monotonic()
    plan = target.run(lambda: _build(job, on_progress, stop), stop.set)
    if target.index is not None:
        # Do not write a plan that cannot be opened.
        target.run(lambda: _check_plan(library, plan, path, options.precision))
    record = EngineRecord(
        **{field.name: getattr(key, field.name) for field in fields(EngineKey)},
        key=key.sha256,
        gpu=target.name,
        engine_sha256="",
        engine_bytes=0,
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(time.monotonic() - began, 3),
        alexdeploy=__version__,
    )
    return BuiltEngine(path=path, record=write_engine(path, plan, record), reused=False, notes=notes)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """Inputs of a build. `content` is the serialized graph; `tactics` a mask of tactic sources, None for all."""

    library: Library
    content: bytes
    target: Target
    key: EngineKey
    workspace_bytes: int | None
    tactics: int | None


def _reusable(path: Path, key: EngineKey) -> tuple[EngineRecord | None, str]:
    """The record of the existing engine if it fits, else None and the reason."""
    try:
        record, _ = load_engine(path)
    except ModelError as exc:
        return None, exc.message
    differences = key_differences(record, key)
    return (None, "; ".join(differences)) if differences else (record, "")


def _others(folder: ModelFolder, key: EngineKey) -> tuple[str, ...]:
    """For each engine of the same precision and views, the part of the key in which it differs."""
    return tuple(
        f"{path} does not fit: {'; '.join(key_differences(record, key))}"
        for path, record in find_engines(folder)
        if (record.backend, record.precision, record.num_views) == (key.backend, key.precision, key.num_views)
    )


def _tactic_sources(library: Library, names: tuple[str, ...] | None) -> int | None:
    """A bit mask for the builder. Raises UsageError for a source that the library does not have."""
    if names is None:
        return None
    known = {name: int(source) for name, source in library.api.TacticSource.__members__.items()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"{library} does not know the tactic sources {', '.join(unknown)}",
            hint=f"Tactic sources: {', '.join(sorted(known))}",
        )
    return sum(1 << known[name] for name in set(names))


def _build(job: _Job, on_progress: OnProgress, stop: threading.Event) -> bytes:
    library = job.library
    library.take_log()
    try:
        builder: trt.Builder = library.api.Builder(library.log)
    except TypeError as exc:
        raise DeviceError(f"{library} cannot use the GPU: {first_line(exc)}") from exc
    on_progress("reading the graph", 0, 0)
    network = read_network(library, builder, job.content)
    config = _configure(builder, network, job)
    cache_path = _use_timing_cache(config, job)
    # Keep a reference: the builder calls it until the build ends.
    monitor = _watch(library, config, on_progress, stop)
    on_progress("building the engine", 0, 0)
    plan: trt.IHostMemory = builder.build_serialized_network(network, config)
    del monitor
    if plan is None:
        if stop.is_set():
            raise DeviceError("the build was interrupted")
        raise _build_error(library, job.key.profile)
    _keep_timing_cache(config, cache_path)
    return bytes(plan)


def _configure(builder: trt.Builder, network: trt.INetworkDefinition, job: _Job) -> trt.IBuilderConfig:
    library, api = job.library, job.library.api
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.clear_flag(api.BuilderFlag.TF32)
    # The inspector can then report kernels and formats. It does not slow inference.
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED
    if library.interface < (10, 0):
        # The contexts of all streams share the one profile; from TensorRT 10 on this is always allowed.
        config.set_preview_feature(api.PreviewFeature.PROFILE_SHARING_0806, True)
    if job.workspace_bytes is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    if job.tactics is not None and not config.set_tactic_sources(job.tactics):
        raise UsageError(f"{library.name} rejected the tactic sources {job.key.builder['tactic_sources']}")
    if not library.is_strongly_typed:
        allow_precision(library, network, config, job.key.precision, job.content)
    if not library.needs_gpu:
        _set_capabilities(library, config, job.target.compute_capabilities)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    sizes = [(count, IMAGE_SIZE, IMAGE_SIZE, 3) for count in job.key.profile]
    try:
        profile.set_shape("images", *sizes)
        index = config.add_optimization_profile(profile)
    except (ValueError, RuntimeError) as exc:
        raise _profile_error(library, job.key.profile, first_line(exc)) from exc
    if index < 0:
        raise _profile_error(library, job.key.profile, library.take_log())
    return config


def _set_capabilities(library: Library, config: trt.IBuilderConfig, capabilities: tuple[tuple[int, int], ...]) -> None:
    known = library.known_capabilities()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(known[capability], index):
            raise library.refused(f"{library} rejected {sm(capability)}")


def _profile_error(library: Library, profile: tuple[int, int, int], said: str) -> UsageError:
    least, best, most = profile
    return UsageError(
        f"{library.name} rejected a profile of {least} to {most} images, best {best}: {said or 'no reason given'}",
        hint="Use another --max-batch.",
    )


def _watch(library: Library, config: trt.IBuilderConfig, on_progress: OnProgress, stop: threading.Event) -> object:
    """Report the builder's steps, if it supports a monitor, and end the build when `stop` is set."""
    if library.interface < (10, 0):
        return None
    api = library.api

    class Monitor(api.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._totals[phase_name] = num_steps
            on_progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            on_progress(phase_name, step + 1, self._totals.get(phase_name, 0))
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            total = self._totals.pop(phase_name, 0)
            on_progress(phase_name, total, total)

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


def _use_timing_cache(config: trt.IBuilderConfig, job: _Job) -> Path | None:
    """Load the timing cache for this kind of GPU and version into the builder; return its path."""
    if job.target.index is None:
        # Nothing is timed without a GPU.
        return None
    (capability,) = job.target.compute_capabilities
    path = timing_cache_path(job.target.name, capability, job.library.version, job.target.cuda)
    if path is None:
        return None
    content = b""
    with suppress(OSError):
        content = read_regular(path, MAX_DATA_BYTES)
    cache: trt.ITimingCache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        # Damaged or from another GPU: start with an empty cache.
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
        job.library.take_log()
    return path


def _keep_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    cache: trt.ITimingCache = config.get_timing_cache()
    # Optional: it only speeds up the next build.
    with suppress(OutputError), atomic_write(path) as file:
        file.write(bytes(cache.serialize()))


def _build_error(library: Library, profile: tuple[int, int, int]) -> DeviceError | ModelError | UsageError:
    where = " on the GPU" if library.needs_gpu else ""
    error = library.refused(
        f"{library} could not build the engine",
        f"Use a smaller --max-batch or --workspace, or free memory{where}.",
    )
    if isinstance(error, DeviceMemoryError):
        return error
    text = error.message
    if "violate shape constraints" in text:
        reason = text.partition("violate shape constraints: ")[2].partition(" Condition")[0]
        return _profile_error(library, profile, reason)
    if "for Turing (SM75)" in text:
        return ModelError(text, hint="For RTX 20 (sm75), build --fp16; leave sm75 out of --for in other precisions.")
    if "insufficient workspace" in text.lower():
        return DeviceMemoryError(text, hint="Increase it: --workspace")
    if "could not find any implementation" in text.lower():
        return ModelError(text, hint="Allow more --tactic-sources, or build another precision.")
    return ModelError(text)


def _check_plan(library: Library, plan: bytes, path: Path, precision: str) -> None:
    """Raise ModelError or DeviceError unless the plan can be opened, with a context for each stream at once.

    A weakly typed FP16 engine must also compute in FP16.
    """
    from alexdeploy.engines.trt.stream import check_contexts

    engine: trt.ICudaEngine = library.open_plan(plan, path)
    if engine.num_io_tensors != 3 or math.prod(engine.get_tensor_shape("images")[1:]) != IMAGE_SIZE * IMAGE_SIZE * 3:
        raise ModelError(f"the engine of {path.name} has {engine.num_io_tensors} inputs and outputs, expected 3")
    if precision == "fp16" and not library.is_strongly_typed:
        check_half(library.layer_information(engine), path)
    check_contexts(library, engine)
