"""The configurations of a model that can run on this machine, and facts about the machine."""

from __future__ import annotations

import itertools
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import get_args

from alexdeploy.benchmark.results import Machine
from alexdeploy.benchmark.statistics import BatchConfiguration, Limits
from alexdeploy.core.arguments import Count, Natural, NotNegative, check_fields
from alexdeploy.core.errors import AlexDeployError, DeviceError, UsageError
from alexdeploy.core.memory import host_memory
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import versions_for_report
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Precision, graph_precision
from alexdeploy.engines.base import ENGINE_BACKENDS, Backend, Configuration, NumViews, can_run, is_installed
from alexdeploy.engines.trt.files import find_engines
from alexdeploy.placement.devices import cpu_device, survey_gpus
from alexdeploy.placement.options import DeviceOptions
from alexdeploy.placement.place import check_devices

_BUSY_SHARE = 0.25
"""A machine counts as busy if its load before the benchmark exceeds this fraction of its processors."""

_LEAST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions(DeviceOptions):
    """Every backend runs every precision with every number of views in every batch.

    `backends` and `precisions` None: all installed backends, all precisions of the model. `images` is anything
    `iter_sources` accepts; None renders JPEGs. If there are more than `num_images`, an evenly spaced sample is used.
    `seconds` covers opening and rounds: engines not open after half of it are skipped, and a note names them. One whole
    round of the open ones always runs, and the profile takes extra time; 0 opens everything and measures one round.
    `with_profile`: also time each layer, for the fastest configuration of each backend that reports layer times.
    """

    backends: tuple[Backend, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    num_views: tuple[NumViews, ...] = (1, 10)
    batch_sizes: tuple[Count, ...] = (1, 2, 8)
    images: tuple[str, ...] | None = None
    num_images: Count = 64
    seconds: NotNegative = 120.0
    seed: Natural = 0
    limits: Limits = field(default_factory=Limits)
    with_profile: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.batch_sizes or not self.num_views:
            raise UsageError("no batch size or no number of views is named")


def plan(folder: ModelFolder, options: BenchOptions) -> tuple[tuple[BatchConfiguration, ...], tuple[str, ...]]:
    """Everything that can run here, and notes on requests that cannot. Raises UsageError if nothing can run."""
    check_devices(options)
    has_gpu = bool(survey_gpus().devices)
    backends = options.backends or tuple(
        backend
        for backend in get_args(Backend)
        if is_installed(backend) and (backend not in ENGINE_BACKENDS or has_gpu)
    )
    precisions: tuple[Precision, ...] = options.precisions or get_args(Precision)
    choices, notes = [], []
    for backend, precision in itertools.product(backends, precisions):
        reason = _reason_against(folder, backend, precision)
        if reason is None:
            choices.append((backend, precision))
        # No note if neither is named: the default is whatever can run.
        elif options.backends is not None or (options.precisions is not None and can_run(backend, precision)):
            notes.append(f"{backend} {precision} is left out: {reason}")
    groups = [
        Configuration(backend=backend, precision=precision, num_views=num_views)
        for num_views in options.num_views
        for backend, precision in choices
    ]
    without = _without_engine(folder, groups)
    if without:
        words = ", ".join(str(group) for group in without)
        notes.append(f"left out, as the model has no engine for them: {words}. To make one: alexdeploy build")
    configurations = tuple(
        BatchConfiguration(
            backend=group.backend, precision=group.precision, num_views=group.num_views, batch_size=batch_size
        )
        for group in groups
        if group not in without
        for batch_size in sorted(options.batch_sizes)
    )
    if not configurations:
        raise UsageError(
            "nothing is left to measure" + "".join(f"; {note}" for note in notes),
            hint=f"Ask for another --backend or --precision, or make a graph: alexdeploy export {folder.quoted} --fp16",
        )
    return configurations, tuple(notes)


def _reason_against(folder: ModelFolder, backend: Backend, precision: Precision) -> str | None:
    if not can_run(backend, precision):
        return f"{backend} does not run {precision}"
    if not is_installed(backend):
        return f"{backend} is not installed"
    path = folder.weights_path if backend == "torch" else folder.onnx_path(graph_precision(precision))
    return None if path.is_file() else f"there is no {path.name}"


def _without_engine(folder: ModelFolder, groups: Sequence[Configuration]) -> list[Configuration]:
    """The groups for which no engine file was built; whether one fits this GPU shows when it is opened."""
    built = {(record.backend, record.precision, record.num_views) for _, record in find_engines(folder)}
    return [
        group
        for group in groups
        if group.backend in ENGINE_BACKENDS and (group.backend, group.precision, group.num_views) not in built
    ]


def unable(
    options: BenchOptions, failures: Mapping[BatchConfiguration, AlexDeployError | None]
) -> dict[tuple[Backend, Precision], str]:
    """The bf16 configurations, not requested, that this machine cannot run, with the backend's message.

    Only the backend knows. Empty if nothing else would be left.
    """
    if options.precisions is not None:
        return {}
    by_choice: dict[tuple[Backend, Precision], list[AlexDeployError | None]] = {}
    for configuration, failure in failures.items():
        by_choice.setdefault((configuration.backend, configuration.precision), []).append(failure)
    found = {
        choice: own[0].message
        for choice, own in by_choice.items()
        # Not a subclass: running out of memory says nothing about bf16.
        if choice[1] == "bf16" and own[0] is not None and all(type(each) is DeviceError for each in own)
    }
    return found if len(found) < len(by_choice) else {}


def references(answered: Iterable[Configuration]) -> dict[NumViews, Configuration]:
    """For each number of views, the first group that gave FP32 answers."""
    found: dict[NumViews, Configuration] = {}
    for group in answered:
        if group.precision == "fp32":
            found.setdefault(group.num_views, group)
    return found


def hidden_references(folder: ModelFolder, groups: Sequence[Configuration]) -> dict[NumViews, Configuration]:
    """For each number of views, an unmeasured configuration that can give FP32 answers, if there is one."""
    found: dict[NumViews, Configuration] = {}
    # Not TensorRT: it runs existing engines, and there may be none for FP32.
    backends = [backend for backend in get_args(Backend) if backend not in ENGINE_BACKENDS]
    for num_views, backend in itertools.product(dict.fromkeys(group.num_views for group in groups), backends):
        group = Configuration(backend=backend, precision="fp32", num_views=num_views)
        if group not in groups and _reason_against(folder, backend, "fp32") is None:
            found.setdefault(num_views, group)
    return found


def agreement_notes(options: BenchOptions, num_images: int) -> Iterator[str]:
    """Notes on a given `min_agreement`."""
    least = options.limits.min_agreement
    if least is None:
        return
    if options.images is None:
        yield (
            "agreement is measured on rendered shapes, as there are no --images: on photographs it may be another. "
            "Name some of yours before you rely on it"
        )
    # With 1 every answer has to agree, as requested. 0.995 of 200 images is meant to allow one difference.
    if least < 1 and (1 - least) * num_images < 1 - 1e-9:
        yield (
            f"an agreement of {least:g} on {num_images} image{'' if num_images == 1 else 's'} allows no answer that "
            f"differs. At least {math.ceil(1 / (1 - least) - 1e-6):,} images tell more: --images, --num-images"
        )


def length_note(options: BenchOptions, left: float, one_round: float) -> tuple[str, ...]:
    """A note if one round, which is always measured, takes longer than the seconds that opening has `left`."""
    if one_round <= left:
        return ()
    return (
        f"a round takes about {math.ceil(one_round)} s, and to open everything took {options.seconds - left:.0f} s: "
        f"together more than --seconds {options.seconds:g}. Name fewer --backend, --precision, --views or --batch-size "
        "for a shorter run",
    )


def few_rounds_note(options: BenchOptions, num_rounds: int, *, interrupted: bool) -> tuple[str, ...]:
    """A warning if medians cover very few rounds; `num_rounds` counts whole ones."""
    if num_rounds >= _LEAST_ROUNDS:
        return ()
    before = "stopped after" if interrupted else f"{options.seconds:g} s were enough for"
    rounds = f"{num_rounds} whole round{'' if num_rounds == 1 else 's'}"
    return (f"{before} {rounds}: a median of so few is doubtful. More --seconds, or fewer configurations, give more.",)


def load_average() -> float | None:
    """The load average of the last minute, None where the system has none."""
    with suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return None


def busy_note(load: float | None) -> tuple[str, ...]:
    """A warning if the load, taken before the benchmark runs anything, comes from other programs."""
    processors = available_processors()
    if load is None or load <= _BUSY_SHARE * processors:
        return ()
    return (
        f"the machine is busy: a load of {load:.1f} on {processors} processor{'s' if processors > 1 else ''} before "
        "anything runs here. Rates come out too low; compare those of one run with each other only",
    )


def machine_facts(backends: Iterable[Backend], load: float | None, num_threads: int | None = None) -> Machine:
    """The machine's current state; `load` is the average from before. Versions are those of `backends` and our own."""
    free, total = host_memory()
    return Machine(
        platform=platform.platform(),
        processor=cpu_device().name,
        num_processors=available_processors(),
        num_threads=num_threads or available_processors(),
        memory_bytes=total,
        free_bytes=free,
        gpus=tuple(f"{each} {each.name}" for each in survey_gpus().devices),
        load_start=load,
        load_end=load_average(),
        versions=versions_for_report(backends),
    )
