"""The speed of a model on this machine in every configuration that can run, and the fastest within the limits."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.benchmark import results
from alexdeploy.benchmark.events import OnEvent, Step
from alexdeploy.benchmark.plan import (
    BenchOptions,
    agreement_notes,
    busy_note,
    few_rounds_note,
    hidden_references,
    length_note,
    load_average,
    machine_facts,
    plan,
    references,
    unable,
)
from alexdeploy.benchmark.roofline import CPU_SIZE, GPU_SIZE, ceiling_flops, ceiling_size, make_ceiling, num_flops
from alexdeploy.benchmark.rounds import DECODE, DECODE_BATCH, Measured, Rounds, ceiling_name
from alexdeploy.benchmark.statistics import BatchConfiguration, Candidate, Limits, close_seconds, median_rate, pick
from alexdeploy.benchmark.worker import Job
from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import AlexDeployError, ImageError
from alexdeploy.core.events import Notice, warn_of_notices
from alexdeploy.core.interrupts import be_patient
from alexdeploy.core.memory import host_memory
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import Backend, Configuration, NumViews
from alexdeploy.engines.profile import PROFILED, profile
from alexdeploy.evaluation.agreement import compare
from alexdeploy.images import sample
from alexdeploy.images.decode import decode
from alexdeploy.images.pick import pick_sources
from alexdeploy.placement.devices import survey_gpus

_MEMORY_SHARE = 0.6
"""Fraction of the memory free at the start that all processes may use together."""

_PROFILED_IMAGES = 4


def bench(
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: BenchOptions | None = None,
    *,
    on_event: OnEvent = warn_of_notices,
) -> results.Benchmark:
    """Measure all configurations in turns, each in its own process, started cold.

    `model` is a folder or anything `find_model` accepts. A configuration that fails has its error in its row. A
    KeyboardInterrupt stops the measurement: the results so far are returned, marked as interrupted. Limits that no
    configuration meets are reported in `failure`, not raised. Raises UsageError, ModelError if nothing can run, and
    ImageError if no image can be read.
    """
    began, load = time.monotonic(), load_average()
    folder = find_model(model)
    options = check_argument("options", options or BenchOptions(), BenchOptions)
    spec = folder.spec()
    configurations, planned = plan(folder, options)
    notes: list[str] = []

    def tell(*words: str) -> None:
        for note in words:
            notes.append(note)
            on_event(Notice(message=note))

    tell(*planned, *busy_note(load))
    with tempfile.TemporaryDirectory(prefix="alexdeploy-bench-") as temporary:
        prepared = _prepare(options, spec, Path(temporary), on_event)
        tell(*agreement_notes(options, len(prepared.images)))
        rounds, interrupted = _measure(folder, options, configurations, prepared, began + options.seconds, on_event)
        # A configuration that failed only after some slices can run here.
        seen = {each: rounds.measured[each] for each in configurations}
        lacking = unable(options, {each: None if one.slices else one.failure for each, one in seen.items()})
        tell(*(f"{backend} {precision} is left out: {why}" for (backend, precision), why in lacking.items()))
        kept = [each for each in configurations if (each.backend, each.precision) not in lacking]
        decode_rates = rounds.measured.get(DECODE, Measured()).file_rates
        ceilings = tuple(_ceilings(rounds, _choices(kept)))
        rows = tuple(_rows(rounds, kept, decode_rates, ceilings, spec))
        profiles: list[results.Profile] = []
        if options.with_profile and not interrupted:
            try:
                # One at a time: an interrupt keeps those already done.
                for each_profile in _profiles(folder, rows, prepared.images, on_event, tell):
                    profiles.append(each_profile)
            except KeyboardInterrupt:
                be_patient()
                interrupted = True
    tell(*rounds.notes)
    if any(row.num_rounds for row in rows):
        tell(*few_rounds_note(options, rounds.num_rounds, interrupted=interrupted))
    found = results.candidates(rows)
    picked = tuple(_picked(folder, each, found, options) for each in pick(found, options.limits))
    has_limits = options.limits != Limits()
    return results.Benchmark(
        model=str(folder.path),
        name=spec.name,
        contract_sha256=spec.contract_sha256,
        images=prepared.origin,
        num_images=len(prepared.images),
        image_bytes=prepared.num_bytes,
        seed=options.seed,
        seconds=time.monotonic() - began,
        num_rounds=rounds.num_rounds,
        interrupted=interrupted,
        limits=options.limits,
        decode_per_second=median_rate(decode_rates),
        decode_rates=tuple(decode_rates),
        ceilings=ceilings,
        rows=rows,
        profiles=tuple(profiles),
        picked=picked,
        failure=results.why_not(found, options.limits) if has_limits and not picked else None,
        notes=tuple(notes),
        machine=machine_facts([each.backend for each in configurations], load, options.num_threads),
    )


class _Prepared(NamedTuple):
    """Decoded images, also saved in `workspace`/images.npy; their files, the files' total bytes, and their origin."""

    workspace: Path
    images: NDArray[np.uint8]
    files: list[str]
    num_bytes: int
    origin: str


def _prepare(options: BenchOptions, spec: ModelSpec, workspace: Path, on_event: OnEvent) -> _Prepared:
    named = options.images
    if named is None:
        folder = sample.write_photographs(workspace / "photographs", num=options.num_images)
        picked = pick_sources([str(folder)], spec, options.num_images)
        note = f"no --images: {len(picked.sources)} rendered JPEGs are decoded, which are simpler than photographs"
        on_event(Notice(message=note))
    else:
        picked = pick_sources(named, spec, options.num_images)
    images, files, problems, num_bytes = [], [], [], 0
    for number, source in enumerate(picked.sources):
        try:
            data = source.read()
            images.append(decode(data, spec.preprocessing.resize))
        except ImageError as exc:
            problems.append(f"{source.name}: {exc.message}")
            on_event(Notice(message=f"left out: {problems[-1]}"))
            continue
        path = source.path
        if path is None:
            # A member of an archive: every process must find it as a file.
            path = str(workspace / f"member-{number:05}")
            Path(path).write_bytes(data)
        files.append(os.path.abspath(path))
        num_bytes += len(data)
    if not images:
        others = f", and {len(problems) - 1:,} more" if len(problems) > 1 else ""
        raise ImageError(f"no image can be read: {problems[0]}{others}", hint="Name photographs: --images DIR")
    if named is None:
        origin = f"{len(images)} rendered JPEGs"
    else:
        # Excludes sources that are no images even without reading their bytes, such as an empty folder.
        num_found = picked.num_found - sum(source.problem is not None for source in picked.sources)
        origin = f"{', '.join(named)}: {len(images)} of {num_found:,} images"
    stacked = np.stack(images)
    np.save(workspace / "images.npy", stacked)
    return _Prepared(workspace, stacked, files, num_bytes, origin)


def _measure(
    folder: ModelFolder,
    options: BenchOptions,
    configurations: Sequence[BatchConfiguration],
    prepared: _Prepared,
    deadline: float,
    on_event: OnEvent,
) -> tuple[Rounds, bool]:
    """The measurements, and whether a KeyboardInterrupt stopped them before `deadline` (monotonic clock)."""
    groups = tuple(dict.fromkeys(each.group for each in configurations))
    choices, hidden = _choices(configurations), hidden_references(folder, groups)
    free, _ = host_memory()
    limit = None if free is None else int(_MEMORY_SHARE * free)
    jobs = _jobs(folder, options, prepared, (*groups, *hidden.values()), choices)
    rounds = Rounds(jobs, configurations, prepared.workspace, limit, on_event)
    with rounds.processes:
        try:
            rounds.open(groups, choices, deadline if options.seconds else None)
            if not rounds.is_late:
                _ask_references(rounds, hidden, on_event)
            if not rounds.has_configurations:
                return rounds, False
            for note in length_note(options, deadline - time.monotonic(), rounds.round_seconds(deadline)):
                on_event(Notice(message=note))
            rounds.run(deadline, options.seed)
        except KeyboardInterrupt:
            be_patient()
            return rounds, True
    return rounds, False


def _choices(configurations: Sequence[BatchConfiguration]) -> tuple[tuple[Backend, Precision], ...]:
    return tuple(dict.fromkeys((each.backend, each.precision) for each in configurations))


def _jobs(
    folder: ModelFolder,
    options: BenchOptions,
    prepared: _Prepared,
    groups: Sequence[Configuration],
    choices: Sequence[tuple[Backend, Precision]],
) -> dict[str, Job]:
    def job(path: Path, backend: Backend, precision: Precision, views: NumViews, batch_size: int) -> Job:
        return Job(
            folder=os.fsencode(path),
            options=options.predict_options(backend, precision, views, batch_size),
            images=os.fsencode(prepared.workspace / "images.npy"),
            files=tuple(map(os.fsencode, prepared.files)),
        )

    largest = max(options.batch_sizes)
    first = groups[0]
    decoding = job(folder.path, first.backend, first.precision, first.num_views, DECODE_BATCH)
    jobs = {DECODE: msgspec.structs.replace(decoding, decodes_only=True)}
    for group in groups:
        jobs[str(group)] = job(folder.path, group.backend, group.precision, group.num_views, largest)
    # The size that applies is known once an engine is open.
    for size in (CPU_SIZE, GPU_SIZE) if survey_gpus().devices else (CPU_SIZE,):
        path = prepared.workspace / f"ceiling-{size.side}"
        ceiling = make_ceiling(path, tuple(precision for _, precision in choices), size)
        for backend, precision in choices:
            name = ceiling_name(backend, precision, on_gpu=size == GPU_SIZE)
            jobs[name] = job(ceiling.path, backend, precision, 1, size.batch_size)
    return jobs


def _ask_references(rounds: Rounds, hidden: Mapping[NumViews, Configuration], on_event: OnEvent) -> None:
    """Get FP32 answers even if no measured configuration gave any."""
    for num_views, reference in hidden.items():
        # Not needed if there is nothing to compare.
        if num_views in references(rounds.answers) or all(group.num_views != num_views for group in rounds.answers):
            continue
        on_event(Step(phase="comparing", name=str(reference)))
        rounds.answer(reference, str(reference), batch_size=1)
        rounds.processes.end(str(reference))


def _ceilings(rounds: Rounds, choices: Sequence[tuple[Backend, Precision]]) -> Iterator[results.Ceiling]:
    for backend, precision in choices:
        name = ceiling_name(backend, precision)
        info = rounds.processes.infos.get(name)
        flops = ceiling_flops(ceiling_size("" if info is None else info.device))
        yield results.measured_ceiling(backend, precision, rounds.measured.get(name, Measured()), flops)


def _rows(
    rounds: Rounds,
    configurations: Sequence[BatchConfiguration],
    decode_rates: Sequence[float],
    ceilings: Sequence[results.Ceiling],
    spec: ModelSpec,
) -> Iterator[results.Row]:
    processes, referred = rounds.processes, references(rounds.answers)
    for each in configurations:
        info = processes.infos.get(str(each.group))
        yield results.make_row(
            each,
            rounds.measured[each],
            device=None if info is None else info.device,
            decode_rates=decode_rates,
            flops=num_flops(spec, each.num_views),
            ceiling_gflops=results.ceiling_of(ceilings, each.backend, each.precision),
            start=processes.starts.get(str(each)) or processes.starts.get(str(each.group)),
            agreed=_agreed(rounds, each.group, referred.get(each.num_views)),
        )


def _agreed(rounds: Rounds, group: Configuration, reference: Configuration | None) -> results.Agreed | None:
    if reference is None or reference not in rounds.answers or group not in rounds.answers:
        return None
    expected, actual = rounds.answers[reference], rounds.answers[group]
    agreement = compare(expected, actual, expected)
    return results.Agreed(
        reference=reference.backend,
        num_images=agreement.num_rows,
        num_same=agreement.num_rows - agreement.num_non_finite - agreement.num_flips,
    )


def _profiles(
    folder: ModelFolder,
    rows: Sequence[results.Row],
    images: NDArray[np.uint8],
    on_event: OnEvent,
    tell: Callable[[str], None],
) -> Iterator[results.Profile]:
    """Layer times of the fastest configuration of each backend, with the most views measured."""
    views = max(row.configuration.num_views for row in rows)
    batch = images[:_PROFILED_IMAGES]
    for backend in PROFILED:
        own = [
            row
            for row in rows
            if (row.configuration.backend, row.configuration.num_views, row.device) == (backend, views, "cpu")
            and row.error is None
        ]
        best = max(own, key=lambda row: row.images_per_second or 0.0, default=None)
        if best is None or best.images_per_second is None:
            continue
        group = best.configuration.group
        on_event(Step(phase="profiling", name=str(group)))
        try:
            layers = profile(folder, group.backend, group.precision, group.num_views, batch)
        except AlexDeployError as exc:
            tell(f"{group} has no times of its layers: {exc.message}")
            continue
        yield results.Profile(group=group, num_images=len(batch), layers=layers)


def _picked(folder: ModelFolder, best: Candidate, found: Sequence[Candidate], options: BenchOptions) -> results.Picked:
    named = best.configuration
    return results.Picked(
        configuration=named,
        files_per_second=best.images_per_second,
        file_rates=best.rates,
        p95_ms=best.p95_ms,
        command=results.predict_command(str(folder.path), named, options.images, options),
        close_seconds=tuple(
            results.CloseSecond(configuration=each.configuration, files_per_second=each.images_per_second)
            for each in close_seconds(best, found, options.limits)
        ),
    )
