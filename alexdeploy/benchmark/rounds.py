"""Opening, warming up and measuring in rounds: a short slice per item and round, in a new order each round."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.benchmark.events import OnEvent, Step
from alexdeploy.benchmark.processes import Processes
from alexdeploy.benchmark.roofline import CPU_SIZE, ceiling_size
from alexdeploy.benchmark.statistics import PAUSE_SECONDS, BatchConfiguration, Slice, interleaved, slice_seconds
from alexdeploy.benchmark.worker import Job, Task
from alexdeploy.core.errors import AlexDeployError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import Backend, Configuration
from alexdeploy.inference.window import window_size

DECODE = "decoding"
DECODE_BATCH = 8

_OPENING_SHARE = 0.5
"""Fraction of the total time after which nothing more is opened, so that open engines can be measured."""

_LEAST_WAVES = 2
"""Batches per stream in a run from files: the next is decoded while the first runs."""


@dataclass(kw_only=True, slots=True)
class Measured:
    """The measurements so far of a configuration or another item of the rounds. A `failure` ends them.

    `warm_rate` comes from the very first run, and only determines how much to request.
    """

    slices: list[Slice] = field(default_factory=list)
    file_rates: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    warm_rate: float = 0.0
    failure: AlexDeployError | None = None

    @property
    def error(self) -> str | None:
        return None if self.failure is None else self.failure.message


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    """One measurement to make in each round."""

    process: str
    key: BatchConfiguration | str
    kind: Literal["engine", "files"]
    batch_size: int
    is_largest: bool = True
    """No larger batch runs in its process, so the process's memory is that of this batch."""


class Rounds:
    """Everything that is measured together, and the results: `measured`, by configuration or by name.

    `answers` are those of each group, probabilities float32 [N, C].
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        configurations: Sequence[BatchConfiguration],
        folder: Path,
        limit_bytes: int | None,
        on_event: OnEvent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.processes = Processes(jobs, limit_bytes)
        self.measured: dict[BatchConfiguration | str, Measured] = {key: Measured() for key in configurations}
        self.answers: dict[Configuration, NDArray[np.float32]] = {}
        self.num_rounds = 0
        self._jobs = dict(jobs)
        self._configurations = tuple(configurations)
        self._folder = folder
        self._on_event = on_event
        self._clock = clock
        self._last_opening = math.inf
        self._left_out: list[str] = []
        self._items: list[_Item] = []
        self._without_answers: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the figures that no row contains."""
        notes = list(self._without_answers)
        if self._left_out:
            notes.append(
                f"not opened for lack of time, and not measured: {', '.join(self._left_out)}. More --seconds, or fewer "
                "configurations, measure all"
            )
        if (decoding := self.measured.get(DECODE)) is not None and decoding.error is not None:
            notes.append(f"no bound is known, as decoding alone failed: {decoding.error}")
        if count := self.processes.num_restarts:
            notes.append(
                f"memory was short: {count} time{'s' if count > 1 else ''} a process was started again that had made "
                "room for another. Each was warmed up, and took from the time for rounds. Fewer configurations fit"
            )
        if self.processes.was_compiled:
            notes.append(
                "compiled models cannot be kept, as no cache can be written: memory and the first row have compiling "
                "in them. ALEXDEPLOY_CACHE names a folder for it"
            )
        return tuple(notes)

    def open(
        self,
        groups: Sequence[Configuration],
        ceilings: Sequence[tuple[Backend, Precision]],
        deadline: float | None = None,
    ) -> None:
        """Start every process once and warm it up, smallest batch first, so that its memory is that of this batch.

        Runs from files use as many images as the pipeline holds at once, so that memory is that of a long run. With a
        `deadline` on the clock, nothing is opened after half of the time until then, except the first configuration
        that opens. An opening that has begun is not stopped: it may compile a model for minutes.
        """
        if deadline is not None:
            now = self._clock()
            self._last_opening = now + _OPENING_SHARE * (deadline - now)
        total = len(groups) + len(ceilings) + 1
        self._on_event(Step(phase="opening", name=DECODE, num_total=total))
        self._warm(_Item(process=DECODE, key=DECODE, kind="files", batch_size=DECODE_BATCH), num_images=DECODE_BATCH)
        for number, group in enumerate(groups, start=1):
            if self.is_late:
                self._leave_out(str(group), *(each for each in self._configurations if each.group == group))
                continue
            self._on_event(Step(phase="opening", name=str(group), num_done=number, num_total=total))
            self._open_group(group)
        for number, (backend, precision) in enumerate(ceilings, start=1 + len(groups)):
            name = ceiling_name(backend, precision)
            if self.is_late:
                self._leave_out(name, name)
                continue
            self._on_event(Step(phase="opening", name=name, num_done=number, num_total=total))
            self._open_ceiling(name, ceiling_name(backend, precision, on_gpu=True))

    @property
    def has_configurations(self) -> bool:
        """Whether a configuration is open that has not failed."""
        return any(isinstance(item.key, BatchConfiguration) and self._of(item).failure is None for item in self._items)

    @property
    def is_late(self) -> bool:
        """Whether the time for opening is over and there is a configuration to measure."""
        return self._clock() >= self._last_opening and any(item.key != DECODE for item in self._items)

    def _leave_out(self, name: str, *keys: BatchConfiguration | str) -> None:
        self._left_out.append(name)
        for key in keys:
            self.measured.setdefault(key, Measured()).failure = UsageError(
                "not opened: the time for opening (half of --seconds) was over",
                hint="Give more --seconds, or name fewer --backend, --precision, --views or --batch-size.",
            )

    def round_seconds(self, deadline: float) -> float:
        """The approximate duration of a round if `run` starts now, estimated from the first run of each item."""
        seconds = slice_seconds(deadline - self._clock(), len(self._items), len(self._turns()))
        items = [item for item in self._items if self._of(item).failure is None]
        total = 0.0
        for item in items:
            seen = self._of(item)
            is_files = item.kind == "files"
            num_images = self._num_images(item, seen, seconds) if is_files else self._wave(item)
            total += max(num_images / seen.warm_rate, 0.0 if is_files else seconds)
        for name in {item.process for item in items}:
            total += PAUSE_SECONDS
            # A process that made room is started again.
            if not self.processes.is_open(name):
                total += self.processes.starts[name].first_row_seconds
        return total

    def run(self, deadline: float, seed: int) -> None:
        """Run one whole round, and then as many as fit before `deadline` (monotonic clock), while one can run."""
        items, turns = tuple(self._items), self._turns()
        seconds = slice_seconds(deadline - self._clock(), len(items), len(turns))
        process = ""
        for done, (number, item) in enumerate(interleaved(tuple(turns.values()), seed)):
            self.num_rounds = done // len(items)
            has_time = number == 0 or self._clock() < deadline
            if not has_time or not self.has_configurations:
                return
            place = done % len(items)
            self._on_event(
                Step(phase="measuring", name=str(item.key), num_done=place, num_total=len(items), number=number + 1)
            )
            if self._of(item).failure is None:
                if item.process != process:
                    time.sleep(PAUSE_SECONDS)
                    process = item.process
                self._measure(item, seconds)

    def _turns(self) -> dict[str, list[_Item]]:
        turns: dict[str, list[_Item]] = {}
        for item in self._items:
            turns.setdefault(item.process, []).append(item)
        return turns

    def _of(self, item: _Item) -> Measured:
        return self.measured.setdefault(item.key, Measured())

    def _open_group(self, group: Configuration) -> None:
        """Open all batches of a group; if the engine does not open for the largest, try the next smaller one."""
        own = sorted((each for each in self._configurations if each.group == group), key=lambda each: each.batch_size)
        while own:
            try:
                self.processes.open(str(group))
                break
            except AlexDeployError as exc:
                # An engine file has a largest batch, and memory may be short: smaller batches may work.
                is_batch = isinstance(exc, (ModelError, DeviceMemoryError))
                for each in own[-1:] if is_batch else own:
                    self.measured[each].failure = exc
                own = own[:-1] if is_batch else []
            if own:
                self.processes.set_job(str(group), self._job_of(own[-1]))
        for each in own:
            # The group itself is open by now, so at least one of its batches is measured.
            if each is not own[0] and self.is_late:
                self._leave_out(str(each), each)
                continue
            process = self._process_of(each, is_largest=each is own[-1])
            engine = _Item(
                process=process,
                key=each,
                kind="engine",
                batch_size=each.batch_size,
                is_largest=each is own[-1] or process != str(group),
            )
            if self._warm(engine):
                files = replace(engine, kind="files")
                self._warm(files, num_images=self._window(files))
        if own and self.measured[own[0]].failure is None:
            self.answer(group, self._process_of(own[0], is_largest=len(own) == 1), own[0].batch_size)

    def _open_ceiling(self, name: str, name_on_gpu: str) -> None:
        """Open the matrix products; if they turn out to run on a GPU, open the larger ones instead."""
        try:
            device = self.processes.open(name).info.device
        except AlexDeployError as exc:
            self.measured.setdefault(name, Measured()).failure = exc
            return
        size = ceiling_size(device)
        if size != CPU_SIZE and name_on_gpu in self._jobs:
            self.processes.set_job(name, self._jobs[name_on_gpu])
        self._warm(_Item(process=name, key=name, kind="engine", batch_size=size.batch_size))

    def _process_of(self, configuration: BatchConfiguration, *, is_largest: bool) -> str:
        """The group's process, open for the largest batch; its own if the batch decides shapes, kernels and memory."""
        shared = str(configuration.group)
        info = self.processes.infos[shared]
        if is_largest or not ("cuda" in info.device or info.backend == "openvino"):
            return shared
        name = str(configuration)
        if not self.processes.knows(name):
            self.processes.set_job(name, self._job_of(configuration))
        return name

    def _job_of(self, configuration: BatchConfiguration) -> Job:
        job = self._jobs[str(configuration.group)]
        return msgspec.structs.replace(job, options=replace(job.options, batch_size=configuration.batch_size))

    def _wave(self, item: _Item) -> int:
        """Images that keep every stream busy for one batch."""
        return item.batch_size * self.processes.infos[item.process].num_streams

    def _window(self, item: _Item) -> int:
        """Images that `predict`'s pipeline holds at once."""
        num_decoders = (
            self._jobs[str(item.key.group)].options.num_threads if isinstance(item.key, BatchConfiguration) else None
        )
        return window_size(
            item.batch_size, self.processes.infos[item.process].num_streams, num_decoders or available_processors()
        )

    def _warm(self, item: _Item, num_images: int = 0) -> bool:
        """Run it once without recording the time; return whether it runs."""
        seen = self._of(item)
        try:
            task = Task(kind=item.kind, batch_size=item.batch_size, num_images=num_images)
            done = self.processes.ask(item.process, task)
        except AlexDeployError as exc:
            seen.failure = exc
            return False
        seen.peak_bytes = _most(seen.peak_bytes, done.peak_bytes)
        seen.warm_rate = done.images_per_second
        self._items.append(item)
        return True

    def answer(self, group: Configuration, process: str, batch_size: int) -> None:
        """Request the answers of `group`. Without them agreement is unknown; the measurements do not need them."""
        path = self._folder / "answers.npy"
        num_images = len(self._jobs[str(group)].files)
        task = Task(kind="answers", batch_size=batch_size, num_images=num_images, path=os.fsencode(path))
        try:
            self.processes.ask(process, task)
            self.answers[group] = np.load(path, allow_pickle=False)
        except AlexDeployError as exc:
            self._without_answers.append(f"no answers of {group} to compare: {exc.message}")

    def _measure(self, item: _Item, seconds: float) -> None:
        seen = self._of(item)
        num_images = 0
        if item.kind == "files":
            num_images = self._num_images(item, seen, seconds)
        task = Task(kind=item.kind, batch_size=item.batch_size, seconds=seconds, num_images=num_images)
        # A process that had made room, or failed at something else, is cold again.
        warm_up = msgspec.structs.replace(task, seconds=0.0, num_images=min(num_images, self._wave(item)))
        try:
            done = self.processes.ask(item.process, task, warm_up)
        except AlexDeployError as exc:
            seen.failure = exc
            return
        if item.is_largest:
            seen.peak_bytes = _most(seen.peak_bytes, done.peak_bytes)
        if item.kind == "files":
            seen.file_rates.append(done.images_per_second)
        else:
            rate = done.images_per_second
            seen.slices.append(Slice(batch_seconds=done.batch_seconds, images_per_second=rate))

    def _num_images(self, item: _Item, seen: Measured, seconds: float) -> int:
        """Images for about `seconds`; each stream gets equally many full batches, so that none waits at the end."""
        rate = seen.file_rates[-1] if seen.file_rates else seen.warm_rate
        wave = self._wave(item)
        return wave * max(_LEAST_WAVES, round(rate * seconds / wave))


def _most(*amounts: int | None) -> int | None:
    return max((each for each in amounts if each is not None), default=None)


def ceiling_name(backend: Backend, precision: Precision, *, on_gpu: bool = False) -> str:
    return f"matrix products, {backend} {precision}" + (" on a GPU" if on_gpu else "")
