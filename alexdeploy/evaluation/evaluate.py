"""The error of a model on labelled images, in every precision, number of views and backend asked for, in one pass."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from alexdeploy.core.arguments import Count, check_argument
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.events import warn_of_notices
from alexdeploy.core.interrupts import be_patient, deferred_interrupts
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.packages import versions_for_report
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import Backend, Configuration, NumViews
from alexdeploy.evaluation.multi_engine import SideBySide
from alexdeploy.evaluation.scoring import Answer, Score, Tally, answer_of
from alexdeploy.images.labelled import LabelledSources, read_labelled
from alexdeploy.images.sources import Source
from alexdeploy.inference.pipeline import Outcome, PipelineOptions, run_pipeline
from alexdeploy.placement.options import BATCH_SIZE, DeviceOptions
from alexdeploy.placement.place import Placed, check_devices, place


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions(DeviceOptions):
    """Every precision runs with every number of views on every backend.

    `backends` None: for each precision the best that is installed and fits the devices. `labels` is a list of names and
    labels in place of class folders, of which those in `exclude` are left out. `batch_size` counts images, not views.
    """

    precisions: tuple[Precision, ...] = ("fp32",)
    num_views: tuple[NumViews, ...] = (1, 10)
    backends: tuple[Backend, ...] | None = None
    labels: str | os.PathLike[str] | None = None
    exclude: tuple[str, ...] = ()
    batch_size: Count = BATCH_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything is open. `notes` say what of it a user might not expect.

    `artifacts` are the SHA-256 of what the configurations run, `batch_size` images go through all of them together.
    """

    model: str
    num_images: int
    contract_sha256: str
    classes: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    artifacts: tuple[str, ...]
    batch_size: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageResult:
    """One image: an answer for each configuration, or why there are none. `label` is the index of its class."""

    index: int
    source: str
    label: int
    answers: tuple[Answer, ...] = ()
    error: str | None = None


Event = Plan | ImageResult
"""The plan comes first, when everything is open, and then each image, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenImage:
    """An image that could not be read, which counts as wrong in every configuration."""

    source: str
    label: int
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """All that was found. Labels are indices into `classes`.

    A score is held against the first with the same number of views; the first of a number of views against the first
    of all.

    `num_images` is the denominator of every error and has the `broken` images in it; `num_unlabelled` images lie
    beside them and are not.
    """

    format_version: int = 1
    model: str
    name: str
    contract_sha256: str
    data: str
    labels: str | None
    num_images: int
    num_broken: int
    num_unlabelled: int
    classes: tuple[str, ...]
    scores: tuple[Score, ...]
    broken: tuple[BrokenImage, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    machine: dict[str, str | int]
    interrupted: bool = False
    """It was ended early: everything is about the first `num_images` images alone."""


def describe_exceptions(found: Evaluation) -> str:
    """Which images could not be read and which have no label, to follow how many there are; empty if there are none."""
    text = ""
    if found.num_broken:
        counts = "counts" if found.num_broken == 1 else "count"
        text += f", {found.num_broken:,} of them could not be read and {counts} as wrong"
    if found.num_unlabelled:
        text += f"; {found.num_unlabelled:,} more without a label do not count"
    return text


def evaluate(
    model: ModelFolder | str | os.PathLike[str] | None,
    data: str | os.PathLike[str],
    options: EvaluateOptions | None = None,
    *,
    on_event: Callable[[Event], None] = warn_of_notices,
    kept: Callable[[Plan], Iterable[ImageResult]] = lambda plan: (),
) -> Evaluation:
    """Classify the labelled images of `data` in all configurations at once, decoding each image once.

    `model` is a folder or what `find_model` takes. `kept` gives the results of the first images, whole batches of them,
    where an earlier evaluation has them. A KeyboardInterrupt ends it: what was found so far is returned, marked as
    interrupted. A combination that no backend can run is left out with a note. No answer depends on the devices:
    each engine gets the same batches. Raises UsageError, ModelError, DeviceError, and DataError where the labels
    cannot be used.
    """
    folder = find_model(model)
    data = check_argument("data", data, str)
    options = check_argument("options", options or EvaluateOptions(), EvaluateOptions)
    check_devices(options)
    spec = folder.spec()
    labelled = read_labelled(data, spec.classes, options.labels, exclude=options.exclude)
    with ExitStack() as stack:
        opened, told = _open_engines(folder, options, stack)
        engines = [placed.engine for placed in opened]
        notes = (*_notes_on_training(spec, labelled), *labelled.notes, *told)
        configurations = tuple(engine.info.configuration for engine in engines)
        num_threads = options.num_threads or available_processors()
        side = stack.enter_context(SideBySide(engines, num_parts=num_threads))
        plan = Plan(
            model=spec.name,
            num_images=len(labelled.examples),
            contract_sha256=spec.contract_sha256,
            classes=spec.classes,
            configurations=configurations,
            artifacts=tuple(engine.info.artifact for engine in engines),
            batch_size=side.info.batch_size,
            notes=notes,
        )
        on_event(plan)
        counts = _Counts(spec.num_classes, configurations)
        sources = labelled.sources()
        for image in kept(plan):
            _check_kept(image, counts.num_images, next(sources, None), labelled, spec.classes)
            counts.add(image)
        num_kept, num_kept_broken = counts.num_images, len(counts.broken)

        def cancel() -> None:
            for placed in opened:
                placed.cancel()

        pipeline = PipelineOptions(
            resize=spec.preprocessing.resize,
            num_decoders=num_threads,
            first_index=num_kept,
            cancel=cancel,
        )
        be_patient()
        interrupted = False
        try:
            with closing(run_pipeline(side, sources, pipeline)) as outcomes:
                for image in _results(outcomes, labelled, configurations):
                    # All or nothing, so that no configuration has an image more than another.
                    with deferred_interrupts():
                        counts.add(image)
                        on_event(image)
        except KeyboardInterrupt:
            if not counts.num_images:
                raise
            interrupted = True
    if interrupted:
        note = f"stopped after {counts.num_images:,} of {plan.num_images:,} images: the figures are of these alone"
        notes = (*notes, note)
    num_timed = counts.num_images - num_kept - (len(counts.broken) - num_kept_broken)
    scores = tuple(
        tally.score(
            configuration,
            artifact=artifact,
            names=spec.classes,
            seconds=seconds,
            base=None if base is None else configurations[base],
            num_timed=num_timed,
        )
        for tally, configuration, artifact, seconds, base in zip(
            counts.tallies, configurations, plan.artifacts, side.seconds, counts.bases, strict=True
        )
    )
    return Evaluation(
        model=str(folder.path),
        name=spec.name,
        contract_sha256=spec.contract_sha256,
        data=labelled.root,
        labels=None if options.labels is None else os.fspath(options.labels),
        num_images=counts.num_images,
        num_broken=len(counts.broken),
        num_unlabelled=labelled.num_unlabelled,
        classes=spec.classes,
        scores=scores,
        broken=tuple(counts.broken),
        notes=notes,
        versions=versions_for_report(each.backend for each in configurations),
        machine={
            "platform": platform.platform(),
            "architecture": platform.machine(),
            "processors": available_processors(),
            "threads": num_threads,
        },
        interrupted=interrupted,
    )


def _open_engines(folder: ModelFolder, options: EvaluateOptions, stack: ExitStack) -> tuple[list[Placed], list[str]]:
    """Open an engine for each combination, and notes; those that cannot exist are left out with one."""
    opened: list[Placed] = []
    notes: list[str] = []
    skipped: list[UsageError] = []
    for precision, num_views in itertools.product(options.precisions, options.num_views):
        for backend in options.backends or (None,):
            try:
                placed = place(folder, options.predict_options(backend, precision, num_views, options.batch_size))
            except UsageError as exc:
                if backend is None:
                    raise
                skipped.append(exc)
                notes.append(f"{backend} {precision} is left out: {exc.message}")
                continue
            stack.enter_context(placed.engine)
            opened.append(placed)
            notes += placed.notes
    notes = list(dict.fromkeys(notes))
    if not opened:
        hint = skipped[0].hint if skipped else None
        raise UsageError("nothing is left to evaluate: " + "; ".join(notes), hint=hint)
    return opened, notes


def choose_bases(configurations: Sequence[Configuration]) -> tuple[int | None, ...]:
    """For each configuration the one before it that it is held against; None for the first."""
    bases: list[int | None] = []
    for number, configuration in enumerate(configurations):
        views = [each.num_views for each in configurations[:number]]
        same = views.index(configuration.num_views) if configuration.num_views in views else 0
        bases.append(same if number else None)
    return tuple(bases)


class _Counts:
    """What is counted of each image, in all configurations."""

    def __init__(self, num_classes: int, configurations: Sequence[Configuration]) -> None:
        self.tallies = [Tally(num_classes) for _ in configurations]
        self.bases = choose_bases(configurations)
        self.broken: list[BrokenImage] = []
        self.num_images = 0

    def add(self, image: ImageResult) -> None:
        self.num_images += 1
        if image.error is not None:
            self.broken.append(BrokenImage(source=image.source, label=image.label, error=image.error))
            for tally in self.tallies:
                tally.add_broken(image.label)
            return
        for tally, base, answer in zip(self.tallies, self.bases, image.answers, strict=True):
            tally.count(image.label, answer, None if base is None else image.answers[base])


def _check_kept(
    image: ImageResult, index: int, source: Source | None, labelled: LabelledSources, classes: Sequence[str]
) -> None:
    now = None if source is None else (index, source.name, labelled.examples[index][1])
    if (image.index, image.source, image.label) != now:
        found = f"image {index} was {image.source!r}, now it is {'nothing' if source is None else repr(source.name)}"
        if now is not None and now[1] == image.source:
            found = f"the label of {image.source!r} was {classes[image.label]!r}, now it is {classes[now[2]]!r}"
        raise UsageError(
            f"the interrupted evaluation was of other images or labels: {found}",
            hint="Give the same data and labels, or leave out --resume after deleting the .partial file.",
        )


def _results(
    outcomes: Iterable[Outcome], labelled: LabelledSources, configurations: tuple[Configuration, ...]
) -> Iterator[ImageResult]:
    for outcome in outcomes:
        label = labelled.examples[outcome.index][1]
        if outcome.probabilities is None:
            yield ImageResult(index=outcome.index, source=outcome.source, label=label, error=outcome.error)
            continue
        for configuration, probabilities in zip(configurations, outcome.probabilities, strict=True):
            if not np.isfinite(probabilities).all():
                raise ModelError(
                    f"{configuration} gives probabilities that are not finite for {outcome.source}",
                    hint="Leave it out of --precision, or export its graph again.",
                )
        answers = tuple(answer_of(label, probabilities) for probabilities in outcome.probabilities)
        yield ImageResult(index=outcome.index, source=outcome.source, label=label, answers=answers)


def _notes_on_training(spec: ModelSpec, labelled: LabelledSources) -> tuple[str, ...]:
    """Say so where the images are the ones that the model learned from, as far as its provenance tells."""
    trained_on = spec.provenance.get("data")
    if not isinstance(trained_on, str):
        return ()
    root = os.path.realpath(labelled.root)
    if root in (os.path.realpath(trained_on), os.path.realpath(os.path.join(trained_on, "train"))):
        return (f"{labelled.root} is what {spec.name} was trained on: on other photographs it will make more errors",)
    return ()
