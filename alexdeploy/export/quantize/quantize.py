"""From an FP32 graph and real images to an INT8 graph within the accuracy budget: ranges, ranking, search."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.arguments import NotNegative, check_fields, check_layer_names
from alexdeploy.core.errors import DataError, ImageError, InputError, ModelError, UsageError
from alexdeploy.core.events import Notice, Status, warn_of_notices
from alexdeploy.core.files import sha256_bytes
from alexdeploy.core.metrics import wilson_interval
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import CalibrationRecipe, load_calibration
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec
from alexdeploy.export.events import Event
from alexdeploy.export.quantize.calibrate import FEWEST_IMAGES, choose_images, measure, read_photographs
from alexdeploy.export.quantize.int8 import quantizable_layers, to_int8
from alexdeploy.export.quantize.sensitivity import (
    Choice,
    Evaluator,
    LayerCost,
    Trials,
    layer_macs,
    rank_layers,
    search,
)
from alexdeploy.graphs import files as graph_files
from alexdeploy.graphs.edit import WeightBits
from alexdeploy.graphs.ranges import Ranges, check_owner, check_ranges, read_ranges
from alexdeploy.images.decode import decode
from alexdeploy.images.labelled import read_labelled

DEFAULT_MAX_DROP = 1.0
"""Default budget: percentage points of answers that may change; always at least one image."""

MOST_IMAGES = 2000
"""Most images that a budget is measured on: they are kept decoded in memory, 200 kB each."""

_LEAST_SAVING = 0.1
"""Least fraction by which an INT8 graph must be smaller than FP32's, or of the work that it must do in INT8. With less,
it could not be even 1.11 times as fast if INT8 took no time at all."""

_COUNTS = range(1, 10_000_001)
"""Range of the search for the number of images that a budget needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How the budget was met. `ranking` is empty if all layers in INT8 met the default budget.

    `measured_on`: the images that the drop was measured on; `num_calibrated` of them were also used for the ranges.
    """

    budget: float
    measured_on: str
    num_calibrated: int
    choice: Choice
    keep_asked: tuple[str, ...]
    ranking: tuple[LayerCost, ...]
    ranges_path: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """The graph, the ranges it was made with, and how it was chosen."""

    model: onnx.ModelProto
    ranges: Ranges
    report: Quantization


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """`max_drop` in percentage points, None for the default; measured on `labelled` data, else as changed answers.

    Layers named in `keep` always stay FP32.
    """

    max_drop: NotNegative | None = None
    labelled: str | None = None
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def quantize(
    folder: ModelFolder,
    spec: ModelSpec,
    graph: graph_files.Graph,
    calibration_images: str | None,
    budget: Budget,
    *,
    weight_bits: WeightBits = 8,
    on_event: Callable[[Event], None] = warn_of_notices,
) -> Quantized:
    """Quantize `graph` as far as the budget allows.

    Ranges are measured on `calibration_images`; None uses the ranges on disk. Raises StaleArtifactError for ranges of
    another network, ParityError if the budget cannot be met, ModelError if a graph that meets it saves nothing,
    UsageError for a name in `keep` that is not a layer with weights.
    """
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        on_event(Notice(message=message))

    layers = quantizable_layers(graph.model)
    check_kept_layers(budget.keep, layers)
    layers = tuple(name for name in layers if name not in budget.keep)
    ranges = _ranges(folder, spec, graph, calibration_images, on_event, warn)
    thresholds = {name: tensor.threshold for name, tensor in ranges.tensors.items()}
    limit = DEFAULT_MAX_DROP if budget.max_drop is None else budget.max_drop
    found = _images(spec, ranges, budget, limit)
    images = found.pixels
    what = "changed answers" if found.labels is None else "top-1 error"
    used = f"{found.num_calibrated} of them also used to measure the ranges"
    on_event(Status(message=f"measuring {what} on {len(images)} images of {found.origin}, {used}"))
    evaluator = Evaluator(graph.model, spec, folder.mean_image(spec), ranges.num_views, images, found.labels)
    if (note := _too_few(evaluator, limit)) is not None:
        warn(note)

    def convert(keep: Collection[str]) -> onnx.ModelProto:
        return to_int8(graph.model, thresholds, spec.preprocessing, {*keep, *budget.keep}, weight_bits)

    trials = Trials(lambda keep: evaluator.measure(convert(keep)), on_event)
    max_drop = max(limit, 100 / len(images)) if budget.max_drop is None else limit
    macs = layer_macs(graph.model)
    trials.expect(1 if budget.max_drop is None else 1 + len(layers))
    whole = trials(())
    ranking: tuple[LayerCost, ...] = ()
    choice = Choice(keep=(), drop=whole, num_trials=1)
    if budget.max_drop is not None or whole.points > max_drop:
        # Bisecting all mixtures of the layers takes about as many measurements as there are layers.
        trials.expect(len(layers) * (1 if whole.points <= max_drop else 2))
        ranking = rank_layers(layers, macs, trials)
        choice = search(ranking, whole, max_drop, trials, trials.expect)
    model = convert(choice.keep)
    _check_saving(graph.model, model, macs, {*choice.keep, *budget.keep})
    report = Quantization(
        budget=max_drop,
        measured_on=found.origin,
        num_calibrated=found.num_calibrated,
        choice=choice,
        keep_asked=budget.keep,
        ranking=ranking,
        ranges_path=folder.ranges_path.as_posix(),
        warnings=tuple(warnings),
    )
    return Quantized(model=model, ranges=ranges, report=report)


def check_kept_layers(keep: Collection[str], layers: Collection[str]) -> None:
    """Raise UsageError unless `keep` is a proper subset of the `layers` with weights."""
    check_layer_names(keep, layers)
    if set(keep) == set(layers):
        raise UsageError(
            "every layer would stay in FP32, and none is left for INT8", hint="Leave out --keep or --int8."
        )


def _check_saving(fp32: onnx.ModelProto, int8: onnx.ModelProto, macs: Mapping[str, int], keep: Collection[str]) -> None:
    """Raise ModelError if the INT8 graph is hardly smaller than FP32's and does hardly any work in INT8."""
    size = int8.ByteSize() / fp32.ByteSize()
    work = 1 - sum(macs[name] for name in keep) / max(sum(macs.values()), 1)
    if size > 1 - _LEAST_SAVING and work < _LEAST_SAVING:
        raise ModelError(
            f"INT8 saves nothing here: {len(keep)} of {len(macs)} layers stay in FP32, the file has {size:.0%} of the "
            f"size of FP32's, and {work:.1%} of the multiply-accumulates are in INT8",
            hint="No INT8 file was written. Use FP16 (alexdeploy export --fp16), keep fewer layers with --keep, "
            "or allow more with --max-drop.",
        )


def _too_few(evaluator: Evaluator, limit: float) -> str | None:
    """The warning if there are too few images to show that even a graph that changes nothing stays within `limit`."""
    count, bound = evaluator.num_images, evaluator.least_bound()
    if bound > limit:
        fewest = _fewest(evaluator.least_bound, limit)
        hint = "no number of images can" if fewest is None else f"give at least {fewest:,}"
        return (
            f"{count} images are too few to show a drop of {limit:g} points or less: where no answer changes, the "
            f"95 % interval still reaches to {bound:.2g}; {hint}"
        )
    if count < FEWEST_IMAGES:
        return f"{count} images are few to evaluate a graph with; give at least {FEWEST_IMAGES}"
    return None


def _fewest(bound: Callable[[int], float], limit: float) -> int | None:
    """The smallest number of images for which `bound`, which decreases with it, is at most `limit`."""
    index = bisect.bisect_left(_COUNTS, True, key=lambda count: bound(count) <= limit)
    return _COUNTS[index] if index < len(_COUNTS) else None


def _ranges(
    folder: ModelFolder,
    spec: ModelSpec,
    graph: graph_files.Graph,
    images: str | None,
    on_event: Callable[[Event], None],
    on_warning: Callable[[str], None],
) -> Ranges:
    path = folder.ranges_path
    if images is None:
        ranges = read_ranges(path, folder.path.as_posix())
        check_ranges(path, ranges, graph.network_sha256, spec.contract_sha256)
        found = f"ranges of {path}: {ranges.num_images} images of {ranges.images_from}, method {ranges.method}"
        on_event(Status(message=found))
        return ranges
    check_owner(path, folder.path)
    on_event(Status(message=f"measuring ranges on images of {images}"))
    ranges = measure(folder, spec, graph, images, load_calibration(), on_event)
    on_event(Status(message=f"ranges of {ranges.num_images} images, method {ranges.method}"))
    for warning in (*ranges.warnings, *(f"{name} was left out: {why}" for name, why in ranges.skipped.items())):
        on_warning(warning)
    return ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class _Images:
    """The images that a drop is measured on: uint8 [N, 256, 256, 3], their labels if any, and their source.

    The ranges were measured on `num_calibrated` of them.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    origin: str
    num_calibrated: int


def _images(spec: ModelSpec, ranges: Ranges, budget: Budget, limit: float) -> _Images:
    """Labelled images if the budget names them; else images that the ranges were not measured on, if there are enough.

    Enough means as many as can show that the limit is met, or as many as the ranges were measured on.
    """
    if budget.labelled is not None:
        return _labelled(spec, ranges, budget.labelled)
    names = [image.name for image in ranges.images]
    fewest = _fewest(lambda count: 100 * wilson_interval(0, count).high, limit) or MOST_IMAGES
    others = _others(ranges, min(max(fewest, len(names)), MOST_IMAGES))
    if len(others) >= min(fewest, len(names)):
        held_out = _decoded(spec, ranges, others)
        if len(held_out.pixels) >= min(fewest, len(names)):
            return held_out
    found = _decoded(spec, ranges, names[:: -(-len(names) // MOST_IMAGES)])
    if not len(found.pixels):
        raise InputError(
            f"the images that the ranges were measured on are not at {ranges.images_from}, so that nothing tells "
            "what INT8 costs",
            hint=f"Measure ranges on images that are here: {ranges.calibrate_command}\n"
            "or name labelled ones: --labelled DATA",
        )
    return found


def _others(ranges: Ranges, count: int) -> list[str]:
    """Names of at most `count` images from the same source as the ranges' images: the next in the seeded order."""
    used = {image.name for image in ranges.images} | set(ranges.skipped)
    recipe = CalibrationRecipe(num_images=len(used) + count, seed=ranges.seed, exclude=ranges.exclude)
    try:
        names, _ = choose_images(ranges.images_from, recipe)
    except InputError:
        return []
    return [name for name in names if name not in used][:count]


def _decoded(spec: ModelSpec, ranges: Ranges, names: list[str]) -> _Images:
    """The readable images among `names`. A copy of an image that the ranges were measured on counts as that image."""
    seen = {image.sha256 for image in ranges.images}
    pixels = np.empty((len(names), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    count = num_calibrated = 0
    for count, photograph in enumerate(read_photographs(ranges.images_from, names, spec, {}), start=1):
        pixels[count - 1] = photograph.pixels
        num_calibrated += photograph.sha256 in seen
    return _Images(pixels=pixels[:count], labels=None, origin=ranges.images_from, num_calibrated=num_calibrated)


def _labelled(spec: ModelSpec, ranges: Ranges, data: str) -> _Images:
    """At most MOST_IMAGES images, spaced evenly over `data`. Raises DataError for an unreadable one."""
    found = read_labelled(data, spec.classes)
    stride = -(-len(found.examples) // MOST_IMAGES)
    chosen = list(zip(found.sources(), found.examples, strict=True))[::stride]
    seen = {image.sha256 for image in ranges.images}
    pixels = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    num_calibrated = 0
    for number, (source, _) in enumerate(chosen):
        try:
            content = source.read(spec.preprocessing.resize)
            pixels[number] = decode(content, spec.preprocessing.resize)
        except ImageError as exc:
            raise DataError(
                f"{source.name}: {exc.message}", hint="A budget is measured on images that can be read."
            ) from exc
        num_calibrated += sha256_bytes(content) in seen
    labels = np.array([example.label for _, example in chosen])
    return _Images(pixels=pixels, labels=labels, origin=data, num_calibrated=num_calibrated)
