"""From an FP32 graph and real images to the INT8 graph that keeps the answers: ranges, ranking, search."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import DataError, ImageError, InputError, UsageError
from alexdeploy.core.recipe import load_calibration
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec
from alexdeploy.export import graphs
from alexdeploy.export.calibrate import FEWEST_IMAGES, measure, read_photographs
from alexdeploy.export.int8 import quantizable_layers, to_int8
from alexdeploy.export.ranges import Ranges, check_owner, check_ranges, read_ranges
from alexdeploy.export.sensitivity import Choice, Drop, Judge, LayerCost, layer_macs, rank_layers, search
from alexdeploy.images.decode import decode
from alexdeploy.images.labelled import read_labelled

DEFAULT_MAX_DROP = 1.0
"""Percentage points of answers that may change where the user names no budget; always at least one image."""

MOST_IMAGES = 2000
"""Images that a budget is measured on, evenly from all: they are held decoded, 200 kB each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """What was done to hold the budget. `ranking` is empty where all layers in INT8 held a budget nobody named."""

    budget: float
    measured_on: str
    has_labels: bool
    choice: Choice
    keep_asked: tuple[str, ...]
    ranking: tuple[LayerCost, ...]
    ranges_path: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """The graph, the ranges that it comes from, and how it was chosen."""

    model: onnx.ModelProto
    ranges: Ranges
    report: Quantization


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """`max_drop` in percentage points, None for the default; measured on `labelled` data, else as changed answers.

    Layers named in `keep` stay FP32 whatever they would cost.
    """

    max_drop: float | None = None
    labelled: str | None = None
    keep: tuple[str, ...] = ()


def quantize(
    folder: ModelFolder,
    spec: ModelSpec,
    graph: graphs.Graph,
    calibration_images: str | None,
    budget: Budget,
    *,
    on_step: Callable[[str], None] = lambda message: None,
    on_warning: Callable[[str], None] = lambda message: None,
) -> Quantized:
    """Quantize `graph` as far as the budget allows.

    `calibration_images` None takes the measured ranges on disk; else they are measured on these. Raises
    StaleArtifactError for ranges of another network, ParityError if the budget cannot be held, UsageError for a layer
    to keep that is none.
    """
    warnings: list[str] = []

    def warn(message: str) -> None:
        warnings.append(message)
        on_warning(message)

    ranges = _ranges(folder, spec, graph, calibration_images, on_step, warn)
    thresholds = {name: tensor.threshold for name, tensor in ranges.tensors.items()}
    images, labels, measured_on = _images(spec, ranges, budget)
    what = "changed answers" if labels is None else "top-1 error"
    on_step(f"measuring {what} on {len(images)} images of {measured_on}")
    judge = Judge(graph.model, spec, folder.mean_image(spec), ranges.num_views, images, labels)

    if len(images) < FEWEST_IMAGES:
        warn(f"{len(images)} images are few to judge a graph by; give at least {FEWEST_IMAGES}")

    def convert(keep: Collection[str]) -> onnx.ModelProto:
        return to_int8(graph.model, thresholds, spec.preprocessing, {*keep, *budget.keep})

    def drop_with(keep: Collection[str]) -> Drop:
        return judge.measure(convert(keep))

    layers = _layers(graph.model, budget.keep)
    max_drop = max(DEFAULT_MAX_DROP, 100 / len(images)) if budget.max_drop is None else budget.max_drop
    whole = drop_with(())
    on_step(f"{', '.join(layers)} in INT8: {describe(whole)}")
    ranking: tuple[LayerCost, ...] = ()
    choice = Choice(keep=(), drop=whole, num_trials=1)
    if budget.max_drop is not None or whole.points > max_drop:
        ranking = rank_layers(layers, layer_macs(graph.model), drop_with, on_step)
        choice = search(ranking, whole, max_drop, drop_with, on_step)
    report = Quantization(
        budget=max_drop,
        measured_on=measured_on,
        has_labels=labels is not None,
        choice=choice,
        keep_asked=budget.keep,
        ranking=ranking,
        ranges_path=folder.ranges_path.as_posix(),
        warnings=tuple(warnings),
    )
    return Quantized(model=convert(choice.keep), ranges=ranges, report=report)


def _layers(model: onnx.ModelProto, keep: Collection[str]) -> tuple[str, ...]:
    layers = quantizable_layers(model)
    for name in keep:
        if name not in layers:
            raise UsageError(f"no layer with weights is called {name!r}", cure=f"Layers: {', '.join(layers)}")
    return tuple(name for name in layers if name not in keep)


def describe(drop: Drop) -> str:
    """In words: how many answers change, and by how much the logits are off."""
    return f"{drop.num_flips} of {drop.num_images} answers change, logits off by {drop.logit_error:.2%}"


def _ranges(
    folder: ModelFolder,
    spec: ModelSpec,
    graph: graphs.Graph,
    images: str | None,
    on_step: Callable[[str], None],
    on_warning: Callable[[str], None],
) -> Ranges:
    path = folder.ranges_path
    if images is None:
        ranges = read_ranges(path, folder.path.as_posix())
        check_ranges(path, ranges, graph.network_sha256, spec.contract_sha256)
        on_step(f"ranges of {path}: {ranges.num_images} images of {ranges.images_from}, method {ranges.method}")
        return ranges
    check_owner(path, folder.path)
    on_step(f"measuring ranges on images of {images}")
    ranges = measure(folder, spec, graph, images, load_calibration())
    on_step(f"ranges of {ranges.num_images} images, method {ranges.method}")
    for warning in (*ranges.warnings, *(f"{name} was left out: {why}" for name, why in ranges.skipped.items())):
        on_warning(warning)
    return ranges


def _images(spec: ModelSpec, ranges: Ranges, budget: Budget) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, str]:
    """What to measure the drop on: uint8 [N, 256, 256, 3], labels if there are, and where they are from."""
    if budget.labelled is None:
        names = [image.name for image in ranges.images]
        names = names[:: -(-len(names) // MOST_IMAGES)]
        pixels = np.empty((len(names), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        count = 0
        for count, photograph in enumerate(read_photographs(ranges.images_from, names, spec, {}), start=1):
            pixels[count - 1] = photograph.pixels
        if not count:
            raise InputError(
                f"the images that the ranges were measured on are not at {ranges.images_from}, so that nothing tells "
                "what INT8 costs",
                cure=f"Measure ranges on images that are here: {ranges.calibrate_command}\n"
                "or name labelled ones: --labelled DATA",
            )
        return pixels[:count], None, ranges.images_from
    found = read_labelled(budget.labelled, spec.classes)
    stride = -(-len(found.examples) // MOST_IMAGES)
    chosen = list(zip(found.sources(), found.examples, strict=True))[::stride]
    pixels = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for number, (source, _) in enumerate(chosen):
        try:
            pixels[number] = decode(source.read(spec.preprocessing.resize), spec.preprocessing.resize)
        except ImageError as exc:
            raise DataError(
                f"{source.name}: {exc.message}", cure="A budget is measured on images that can be read."
            ) from exc
    return pixels, np.array([example.label for _, example in chosen]), budget.labelled
