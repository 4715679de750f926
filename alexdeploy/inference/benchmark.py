"""How fast is a model on this machine, in every way that it can run here, and which way keeps what was asked for?"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder, find_model
from alexdeploy.core.errors import AlexDeployError, ImageError, UsageError
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import Backend, NumViews
from alexdeploy.engines.profile import PROFILED, profile
from alexdeploy.images import sample
from alexdeploy.images.decode import decode
from alexdeploy.images.pick import pick_sources
from alexdeploy.images.sources import Source
from alexdeploy.inference import bench_results as results
from alexdeploy.inference.agreement import compare
from alexdeploy.inference.bench_ceiling import CEILING_BATCH, ceiling_flops, make_ceiling, num_flops
from alexdeploy.inference.bench_plan import BenchOptions, busy_note, load_average, machine_facts, plan, references
from alexdeploy.inference.bench_rounds import DECODE, DECODE_BATCH, OnStep, Rounds, ceiling_name
from alexdeploy.inference.bench_timing import Group, Limits, median_rate, pick, why_none
from alexdeploy.inference.bench_worker import Job
from alexdeploy.placement.devices import host_memory

_MEMORY_SHARE = 0.6
"""Of the memory that is free at the start: what all processes may hold together."""

_LEAST_ROUNDS = 3
_PROFILED_IMAGES = 4


def benchmark(
    model: str | os.PathLike[str] | None,
    options: BenchOptions | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    on_step: OnStep = lambda step, done, total: None,
) -> results.Benchmark:
    """Measure all configurations in turns, each in a process of its own that was started cold.

    A configuration that fails has its error in its row. A KeyboardInterrupt ends the measuring: what was measured so
    far is returned, marked as interrupted. Limits that nothing keeps are in `failure`, not raised. Raises UsageError,
    ModelError where nothing can run, ImageError if no image can be read.
    """
    began, load = time.monotonic(), load_average()
    options = options or BenchOptions()
    _check(options)
    folder = find_model(model)
    spec = folder.spec()
    configurations, notes = plan(folder, options)
    groups = tuple(dict.fromkeys(each.group for each in configurations))
    referred = references(folder, groups)
    notes += busy_note(load)
    for note in notes:
        on_note(note)
    free, _ = host_memory()
    interrupted = False
    with tempfile.TemporaryDirectory(prefix="alexdeploy-bench-") as temporary:
        workspace = Path(temporary)
        images, sources, origin = _prepare(options, spec, workspace, on_note)
        choices = tuple(dict.fromkeys((group.backend, group.precision) for group in groups))
        hidden = tuple(group for group in referred.values() if group not in groups)
        limit = None if free is None else int(_MEMORY_SHARE * free)
        jobs = _jobs(folder, options, workspace, (*groups, *hidden), choices, [source.path or "" for source in sources])
        rounds = Rounds(jobs, configurations, workspace, limit, on_step)
        with rounds.processes:
            try:
                rounds.open((*groups, *hidden), choices)
                rounds.run(began + options.seconds, options.seed)
            except KeyboardInterrupt:
                interrupted = True
        processes = rounds.processes
        decoding = rounds.measured.get(DECODE)
        decode_rates = [] if decoding is None else decoding.file_rates
        ceilings = tuple(_ceilings(rounds, choices))
        rows = tuple(
            results.make_row(
                each,
                rounds.measured[each],
                device=processes.infos[str(each.group)].device if str(each.group) in processes.infos else None,
                decode_rates=decode_rates,
                flops=num_flops(spec, each.num_views),
                ceiling_gflops=results.ceiling_of(ceilings, each.backend, each.precision),
                start=processes.starts.get(str(each.group)),
                agreed=_agreed(rounds, each.group, referred.get(each.num_views)),
            )
            for each in configurations
        )
        profiles: tuple[results.Profile, ...] = ()
        if options.with_profile and not interrupted:
            with suppress(KeyboardInterrupt):
                profiles = tuple(_profiles(folder, rows, images, on_step))
    if 0 < rounds.num_rounds < _LEAST_ROUNDS and not interrupted:
        notes += (
            f"{options.seconds:g} s were enough for {rounds.num_rounds} round{'s' if rounds.num_rounds > 1 else ''}: "
            "a median of so few is doubtful. More --seconds, or fewer configurations, give more.",
        )
        on_note(notes[-1])
    found = results.candidates(rows)
    picked = pick(found, options.limits)
    has_limits = options.limits != Limits()
    return results.Benchmark(
        model=str(folder.path),
        name=spec.name,
        contract_sha256=spec.contract_sha256,
        images=origin,
        num_images=len(images),
        image_bytes=sum(len(source.data or b"") for source in sources),
        seed=options.seed,
        seconds=time.monotonic() - began,
        num_rounds=rounds.num_rounds,
        interrupted=interrupted,
        limits=options.limits,
        decode_per_second=median_rate(decode_rates),
        ceilings=ceilings,
        rows=rows,
        profiles=profiles,
        picked=tuple(
            results.Picked(
                configuration=each.configuration,
                files_per_second=each.images_per_second,
                p95_ms=each.p95_ms,
                command=results.predict_command(
                    str(folder.path), each.configuration, options.images, options.num_threads, options.devices
                ),
            )
            for each in picked
        ),
        failure=why_none(found, options.limits) if has_limits and not picked else None,
        notes=notes,
        machine=machine_facts(options, load, groups),
    )


def _check(options: BenchOptions) -> None:
    if not options.batch_sizes or not options.views:
        raise UsageError("no batch size or no number of views is named")
    numbers = (
        ("num_images", options.num_images),
        ("num_threads", options.num_threads),
        ("batch_size", min(options.batch_sizes)),
    )
    for name, value in numbers:
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")


def _prepare(
    options: BenchOptions, spec: ModelSpec, workspace: Path, on_note: Callable[[str], None]
) -> tuple[NDArray[np.uint8], list[Source], str]:
    """Decoded images, which also go to images.npy; the files that they are from, with their bytes; whose they are."""
    named = options.images
    if named is None:
        folder = sample.write_photographs(workspace / "photographs", num=options.num_images)
        picked = pick_sources([str(folder)], spec, options.num_images)
        origin = f"{len(picked.sources)} rendered JPEGs"
        on_note(f"no --images: {origin} are decoded, which are simpler than photographs")
    else:
        picked = pick_sources(named, spec, options.num_images)
        origin = f"{', '.join(named)}: {min(picked.num_found, options.num_images)} of {picked.num_found:,} images"
    images, sources = [], []
    for number, source in enumerate(picked.sources):
        try:
            data = source.read()
            images.append(decode(data, spec.preprocessing.resize))
        except ImageError as exc:
            on_note(f"left out: {source.name}: {exc.message}")
            continue
        path = source.path
        if path is None:
            # A member of an archive: every process is to find it as a file.
            path = str(workspace / f"member-{number:05}")
            Path(path).write_bytes(data)
        sources.append(Source(name=source.name, path=os.path.abspath(path), data=data))
    if not images:
        raise ImageError(f"none of the images of {origin} can be read", cure="Name photographs: --images DIR")
    np.save(workspace / "images.npy", np.stack(images))
    return np.stack(images), sources, origin


def _jobs(
    folder: ModelFolder,
    options: BenchOptions,
    workspace: Path,
    groups: Sequence[Group],
    choices: Sequence[tuple[Backend, Precision]],
    files: Sequence[str],
) -> dict[str, Job]:
    def job(path: Path, backend: Backend | None, precision: Precision, views: NumViews, batch_size: int) -> Job:
        return Job(
            folder=str(path),
            backend=backend,
            precision=precision,
            num_views=views,
            batch_size=batch_size,
            num_threads=options.num_threads,
            devices=options.devices,
            images=str(workspace / "images.npy"),
            files=tuple(files),
        )

    largest = max(options.batch_sizes)
    jobs = {DECODE: job(folder.path, None, "fp32", 1, DECODE_BATCH)}
    for group in groups:
        jobs[str(group)] = job(folder.path, group.backend, group.precision, group.num_views, largest)
    ceiling = make_ceiling(workspace / "ceiling", tuple(precision for _, precision in choices))
    for backend, precision in choices:
        jobs[ceiling_name(backend, precision)] = job(ceiling.path, backend, precision, 1, CEILING_BATCH)
    return jobs


def _ceilings(rounds: Rounds, choices: Sequence[tuple[Backend, Precision]]) -> Iterator[results.Ceiling]:
    for backend, precision in choices:
        seen = rounds.measured.get(ceiling_name(backend, precision))
        rates = [] if seen is None else [each.images_per_second for each in seen.slices]
        rate = median_rate(rates)
        yield results.Ceiling(
            backend=backend,
            precision=precision,
            gflops=None if rate is None else rate * ceiling_flops() / 1e9,
            error=None if seen is None else seen.error,
        )


def _agreed(rounds: Rounds, group: Group, reference: Group | None) -> results.Agreed | None:
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
    folder: ModelFolder, rows: Sequence[results.Row], images: NDArray[np.uint8], on_step: OnStep
) -> Iterator[results.Profile]:
    """Of the fastest of each backend, with the most views that were measured."""
    views = max(row.configuration.num_views for row in rows)
    batch = images[:_PROFILED_IMAGES]
    for backend in PROFILED:
        own = [
            row
            for row in rows
            if (row.configuration.backend, row.configuration.num_views) == (backend, views) and row.device == "cpu"
        ]
        best = max(own, key=lambda row: row.images_per_second or 0.0, default=None)
        if best is None or best.images_per_second is None:
            continue
        group = best.configuration.group
        on_step(f"profiling: {group}", 0, 1)
        with suppress(AlexDeployError):
            layers = profile(folder, group.backend, group.precision, group.num_views, batch)
            yield results.Profile(group=group, num_images=len(batch), layers=layers)
