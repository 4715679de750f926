"""What of a model can run on this machine, and what machine it is."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import get_args

import alexdeploy
from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import AlexDeployError, UsageError
from alexdeploy.core.packages import package_version, tensorrt_version
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import Backend, NumViews, can_run, choose_backend, is_installed
from alexdeploy.inference.bench_results import Machine
from alexdeploy.inference.bench_timing import Configuration, Group, Limits
from alexdeploy.placement.devices import cpu_device, host_memory, survey_gpus

_BUSY_SHARE = 0.25
"""A machine is busy whose load, before anything runs here, is more than this of its processors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """Every backend runs every precision with every number of views in every batch.

    `backends` and `precisions` None: all that are installed, and all that the model has. `images` is what
    `iter_sources` takes, None: JPEGs rendered now; of more than `num_images` those that lie evenly over all.
    `seconds` is for everything but one whole round, which there always is, and the profile. `num_threads` None: all
    that the process may use. `devices` as for `Predictor`. `with_profile`: also the time of each layer, of the fastest
    configuration of each backend that tells it.
    """

    backends: tuple[Backend, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    views: tuple[NumViews, ...] = (1, 10)
    batch_sizes: tuple[int, ...] = (1, 2, 8)
    images: tuple[str, ...] | None = None
    num_images: int = 64
    seconds: float = 120.0
    seed: int = 0
    num_threads: int | None = None
    devices: str | None = None
    limits: Limits = field(default_factory=Limits)
    with_profile: bool = False


def plan(folder: ModelFolder, options: BenchOptions) -> tuple[tuple[Configuration, ...], tuple[str, ...]]:
    """All that can run here, and notes on what was asked for and cannot. Raises UsageError if nothing can."""
    has_gpu = bool(survey_gpus().devices)
    backends = options.backends or tuple(
        backend for backend in get_args(Backend) if is_installed(backend) and (backend != "tensorrt" or has_gpu)
    )
    precisions: tuple[Precision, ...] = options.precisions or get_args(Precision)
    choices, notes = [], []
    for backend, precision in itertools.product(backends, precisions):
        reason = _reason_against(folder, backend, precision)
        if reason is None:
            choices.append((backend, precision))
        # Who names neither asks for what there is.
        elif options.backends is not None or (options.precisions is not None and can_run(backend, precision)):
            notes.append(f"{backend} {precision} is left out: {reason}")
    if not choices:
        raise UsageError(
            "nothing is left to measure" + "".join(f"; {note}" for note in notes),
            cure=f"Ask for another --backend or --precision, or make a graph: alexdeploy export {folder.path} --fp16",
        )
    return (
        tuple(
            Configuration(backend=backend, precision=precision, num_views=num_views, batch_size=batch_size)
            for num_views in options.views
            for backend, precision in choices
            for batch_size in sorted(options.batch_sizes)
        ),
        tuple(notes),
    )


def _reason_against(folder: ModelFolder, backend: Backend, precision: Precision) -> str | None:
    if not can_run(backend, precision):
        return f"{backend} does not run {precision}"
    if not is_installed(backend):
        return f"{backend} is not installed"
    path = folder.weights_path if backend == "torch" else folder.onnx_path("fp32" if precision == "bf16" else precision)
    return None if path.is_file() else f"there is no {path.name}"


def references(folder: ModelFolder, groups: Sequence[Group]) -> dict[NumViews, Group]:
    """For each number of views, what gives the answers of FP32: one of the groups, else one more where there can be."""
    found: dict[NumViews, Group] = {}
    for num_views in dict.fromkeys(group.num_views for group in groups):
        own = [group for group in groups if (group.num_views, group.precision) == (num_views, "fp32")]
        if not own:
            with suppress(AlexDeployError):
                backend = choose_backend(folder, "fp32")
                if _reason_against(folder, backend, "fp32") is None:
                    own = [Group(backend=backend, precision="fp32", num_views=num_views)]
        if own:
            found[num_views] = own[0]
    return found


def load_average() -> float | None:
    """The load of the last minute, None where the system has none."""
    with suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return None


def busy_note(load: float | None) -> tuple[str, ...]:
    """A warning where the load is from something else, as it is before anything runs."""
    processors = available_processors()
    if load is None or load <= _BUSY_SHARE * processors:
        return ()
    return (
        f"the machine is busy: a load of {load:.1f} on {processors} processor{'s' if processors > 1 else ''} before "
        "anything runs here. Rates come out too low; compare those of one run with each other only",
    )


def machine_facts(options: BenchOptions, load: float | None, groups: Sequence[Group]) -> Machine:
    """The machine as it is now; `load` is the average from before."""
    free, total = host_memory()
    versions = {"alexdeploy": alexdeploy.__version__, "python": platform.python_version()}
    for name in ("numpy", "pillow", *dict.fromkeys(group.backend for group in groups)):
        names = ("onnxruntime", "onnxruntime-gpu") if name == "onnxruntime" else (name,)
        versions[name] = (tensorrt_version() if name == "tensorrt" else package_version(*names)) or "unknown"
    return Machine(
        platform=platform.platform(),
        processor=cpu_device().name,
        num_processors=available_processors(),
        num_threads=options.num_threads or available_processors(),
        memory_bytes=total,
        free_bytes=free,
        gpus=tuple(f"{each} {each.name}" for each in survey_gpus().devices),
        load_start=load,
        load_end=load_average(),
        versions=versions,
    )
