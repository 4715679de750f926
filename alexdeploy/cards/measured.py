"""The errors on a card: of an evaluation, or what training recorded. Nothing is measured here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from alexdeploy.core.errors import ModelError, StaleArtifactError, UsageError
from alexdeploy.core.metrics import paired_difference
from alexdeploy.core.printable import escape
from alexdeploy.core.reading import MAX_DATA_BYTES, decode_json, read_regular
from alexdeploy.core.spec import ModelSpec
from alexdeploy.core.stores.urls import is_url, printable_url
from alexdeploy.evaluation.results import Evaluation, document
from alexdeploy.evaluation.scoring import ErrorRate, error_rate

NOT_RECORDED = "not recorded"

Artifacts = Mapping[tuple[str, str, int], Set[str]]
"""The SHA-256 of the files that a backend runs in a precision and with a number of views."""

_SPLITS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a model was run. Of an evaluation on several replicas, `backend` has their names joined by "+"."""

    backend: str
    precision: str
    num_views: int

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}, {self.num_views} view{'' if self.num_views == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """In points of the top-1 error, with its 95 % interval, to the `base`; and on how many images answers differ."""

    base: Way
    difference_points: float
    low_points: float
    high_points: float
    num_flips: int
    right_to_wrong: int
    wrong_to_right: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Error:
    """The errors of one way to run the model; `artifact` is the SHA-256 of the file that was run."""

    configuration: Way
    top1: ErrorRate
    top5: ErrorRate
    artifact: str | None = None
    versus: Difference | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Errors of a model on one set of images, called `data`; `by_training`: on the validation images of its training.

    `num_images` is the denominator, with the `num_broken` that could not be read and count as wrong.
    """

    scores: tuple[Error, ...]
    data: str
    num_images: int
    num_broken: int = 0
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str | int] = field(default_factory=dict)
    by_training: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evaluation:
    """What is read of the document of `evaluate --json`."""

    format_version: Literal[1]
    model: str
    contract_sha256: str
    data: str
    num_images: int
    num_broken: int
    scores: tuple[Error, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    machine: dict[str, str | int]
    interrupted: bool


def of_evaluation(evaluation: Evaluation | str, spec: ModelSpec, artifacts: Artifacts) -> Measured:
    """The errors of an evaluation, or of a file with the document of one.

    `artifacts` are the files that the model has for each way to run it. Raises UsageError for another file, figures
    that contradict each other, or an interrupted evaluation; StaleArtifactError for that of another model or of other
    files.
    """
    found = _read(evaluation) if isinstance(evaluation, str) else _convert(document(evaluation))
    told = evaluation if isinstance(evaluation, str) else "the evaluation"
    if found.interrupted or not found.scores:
        raise UsageError(f"{told} was interrupted", hint="Run it to its end.")
    if found.contract_sha256 != spec.contract_sha256:
        raise StaleArtifactError(
            f"{told} is of another model: its spec is {found.contract_sha256[:12]}, this one's "
            f"{spec.contract_sha256[:12]}",
            hint="Evaluate this model: alexdeploy evaluate DATA --json",
        )
    for index, each in enumerate(found.scores):
        way, artifact = each.configuration, each.artifact or ""
        if not _is_run_by(way, set(artifact.split("+")), artifacts):
            raise StaleArtifactError(
                f"{told} has {way} of a file that the model does not have for it: {artifact[:12]}",
                hint="Evaluate the model as it is now: alexdeploy evaluate DATA --json",
            )
        if not _agrees(each, found.scores[:index], found):
            raise UsageError(
                f"{told} was changed: the figures of {way} contradict each other",
                hint="Evaluate again: alexdeploy evaluate DATA --json",
            )
    data = _name_of(found.data)
    return Measured(
        scores=found.scores,
        data=data,
        num_images=found.num_images,
        num_broken=found.num_broken,
        # Paths are of one machine.
        notes=tuple(
            _replace(_replace(note, found.data, data), found.model, base_name(found.model)) for note in found.notes
        ),
        versions=found.versions,
        machine=found.machine,
    )


def _is_run_by(way: Way, artifacts: set[str], known: Artifacts) -> bool:
    """Whether these are files of the model that the way runs: of each of its backends at least one."""
    wanted = [known.get((backend, way.precision, way.num_views), set()) for backend in way.backend.split("+")]
    return all(artifacts & each for each in wanted) and artifacts <= set().union(*wanted)


def _agrees(score: Error, before: Sequence[Error], found: _Evaluation) -> bool:
    """Whether each figure follows from the counts, and the counts from each other and from the scores before."""
    top1, top5, versus = score.top1, score.top5, score.versus
    if any(score.configuration == each.configuration for each in before):
        return False
    if not 0 <= found.num_broken <= top5.num_errors <= top1.num_errors <= found.num_images:
        return False
    for rate in (top1, top5):
        if rate.num_images != found.num_images or not _is_close(rate, error_rate(rate.num_errors, found.num_images)):
            return False
    if versus is None:
        return not before
    base = next((each for each in before if each.configuration == versus.base), None)
    lost, won = versus.right_to_wrong, versus.wrong_to_right
    both_wrong = top1.num_errors - lost
    both_right = found.num_images - both_wrong - lost - won
    if base is None or min(lost, won, both_wrong, both_right) < 0 or base.top1.num_errors != both_wrong + won:
        return False
    if not lost + won <= versus.num_flips <= lost + won + both_wrong:
        return False
    difference, interval = paired_difference(both_wrong, won, lost, both_right)
    points = (versus.difference_points, versus.low_points, versus.high_points)
    expected = (difference, interval.low, interval.high)
    return all(_is_near(one, 100 * other) for one, other in zip(points, expected, strict=True))


def _is_close(rate: ErrorRate, other: ErrorRate) -> bool:
    pairs = zip(dataclasses.astuple(rate), dataclasses.astuple(other), strict=True)
    return all(_is_near(one, two) for one, two in pairs)


def _is_near(one: float, two: float) -> bool:
    # Percent; another processor's arithmetic may differ in the last digits.
    return math.isclose(one, two, rel_tol=0, abs_tol=1e-6)


def _replace(note: str, path: str, name: str) -> str:
    return note.replace(path, name) if len(path) > 1 else note


def of_training(spec: ModelSpec) -> Measured | None:
    """The validation errors in the provenance; None if there are none, as of an imported model."""
    facts = spec.provenance
    num_images = facts.get("num_val")
    scores = []
    for num_views, ending in ((1, ""), (10, "_10_views")):
        rates = [_recorded(facts.get(f"val_{name}_error{ending}"), num_images) for name in ("top1", "top5")]
        if rates[0] is not None and rates[1] is not None:
            way = Way(backend="torch", precision=str(facts.get("precision", "fp32")), num_views=num_views)
            scores.append(Error(configuration=way, top1=rates[0], top5=rates[1]))
    if not scores:
        return None
    versions = {
        name: str(facts[f"{name}_version"])
        for name in ("alexdeploy", "torch", "python", "pillow")
        if facts.get(f"{name}_version") is not None
    }
    return Measured(
        scores=tuple(scores),
        data=data_name(spec) or NOT_RECORDED,
        num_images=scores[0].top1.num_images,
        versions=versions,
        by_training=True,
    )


def data_name(spec: ModelSpec) -> str | None:
    """The last part of the recorded path of the training data: the rest is of one machine."""
    recorded = spec.provenance.get("data")
    found = _name_of(recorded) if isinstance(recorded, str) else NOT_RECORDED
    return None if found == NOT_RECORDED else found


def _name_of(path: str) -> str:
    """What data are called: "not recorded" for a path without a name, such as the working folder."""
    # The query of a URL can be a key.
    found = base_name(printable_url(path) if is_url(path) else path)
    return escape(found) if found.strip(". /") else NOT_RECORDED


def base_name(path: str) -> str:
    """The last part of a path or URL; the last two where that is the name of a split, such as val."""
    *folders, name = path.replace("\\", "/").rstrip("/").split("/")
    return f"{folders[-1]}/{name}" if name in _SPLITS and folders and folders[-1].strip(".") else name or path


def _recorded(fraction: object, num_images: object) -> ErrorRate | None:
    if not isinstance(fraction, int | float) or not isinstance(num_images, int) or num_images < 1:
        return None
    num_errors = round(fraction * num_images)
    # The fraction is one of whole numbers; another one is not of these images.
    if not 0 <= num_errors <= num_images or abs(num_errors / num_images - fraction) > 1e-6:
        return None
    return error_rate(num_errors, num_images)


def _read(path: str) -> _Evaluation:
    try:
        content = read_regular(path, MAX_DATA_BYTES)
    except OSError as exc:
        kind = UsageError if isinstance(exc, FileNotFoundError) else ModelError
        raise kind(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        return decode_json(content, _Evaluation)
    except msgspec.DecodeError as exc:
        raise UsageError(
            f"{path} is not the result of an evaluation: {exc}",
            hint="Make it: alexdeploy evaluate DATA --model MODEL --json > FILE",
        ) from exc


def _convert(values: Any) -> _Evaluation:
    return msgspec.convert(values, _Evaluation)
