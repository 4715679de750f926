"""The calibration step: run the FP32 network over real images and measure the ranges of its tensors."""

from __future__ import annotations

import fnmatch
import hashlib
import heapq
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import ImageError, InputError, ModelError, UsageError
from alexdeploy.core.events import warn_of_notices
from alexdeploy.core.files import sha256_bytes
from alexdeploy.core.interrupts import be_patient, deferred_interrupts
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.recipe import CalibrationRecipe, load_calibration
from alexdeploy.core.spec import ModelSpec
from alexdeploy.core.stores.urls import printable_url
from alexdeploy.export.events import Calibrated, Event
from alexdeploy.export.quantize.histogram import Histogram
from alexdeploy.graphs import files as graph_files
from alexdeploy.graphs.edit import WEIGHTED_OPS
from alexdeploy.graphs.freshness import ensemble_command, load_graph
from alexdeploy.graphs.ranges import (
    CalibrationImage,
    Ranges,
    TensorRange,
    check_owner,
    named_sources,
    quantization_scale,
    with_key,
    write_ranges,
)
from alexdeploy.graphs.runner import GraphRunner
from alexdeploy.images.decode import decode
from alexdeploy.images.named import check_named
from alexdeploy.images.preprocess import network_input
from alexdeploy.images.sources import iter_sources, printable_path

FEWEST_IMAGES = 32
_SMALLEST_SPREAD = 0.02
"""Standard deviation of the logits between images, as a share of their own: below this, all images look alike."""

_PERCENTILES = (99.0, 99.9, 99.99, 99.999)
_VIEWS_PER_BATCH = 10
_COPIES = ("Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Transpose", "Dropout", "Constant")
"""Operators whose output has the values of their input, or does not depend on the images."""


class Photograph(NamedTuple):
    """`pixels` is uint8 [256, 256, 3]."""

    name: str
    sha256: str
    pixels: NDArray[np.uint8]


class CalibrationInterrupted(KeyboardInterrupt):
    """A KeyboardInterrupt, with the ranges of the images measured so far, out of `num_chosen`."""

    def __init__(self, ranges: Ranges, num_chosen: int) -> None:
        super().__init__()
        self.ranges = ranges
        self.num_chosen = num_chosen


def calibrate(
    model: ModelFolder | str | os.PathLike[str] | None,
    images: str | os.PathLike[str],
    recipe: CalibrationRecipe | None = None,
    on_event: Callable[[Event], None] = warn_of_notices,
) -> Ranges:
    """Measure `model.onnx` on `images`, anything that `iter_sources` accepts; write `calibration/<model>.ranges.json`.

    `model` is a folder or what `find_model` takes. Labels are not needed. `recipe` None uses
    `calibration/default.toml`. Raises ModelError for a graph that is missing or stale, InputError if no image can be
    read, and CalibrationInterrupted on a KeyboardInterrupt, with nothing written.
    """
    folder = find_model(model)
    named: str = check_argument("images", images, str)
    recipe = check_argument("recipe", recipe, CalibrationRecipe | None)
    spec = folder.spec()
    if spec.members:
        raise UsageError(
            f"{folder.path} is an ensemble: the scales of its INT8 graph are its members'",
            hint=f"Calibrate and export the members, then make it again: {ensemble_command(folder)}",
        )
    graph = load_graph(folder, "fp32", spec)
    check_owner(folder.ranges_path, folder.path)
    ranges = measure(folder, spec, graph, named, recipe or load_calibration(), on_event)
    write_ranges(folder.ranges_path, ranges)
    return ranges


def measure(
    folder: ModelFolder,
    spec: ModelSpec,
    graph: graph_files.Graph,
    images: str,
    recipe: CalibrationRecipe,
    on_event: Callable[[Event], None] = warn_of_notices,
) -> Ranges:
    """As `calibrate`, without writing a file. Memory use does not grow with the number of images."""
    _check_text(images, folder.path.as_posix())
    check_named([images])
    names, skipped = choose_images(images, recipe)
    total = len(names)
    tensors = measured_tensors(graph.model)
    runner = GraphRunner(graph.model, tensors)
    mean = folder.mean_image(spec)
    histograms = {name: Histogram() for name in tensors}
    spread = _Spread()
    used: list[CalibrationImage] = []

    def run(batch: list[Photograph]) -> None:
        views = [network_input(each.pixels, spec.preprocessing, recipe.num_views, mean) for each in batch]
        found = runner.run(np.concatenate(views))
        # All or nothing, so that every tensor is measured on the same images.
        with deferred_interrupts():
            spread.add(found[graph.model.graph.output[0].name])
            for name, values in found.items():
                try:
                    histograms[name].add(values)
                except ValueError as exc:
                    others = f" or one of {len(batch) - 1} more" if batch[1:] else ""
                    raise ModelError(
                        f"{name}: {exc} on {batch[0].name}{others}",
                        hint="The FP32 network itself overflows; train it again or scale its weights.",
                    ) from exc
            used.extend(CalibrationImage(name=each.name, sha256=each.sha256) for each in batch)

    def measured() -> Ranges:
        ranges = Ranges(
            model=folder.path.as_posix(),
            key="",
            network_sha256=graph.network_sha256,
            contract_sha256=spec.contract_sha256,
            method=recipe.method,
            percentile=recipe.percentile,
            num_views=recipe.num_views,
            seed=recipe.seed,
            exclude=recipe.exclude,
            images_from=printable_url(images),
            num_asked=recipe.num_images,
            num_images=len(used),
            warnings=tuple(_warnings(used, spread, histograms)),
            tensors={name: _tensor_range(histogram, recipe) for name, histogram in histograms.items()},
            images=tuple(sorted(used, key=lambda image: image.name)),
            skipped=dict(sorted(skipped.items())),
        )
        return with_key(ranges)

    try:
        batch: list[Photograph] = []
        for photograph in read_photographs(images, names, spec, skipped):
            batch.append(photograph)
            if len(batch) * recipe.num_views >= _VIEWS_PER_BATCH:
                run(batch)
                batch = []
                on_event(Calibrated(num_done=len(used) + len(skipped), num_total=total))
        if batch:
            run(batch)
    except KeyboardInterrupt:
        if not used:
            raise
        be_patient()
        raise CalibrationInterrupted(measured(), total) from None
    on_event(Calibrated(num_done=total, num_total=total))
    if not used:
        reason = next(iter(skipped.items()), (images, "no images"))
        raise InputError(
            f"none of {total:,} images of {images} can be used; {reason[0]}: {reason[1]}",
            hint="Calibrate on photographs like those of production.",
        )
    return measured()


def choose_images(images: str, recipe: CalibrationRecipe) -> tuple[list[str], dict[str, str]]:
    """The names of at most `num_images` images. The choice does not depend on the folder's location or listing order.

    Also returns what could not be listed (a folder, a truncated archive), and why. Raises InputError if there is no
    image.
    """
    if images == "-":
        raise UsageError("calibration images are read twice; standard input cannot be", hint="Name a folder or @list.")
    problems: dict[str, str] = {}

    def names() -> Iterator[str]:
        for source in iter_sources([images]):
            if source.problem is not None:
                problems[source.name] = source.problem
            elif not any(fnmatch.fnmatch(source.name, pattern) for pattern in recipe.exclude):
                yield source.name

    def rank(name: str) -> bytes:
        relative = name.removeprefix(printable_url(images)).lstrip("/\\!").replace("\\", "/")
        return hashlib.blake2b(f"{recipe.seed}/{relative}".encode(), digest_size=16).digest()

    chosen = heapq.nsmallest(recipe.num_images, names(), key=rank)
    if not chosen:
        problem = next((f"{name}: {reason}" for name, reason in problems.items()), f"{images} holds none")
        raise InputError(
            f"no images to calibrate on: {problem}",
            hint="Name a folder of photographs like those of production; labels are not needed.",
        )
    return list(dict.fromkeys(chosen)), problems


def _check_text(*names: str) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{printable_path(name)} is not UTF-8, and could not be found again from a file of ranges",
                hint="Rename it, or make a link to it.",
            ) from None


def read_photographs(origin: str, names: list[str], spec: ModelSpec, skipped: dict[str, str]) -> Iterator[Photograph]:
    """Decode the images of `origin` with these names; `skipped` collects those that cannot be decoded, and why."""
    for source in named_sources(origin, names):
        try:
            content = source.read(spec.preprocessing.resize)
            pixels = decode(content, spec.preprocessing.resize)
        except ImageError as exc:
            skipped[source.name] = exc.message
        else:
            yield Photograph(source.name, sha256_bytes(content), pixels)


def measured_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """The float tensors that layers read and produce; a tensor that is only a copy of another is not repeated."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    weights = {tensor.name for tensor in model.graph.initializer}
    read = {node.input[0] for node in model.graph.node if node.op_type in WEIGHTED_OPS} - weights
    names = [model.graph.input[0].name]
    for node in model.graph.node:
        for name in node.output:
            if kinds.get(name) == onnx.TensorProto.FLOAT and (node.op_type not in _COPIES or name in read):
                names.append(name)
    return tuple(dict.fromkeys([*names, model.graph.output[0].name]))


def _tensor_range(histogram: Histogram, recipe: CalibrationRecipe) -> TensorRange:
    # For a tensor that is always 0, any scale will do.
    threshold = _short(histogram.threshold(recipe.method, recipe.percentile)) or 1.0
    return TensorRange(
        minimum=_short(histogram.minimum),
        maximum=_short(histogram.maximum),
        percentiles={f"{percent:g}": _short(histogram.percentile(percent)) for percent in _PERCENTILES},
        threshold=threshold,
        scale=_short(quantization_scale(threshold)),
    )


def _short(value: float) -> float:
    """The nearest float32, with as few digits as identify it."""
    return float(str(np.float32(value)))


class _Spread:
    """How much the logits vary between images and within one: running sums over [N, C]."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: NDArray[np.float64] = np.zeros(1)
        self._squares: NDArray[np.float64] = np.zeros(1)

    def add(self, logits: NDArray[np.floating]) -> None:
        wide = logits.astype(np.float64)
        self._count += len(wide)
        self._sum = self._sum + wide.sum(axis=0)
        self._squares = self._squares + (wide**2).sum(axis=0)

    def ratio(self) -> float:
        """Standard deviation over images divided by that over images and classes; 1 if the latter is 0."""
        means, squares = self._sum / self._count, self._squares / self._count
        within = float(np.sqrt(np.maximum(squares - means**2, 0).mean()))
        whole = float(np.sqrt(max(squares.mean() - means.mean() ** 2, 0)))
        return within / whole if whole > 0 else 1.0


def _warnings(used: list[CalibrationImage], spread: _Spread, histograms: Mapping[str, Histogram]) -> Iterator[str]:
    distinct = len({image.sha256 for image in used})
    if distinct < FEWEST_IMAGES:
        yield f"{distinct} different images are few to measure ranges on; give at least {FEWEST_IMAGES}, better 512"
    elif distinct < len(used):
        yield f"{len(used) - distinct} of {len(used)} images are copies of others"
    if spread.ratio() < _SMALLEST_SPREAD:
        yield (
            f"the images all look alike to the network: its logits differ by {spread.ratio():.1%} only; "
            "ranges measured on them may not hold for others"
        )
    dead = [name for name, histogram in histograms.items() if histogram.largest == 0.0]
    if dead:
        yield f"always 0 on these images: {', '.join(dead)}"
