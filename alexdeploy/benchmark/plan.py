"""What of a model can run on this machine, and what machine it is."""

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
from alexdeploy.engines.base import Backend, Configuration, NumViews, can_run, is_installed
from alexdeploy.engines.trt.files import find_engines
from alexdeploy.placement.devices import cpu_device, survey_gpus
from alexdeploy.placement.options import DeviceOptions
from alexdeploy.placement.place import check_devices

_BUSY_SHARE = 0.25
"""A machine is busy whose load, before anything runs here, is more than this of its processors."""

_LEAST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions(DeviceOptions):
    """Every backend runs every precision with every number of views in every batch.

    `backends` and `precisions` None: all that are installed, and all that the model has. `images` is what
    `iter_sources` takes, None: JPEGs rendered now; of more than `num_images` those that lie evenly over all.
    `seconds` is for opening and rounds: what is not open after half of it is left out, and a note names it. One whole
    round of what is open there always is, and the profile comes on top; 0 opens everything and measures one round.
    `with_profile`: also the time of each layer, of the fastest configuration of each backend that tells it.
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
    """All that can run here, and notes on what was asked for and cannot. Raises UsageError if nothing can."""
    check_devices(options)
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
    """The TensorRT groups that no engine was built for; whether one fits this GPU is seen when it is opened."""
    built = {(record.precision, record.num_views) for _, record in find_engines(folder)}
    return [
        group for group in groups if group.backend == "tensorrt" and (group.precision, group.num_views) not in built
    ]


def unable(
    options: BenchOptions, failures: Mapping[BatchConfiguration, AlexDeployError | None]
) -> dict[tuple[Backend, Precision], str]:
    """The bf16 that nobody asked for and that this machine has not, with what its backend says: it alone knows.

    Nothing where nothing else is left.
    """
    if options.precisions is not None:
        return {}
    by_choice: dict[tuple[Backend, Precision], list[AlexDeployError | None]] = {}
    for configuration, failure in failures.items():
        by_choice.setdefault((configuration.backend, configuration.precision), []).append(failure)
    found = {
        choice: own[0].message
        for choice, own in by_choice.items()
        # Nothing more special: a lack of memory is none of arithmetic.
        if choice[1] == "bf16" and own[0] is not None and all(type(each) is DeviceError for each in own)
    }
    return found if len(found) < len(by_choice) else {}


def references(answered: Iterable[Configuration]) -> dict[NumViews, Configuration]:
    """For each number of views, which of the groups that gave answers gives those of FP32: the first."""
    found: dict[NumViews, Configuration] = {}
    for group in answered:
        if group.precision == "fp32":
            found.setdefault(group.num_views, group)
    return found


def hidden_references(folder: ModelFolder, groups: Sequence[Configuration]) -> dict[NumViews, Configuration]:
    """For each number of views, what could give the answers of FP32 if none of the groups does, where anything can."""
    found: dict[NumViews, Configuration] = {}
    # Not TensorRT, which runs what was built, and that may lie there for no FP32.
    backends = [backend for backend in get_args(Backend) if backend != "tensorrt"]
    for num_views, backend in itertools.product(dict.fromkeys(group.num_views for group in groups), backends):
        group = Configuration(backend=backend, precision="fp32", num_views=num_views)
        if group not in groups and _reason_against(folder, backend, "fp32") is None:
            found.setdefault(num_views, group)
    return found


def agreement_notes(options: BenchOptions, num_images: int) -> Iterator[str]:
    """What is to be known of a `min_agreement` that was asked for."""
    least = options.limits.min_agreement
    if least is None:
        return
    if options.images is None:
        yield (
            "agreement is measured on rendered shapes, as there are no --images: on photographs it may be another. "
            "Name some of yours before you rely on it"
        )
    # With 1 every answer has to agree, and that is what was asked for. 0.995 of 200 is to allow one.
    if least < 1 and (1 - least) * num_images < 1 - 1e-9:
        yield (
            f"an agreement of {least:g} on {num_images} image{'' if num_images == 1 else 's'} allows no answer that "
            f"differs. At least {math.ceil(1 / (1 - least) - 1e-6):,} images tell more: --images, --num-images"
        )


def length_note(options: BenchOptions, left: float, one_round: float) -> tuple[str, ...]:
    """That the one round which there always is takes longer than the seconds that opening has `left`."""
    if one_round <= left:
        return ()
    return (
        f"a round takes about {math.ceil(one_round)} s, and to open everything took {options.seconds - left:.0f} s: "
        f"together more than --seconds {options.seconds:g}. Name fewer --backend, --precision, --views or --batch-size "
        "for a shorter run",
    )


def few_rounds_note(options: BenchOptions, num_rounds: int, *, interrupted: bool) -> tuple[str, ...]:
    """A warning where medians are of hardly any rounds; `num_rounds` counts whole ones."""
    if num_rounds >= _LEAST_ROUNDS:
        return ()
    before = "stopped after" if interrupted else f"{options.seconds:g} s were enough for"
    rounds = f"{num_rounds} whole round{'' if num_rounds == 1 else 's'}"
    return (f"{before} {rounds}: a median of so few is doubtful. More --seconds, or fewer configurations, give more.",)


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


def machine_facts(backends: Iterable[Backend], load: float | None, num_threads: int | None = None) -> Machine:
    """The machine as it is now; `load` is the average from before. Versions are those of the `backends` and ours."""
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
