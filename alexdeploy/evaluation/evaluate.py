"""A model's error on labelled images, for every requested precision, number of views and backend, in one pass."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

import numpy as np

from alexdeploy.core.arguments import Count, check_argument
from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, UsageError
from alexdeploy.core.events import warn_of_notices
from alexdeploy.core.interrupts import be_patient, deferred_interrupts
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.packages import versions_for_report
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.core.stores.urls import printable_url
from alexdeploy.engines.base import Backend, Configuration, NumViews
from alexdeploy.evaluation.examples import Candidates, read_thumbnails
from alexdeploy.evaluation.multi_engine import SideBySide
from alexdeploy.evaluation.results import BrokenImage, Evaluation, Event, ImageResult, Plan
from alexdeploy.evaluation.scoring import Score, Tally, answer_of
from alexdeploy.images.folder import VAL_NAMES
from alexdeploy.images.labelled import LabelledSources, read_labelled
from alexdeploy.images.sources import Source
from alexdeploy.inference.pipeline import Outcome, PipelineOptions, run_pipeline
from alexdeploy.placement.options import BATCH_SIZE, DeviceOptions
from alexdeploy.placement.place import Placed, check_devices, place


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions(DeviceOptions):
    """Every precision runs with every number of views on every backend.

    `backends` None: for each precision the best one that is installed and fits the devices. `labels` is a list of names
    and labels to use instead of class folders; images listed in `exclude` are skipped. `batch_size` counts images, not
    views. `thumbnails` reads the examples again in the end, for a page.
    """

    precisions: tuple[Precision, ...] = ("fp32",)
    num_views: tuple[NumViews, ...] = (1, 10)
    backends: tuple[Backend, ...] | None = None
    labels: str | os.PathLike[str] | None = None
    exclude: tuple[str, ...] = ()
    batch_size: Count = BATCH_SIZE
    thumbnails: bool = False


def evaluate(
    model: ModelFolder | str | os.PathLike[str] | None,
    data: str | os.PathLike[str],
    options: EvaluateOptions | None = None,
    *,
    on_event: Callable[[Event], None] = warn_of_notices,
    kept: Callable[[Plan], Iterable[ImageResult]] = lambda plan: (),
) -> Evaluation:
    """Classify the labelled images of `data` in all configurations at once, decoding each image once.

    `model` is a folder or anything `find_model` accepts. `kept` yields the results of the first images, in whole
    batches, if an earlier evaluation has them. A KeyboardInterrupt stops the evaluation: the results so far are
    returned, marked as interrupted. A combination that cannot run here is skipped with a note if another one can.
    Answers do not depend on the devices: each engine gets the same batches. Raises UsageError, ModelError,
    DeviceError, and DataError if the labels cannot be used.
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
                    # All or nothing, so that every configuration has the same number of images.
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
    scores = counts.scores(plan, side.seconds, num_timed)
    examples = counts.candidates.choose(scores)
    thumbnails: dict[int, bytes] = {}
    if options.thumbnails and not interrupted:
        try:
            thumbnails = read_thumbnails(labelled.sources(), examples.indices, spec, num_threads)
        except KeyboardInterrupt:
            interrupted = True
            notes = (*notes, "stopped when photographs were read again to be shown: the figures are of all images")
    return Evaluation(
        model=str(folder.path),
        name=spec.name,
        contract_sha256=spec.contract_sha256,
        data=printable_url(labelled.root),
        labels=None if options.labels is None else os.fspath(options.labels),
        num_images=counts.num_images,
        num_broken=len(counts.broken),
        num_unlabelled=labelled.num_unlabelled,
        classes=spec.classes,
        scores=scores,
        examples=examples,
        broken=tuple(counts.broken),
        notes=notes,
        versions=versions_for_report(name for each in configurations for name in each.backend.split("+")),
        machine={
            "platform": platform.platform(),
            "architecture": platform.machine(),
            "processors": available_processors(),
            "threads": num_threads,
        },
        interrupted=interrupted,
        thumbnails=thumbnails,
    )


def _open_engines(folder: ModelFolder, options: EvaluateOptions, stack: ExitStack) -> tuple[list[Placed], list[str]]:
    """Open an engine for each combination. Combinations that cannot run are skipped, each with a note.

    If none is left, raises an error of the class of the first one's. Too little memory is an error at once.
    """
    opened: list[Placed] = []
    notes: list[str] = []
    skipped: list[UsageError | DeviceError] = []
    for precision, num_views in itertools.product(options.precisions, options.num_views):
        for backend in options.backends or (None,):
            try:
                placed = place(folder, options.predict_options(backend, precision, num_views, options.batch_size))
            except (UsageError, DeviceError) as exc:
                if backend is None or isinstance(exc, DeviceMemoryError):
                    raise
                skipped.append(exc)
                notes.append(f"{backend} {precision} is left out: {exc.message}")
                continue
            stack.enter_context(placed.engine)
            opened.append(placed)
            notes += placed.notes
    notes = list(dict.fromkeys(notes))
    if not opened:
        error, hint = (type(skipped[0]), skipped[0].hint) if skipped else (UsageError, None)
        raise error("nothing is left to evaluate: " + "; ".join(notes), hint=hint)
    return opened, notes


def choose_bases(configurations: Sequence[Configuration]) -> tuple[int | None, ...]:
    """For each configuration the earlier one that it is compared with; None for the first."""
    bases: list[int | None] = []
    for number, configuration in enumerate(configurations):
        views = [each.num_views for each in configurations[:number]]
        same = views.index(configuration.num_views) if configuration.num_views in views else 0
        bases.append(same if number else None)
    return tuple(bases)


class _Counts:
    """Counts over images, for all configurations."""

    def __init__(self, num_classes: int, configurations: Sequence[Configuration]) -> None:
        self.tallies = [Tally(num_classes) for _ in configurations]
        self.bases = choose_bases(configurations)
        self.candidates = Candidates(self.bases)
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
        self.candidates.add(image.index, image.source, image.label, image.answers)

    def scores(self, plan: Plan, seconds: Sequence[float], num_timed: int) -> tuple[Score, ...]:
        """The figures so far; each engine took `seconds` for `num_timed` images."""
        return tuple(
            tally.score(
                configuration,
                artifact=artifact,
                names=plan.classes,
                seconds=taken,
                base=None if base is None else plan.configurations[base],
                num_timed=num_timed,
            )
            for tally, configuration, artifact, taken, base in zip(
                self.tallies, plan.configurations, plan.artifacts, seconds, self.bases, strict=True
            )
        )


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
            hint="Give the same data and labels, or delete the .partial file and start over, without resuming.",
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
    """A note if training used the images, for the weights or to choose the epoch, as far as the provenance shows."""
    trained_on = spec.provenance.get("data")
    if not isinstance(trained_on, str) or "\0" in trained_on:
        return ()
    root = os.path.realpath(labelled.root)
    if root in (os.path.realpath(trained_on), os.path.realpath(os.path.join(trained_on, "train"))):
        return (f"{labelled.root} is what {spec.name} was trained on: on other photographs it will make more errors",)
    beside: list[str] = []
    with suppress(OSError):
        beside = sorted(os.listdir(trained_on))
    found = [os.path.join(trained_on, entry) for name in VAL_NAMES for entry in beside if entry.casefold() == name]
    if root in map(os.path.realpath, found[:1]):
        return (f"{labelled.root} chose the epoch of {spec.name}: on other photographs it may make more errors",)
    return ()
