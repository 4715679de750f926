"""Classify any number of photographs on a cluster: names go to the actors, rows into numbered parts."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import ray

from alexdeploy.cluster.chunks import Chunk, split
from alexdeploy.cluster.crew import ActorReport, Crew, alive_nodes
from alexdeploy.cluster.parts import Answers, Output, Part
from alexdeploy.cluster.plan import plan_slots
from alexdeploy.cluster.shipping import ship
from alexdeploy.cluster.suspects import Suspects
from alexdeploy.core.arguments import Count, check_fields
from alexdeploy.core.errors import OutputError, UsageError, warn
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.images.sources import Inputs, read_inputs
from alexdeploy.inference.writers import check_format
from alexdeploy.placement.options import PredictOptions

_SAVE_SECONDS = 5.0
"""The longest time between a part and the manifest that has it: a driver that is killed loses that much work."""

_SAVE_SHARE = 20
"""A manifest that takes long to write is written less often: after this many times as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """What to run on the actors, and what to write. Raises UsageError for an invalid value.

    `num_threads` of `predict` is the number of CPUs of an actor; None: one actor for each GPU, or with all CPUs of a
    node. `resume` goes on with an earlier run, whose inputs and options must be the same, `overwrite` replaces it.
    """

    predict: PredictOptions = field(default_factory=PredictOptions)
    kind: Literal["parquet", "jsonl"] = "parquet"
    rows_per_part: Count = 1024
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSummary:
    """`num_kept` of the rows are in parts of an earlier run; `actors` did the others."""

    num_rows: int
    num_errors: int
    num_kept: int
    actors: tuple[ActorReport, ...]


def classify(
    inputs: Inputs | Iterable[str | os.PathLike[str]],
    model: ModelFolder | str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    options: ClusterOptions | None = None,
    *,
    on_begin: Callable[[int], None] = lambda num_kept: None,
    on_part: Callable[[Part], None] = lambda part: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_warning: Callable[[str], None] = warn,
) -> ClusterSummary:
    """Classify image files on the cluster that Ray is connected to: one row per input, in parts in the folder `output`.

    Inputs are those of `predict`, except archives and packed sets; this process lists them while the actors work. A
    part has the rows of up to `rows_per_part` inputs in order, each with its index among all. Files, and an `output`
    that is no bucket, must be there for every node. The chunk of an actor that ends is done by another; an image that
    ends all actors that have it has a row with an error. `on_begin` is called with the number of rows kept, before the
    actors start, `on_part` for each part written, `on_note` for what is worth knowing, such as an actor that was
    replaced, and `on_warning` if processors, libraries or artifacts of the parts differ.

    Raises UsageError for options, inputs or an `output` that do not fit; DeviceError if no actor can start or none is
    left; ModelError, DeviceError or OutputError of an actor. What was complete is kept, for `resume`.
    """
    options = options or ClusterOptions()
    if not ray.is_initialized():
        raise UsageError("Ray is not connected to a cluster", hint='Connect first: ray.init() or ray.init("auto")')
    check_format(options.kind)
    given = inputs if isinstance(inputs, Inputs) else read_inputs(inputs)
    folder = find_model(model)
    target = Output(output, options.kind)
    slots = plan_slots(alive_nodes(), options.predict)
    shipped = ship(folder)
    asked = options.predict
    settings: dict[str, str | int] = {
        "model": folder.spec().name,
        "model_sha256": shipped.sha256,
        "precision": asked.precision,
        "num_views": asked.num_views,
        "backend": asked.backend or "best",
        "batch_size": asked.batch_size,
        "top_k": asked.top_k,
        "rows_per_part": options.rows_per_part,
        "format": options.kind,
    }
    kept = target.begin(settings, resume=options.resume, overwrite=options.overwrite)
    on_begin(sum(part.num_rows for part in kept))
    ledger = _Ledger(target, settings, kept, on_warning)
    chunks = _Remaining(split(given, options.rows_per_part), {part.number: part for part in kept}, target.name)
    first = next(chunks, None)
    reports: tuple[ActorReport, ...] = ()
    if first is not None:
        with ledger.saved(), Crew(slots, shipped, asked, target, on_note) as crew:
            _work(crew, first, chunks, ledger, on_part)
            reports = crew.reports
    chunks.check_end()
    ledger.save(is_complete=True)
    target.tidy()
    if first is not None:
        ledger.tell_of_mixture()
    return ClusterSummary(
        num_rows=sum(part.num_rows for part in ledger.parts),
        num_errors=sum(part.num_errors for part in ledger.parts),
        num_kept=sum(part.num_rows for part in kept),
        actors=reports,
    )


def _work(
    crew: Crew,
    first: Chunk,
    chunks: Iterator[Chunk],
    ledger: _Ledger,
    on_part: Callable[[Part], None],
) -> None:
    suspects = Suspects()
    following = itertools.chain([first], chunks)
    waiting: deque[Chunk] = deque()
    is_listed = False
    while True:
        # While a suspect chunk waits for an actor of its own, no other is begun.
        while crew.has_idle if waiting else crew.has_room and not is_listed:
            chunk = waiting.popleft() if waiting else next(following, None)
            if chunk is None:
                is_listed = True
            else:
                crew.give(chunk)
        if is_listed and not waiting and crew.is_idle:
            return
        done, lost = crew.wait(1.0)
        for chunk, part in done:
            waiting += suspects.passed(chunk)
            if part is not None:
                ledger.add(part)
                on_part(part)
        for chunk, reason in lost:
            waiting += suspects.lost(chunk, reason)


class _Remaining:
    """The chunks without those that are done. Raises UsageError where the inputs are not those of the earlier run."""

    def __init__(self, chunks: Iterator[Chunk], done: dict[int, Part], name: str) -> None:
        self._chunks, self._done, self._name = chunks, done, name

    def __iter__(self) -> _Remaining:
        return self

    def __next__(self) -> Chunk:
        for chunk in self._chunks:
            part = self._done.pop(chunk.number, None)
            if part is None:
                return chunk
            if (part.inputs, part.num_rows) != (chunk.digest, len(chunk.sources)):
                raise self._error(f"part {chunk.number} there has others than from {chunk.sources[0].name!r} on")
        raise StopIteration

    def check_end(self) -> None:
        """Raise UsageError if the earlier run has parts beyond the end of the inputs."""
        if self._done:
            raise self._error(f"they end before part {min(self._done)}")

    def _error(self, reason: str) -> UsageError:
        return UsageError(
            f"the inputs are not those that {self._name} was begun with: {reason}",
            hint="Give the same inputs, or name another folder.",
        )


class _Ledger:
    """The parts so far, and when the manifest was written."""

    def __init__(
        self, output: Output, settings: dict[str, str | int], parts: list[Part], on_warning: Callable[[str], None]
    ) -> None:
        self.parts = list(parts)
        self._output, self._settings, self._on_warning = output, settings, on_warning
        self._answers = Answers()
        for part in parts:
            self._answers.add(part)
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0
        self.tell_of_mixture()

    def add(self, part: Part) -> None:
        """Raises OutputError if the part was written where this process does not see it."""
        name = self._output.part_name(part.number)
        if not self._output.has(name):
            raise OutputError(
                f"{name} was written on {part.node}, and is not in {self._output.name} here",
                hint="Name a folder that all nodes share, or a bucket: s3://bucket/rows/",
            )
        self.parts.append(part)
        if self._answers.add(part):
            self.tell_of_mixture()
        if time.monotonic() - self._saved_at > max(_SAVE_SECONDS, _SAVE_SHARE * self._save_seconds):
            self.save()

    def tell_of_mixture(self) -> None:
        if (mixture := self._answers.mixture()) is not None:
            self._on_warning(mixture)

    def save(self, *, is_complete: bool = False) -> None:
        began = time.monotonic()
        self._output.save(self._settings, self.parts, is_complete=is_complete)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - began

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Write the manifest when the block fails or is interrupted."""
        try:
            yield
        except BaseException:
            with suppress(OutputError):
                self.save()
            raise
