"""Same answers? Every artifact of a model, as a network and as deployed, against FP32 in PyTorch or ONNX Runtime.

Two levels. The network alone, layer by layer in ONNX Runtime, shows what a conversion did; the engines, from pixels to
probabilities, show what users get.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import (
    AlexDeployError,
    DeviceError,
    ImageError,
    ModelError,
    ParityError,
    UsageError,
    first_line,
)
from alexdeploy.core.metrics import top_k
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import Backend, EngineOptions, NumViews, open_engine
from alexdeploy.export.graphs import load_graph
from alexdeploy.export.parity import layer_tensors
from alexdeploy.export.runner import GraphRunner
from alexdeploy.images import sample
from alexdeploy.images.decode import decode
from alexdeploy.images.preprocess import network_input
from alexdeploy.images.sources import Source, iter_sources
from alexdeploy.network.layers import plan_layers

FLOORS = {"fp32": 1e-5, "fp16": 2e-3, "int8": 2e-2}
"""Relative RMS error of a layer up to which a precision's own rounding explains it."""

JUMP = 3.0
"""A layer's error jumps if it is so many times the largest error before it: rounding alone adds up more slowly."""

_NUM_TOP = 5
_VIEWS_PER_BATCH = 16
_MOST_SOURCES = 100_000

Reference = Literal["torch", "onnxruntime"]
REFERENCE_NAMES: dict[Reference, str] = {"torch": "PyTorch", "onnxruntime": "model.onnx in ONNX Runtime"}

Layers = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.floating]]]
"""float32 [N, 3, crop, crop] -> the outputs of layers by the layer's name; of floating point, but not all float32."""

_Item = TypeVar("_Item")
_OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """`precisions` None: every graph there is. `backends` None: every one installed. `max_flips` is in percent.

    `num_images` are held decoded, 0.2 MB each.
    """

    precisions: tuple[Precision, ...] | None = None
    backends: tuple[Backend, ...] | None = None
    num_views: NumViews = 1
    num_images: int = 64
    max_flips: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Rows of scores against the reference's. Rows that are not finite are counted, and are in no other figure.

    `flip_rate` and `top5_overlap` are fractions; the overlap is the mean share of the reference's five best classes
    that are among these five best. A flip's margin is the reference's probability of its own answer minus that of
    the other answer: near 0 it was a coin toss. Errors are absolute; `relative_error` is the largest over the largest
    magnitude of the reference's scores. What has no rows to be computed from is None, and so is the overlap where there
    are no more than five classes, which are always all among the best five.
    """

    num_rows: int
    num_non_finite: int
    num_flips: int = 0
    flip_rate: float | None = None
    top5_overlap: float | None = None
    median_margin: float | None = None
    max_margin: float | None = None
    mean_error: float | None = None
    max_error: float | None = None
    relative_error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    """One layer over all images: RMS of the error over RMS of the reference, and the largest over its largest value.

    Both are infinite where a value is not finite.
    """

    name: str
    rms_error: float
    max_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkReport:
    """A graph on disk as the plain network: a row of logits for each view. `jump`: see `first_jump`."""

    artifact: str
    precision: Precision
    sha256: str
    agreement: Agreement
    layers: tuple[LayerError, ...]
    jump: str | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """An artifact as deployed on a backend: a row of probabilities for each image. `jump` is that of its graph."""

    artifact: str
    precision: Precision
    backend: str
    sha256: str
    agreement: Agreement
    jump: str | None
    failure: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenImage:
    """An input that could not be read, and so is in no figure."""

    source: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Everything that was compared. `images` says whose they are; `num_found` counts them before some were chosen."""

    model: str
    reference: Reference
    images: str
    num_found: int
    num_images: int
    num_views: int
    max_flips: float
    broken: tuple[BrokenImage, ...]
    networks: tuple[NetworkReport, ...]
    engines: tuple[EngineReport, ...]

    @property
    def reports(self) -> tuple[NetworkReport | EngineReport, ...]:
        """All that was compared with the reference, networks first."""
        return (*self.networks, *self.engines)

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each artifact, and each artifact on a backend, that failed."""
        return tuple(describe(report) for report in self.reports if report.failure)

    def check(self) -> None:
        """Raise ParityError naming all that failed, if anything did."""
        if self.failures:
            raise ParityError("\n".join(self.failures), cure="\n".join(_cures(self)))


def verify(
    folder: ModelFolder,
    images: Sequence[str] | None = None,
    options: VerifyOptions = VerifyOptions(),
    on_step: Callable[[str], None] = lambda message: None,
    on_progress: _OnProgress = lambda done, total: None,
) -> Verification:
    """Compare every artifact of a model with FP32: PyTorch on the weights where both are there, else `model.onnx`.

    `images` is what `iter_sources` takes; None takes the training data if it is here, else rendered pictures. Of more
    than `options.num_images` those are taken that lie evenly over all. An image that cannot be read is in `broken`.
    `on_progress` gets the images that are done, and of how many, within a step. Answers that differ are reported, not
    raised: see `Verification.check`. Raises StaleArtifactError, ModelError, ImageError if no image can be read, and
    UsageError if there is nothing to compare.
    """
    if options.num_images < 1:
        raise UsageError(f"num_images is {options.num_images}; it must be at least 1")
    spec = folder.spec()
    work = _plan(folder, spec, options)
    # Before minutes of work, not after: each is read again when it is its turn.
    for precision in work.graphs:
        load_graph(folder, precision, spec)
    chosen = _find_sources(spec, images, options.num_images)
    spread = ", evenly spread" if len(chosen.sources) < chosen.num_found else ""
    on_step(f"reading {len(chosen.sources)} of {chosen.num_found} images of {chosen.origin}{spread}")
    photographs, broken = _read(chosen.sources, spec)
    context = _Context(folder, spec, options, photographs, on_progress)

    networks = []
    for precision in work.networks:
        on_step(f"{folder.onnx_path(precision).name} layer by layer against {REFERENCE_NAMES[work.reference]}")
        networks.append(_verify_network(context, precision, work.reference))
    jumps = {report.precision: report.jump for report in networks}
    engines = []
    if work.engines:
        on_step(f"{work.reference} fp32, the reference")
        _, expected = _run_engine(context, work.reference, "fp32")
        _check_reference(expected)
        for backend, precision in work.engines:
            on_step(f"{backend} {precision}")
            sha256, actual = _run_engine(context, backend, precision)
            agreement = compare(expected, actual, expected)
            engines.append(
                EngineReport(
                    artifact=_artifact(folder, backend, precision),
                    precision=precision,
                    backend=backend,
                    sha256=sha256,
                    agreement=agreement,
                    jump=jumps.get(precision),
                    failure=_failure(agreement, options.max_flips),
                )
            )
    return Verification(
        model=str(folder.path),
        reference=work.reference,
        images=chosen.origin,
        num_found=chosen.num_found,
        num_images=len(photographs),
        num_views=options.num_views,
        max_flips=options.max_flips,
        broken=broken,
        networks=tuple(networks),
        engines=tuple(engines),
    )


def compare(
    expected: NDArray[np.floating], actual: NDArray[np.floating], probabilities: NDArray[np.floating]
) -> Agreement:
    """Compare scores [N, C] row by row; `probabilities` [N, C] are the reference's, for the margins."""
    finite = np.isfinite(actual).all(axis=1)
    num_rows, num_non_finite = len(actual), int((~finite).sum())
    if num_non_finite == num_rows:
        return Agreement(num_rows=num_rows, num_non_finite=num_non_finite)
    expected, actual, probabilities = expected[finite], actual[finite], probabilities[finite]
    best, others = top_k(expected, _NUM_TOP), top_k(actual, _NUM_TOP)
    overlap = None
    if expected.shape[1] > _NUM_TOP:
        overlap = float((best[:, :, None] == others[:, None, :]).any(axis=2).mean())
    flipped = np.flatnonzero(best[:, 0] != others[:, 0])
    margins = probabilities[flipped, best[flipped, 0]] - probabilities[flipped, others[flipped, 0]]
    errors = np.abs(np.subtract(actual, expected, dtype=np.float64))
    return Agreement(
        num_rows=num_rows,
        num_non_finite=num_non_finite,
        num_flips=len(flipped),
        flip_rate=len(flipped) / len(best),
        top5_overlap=overlap,
        median_margin=float(np.median(margins)) if len(flipped) else None,
        max_margin=float(margins.max()) if len(flipped) else None,
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        relative_error=float(errors.max()) / max(float(np.abs(expected).max()), 1e-30),
    )


def first_jump(layers: Iterable[LayerError], floor: float) -> str | None:
    """The first layer whose RMS error is above `floor` and above JUMP times every error before it; None if none is.

    The floor keeps rounding, which differs from layer to layer, from looking like a fault; the factor keeps an error
    that only adds up from layer to layer from being blamed on the one that happens to cross the floor.
    """
    largest = 0.0
    for layer in layers:
        # Not "error > limit": a NaN is a jump as well.
        if not layer.rms_error <= max(floor, JUMP * largest):
            return layer.name
        largest = max(largest, layer.rms_error)
    return None


def describe(report: NetworkReport | EngineReport) -> str:
    """One sentence: what was found, against what is allowed if it failed, and where the error jumps."""
    where = f" on {report.backend}" if isinstance(report, EngineReport) else ""
    kind = f" as {report.precision}" if report.precision == "bf16" else ""
    jump = f"; the error jumps at {report.jump}" if report.jump else ""
    return f"{report.artifact}{kind}{where}: {report.failure or _flips(report.agreement)}{jump}"


class _Work(NamedTuple):
    reference: Reference
    graphs: tuple[Precision, ...]
    """Those that are read from disk."""
    networks: tuple[Precision, ...]
    engines: tuple[tuple[Backend, Precision], ...]


class _Context(NamedTuple):
    folder: ModelFolder
    spec: ModelSpec
    options: VerifyOptions
    photographs: Sequence[NDArray[np.uint8]]
    on_progress: _OnProgress


def _plan(folder: ModelFolder, spec: ModelSpec, options: VerifyOptions) -> _Work:
    """What is compared with what. Raises UsageError if that is nothing, ModelError if there is no graph at all."""
    has_weights = folder.weights_path.is_file() and spec.architecture is not None
    reference: Reference = "torch" if has_weights and _is_installed("torch") else "onnxruntime"
    precisions = options.precisions
    if precisions is None:
        every: tuple[Precision, ...] = ("fp32", "fp16", "int8")
        precisions = tuple(precision for precision in every if folder.onnx_path(precision).is_file())
        if not precisions:
            raise ModelError(f"{folder.path} has no ONNX graph", cure=f"Make one: alexdeploy export {folder.path}")
    backends = options.backends or tuple(backend for backend in get_args(Backend) if _is_installed(backend))
    engines = tuple(
        (backend, precision)
        for precision in precisions
        for backend in backends
        if _can_run(backend, precision, has_weights=has_weights) and (backend, precision) != (reference, "fp32")
    )
    networks = tuple(
        precision
        for precision in precisions
        if precision != "bf16" and (precision != "fp32" or reference != "onnxruntime")
    )
    if not engines and not networks:
        raise UsageError(
            f"nothing to verify: {REFERENCE_NAMES[reference]} is itself what all else is compared with",
            cure=f"Ask for another --precision or --backend, or make a graph: alexdeploy export {folder.path} --fp16",
        )
    graphs: tuple[Precision, ...] = tuple("fp32" if precision == "bf16" else precision for precision in precisions)
    if reference == "onnxruntime":
        graphs = ("fp32", *graphs)
    return _Work(reference, tuple(dict.fromkeys(graphs)), networks, engines)


def _can_run(backend: Backend, precision: Precision, *, has_weights: bool) -> bool:
    if backend == "torch":
        return has_weights and precision in ("fp32", "bf16")
    return precision != "bf16" or backend == "openvino"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _artifact(folder: ModelFolder, backend: str, precision: Precision) -> str:
    if backend == "torch":
        return folder.weights_path.name
    return folder.onnx_path("fp32" if precision == "bf16" else precision).name


class _Chosen(NamedTuple):
    origin: str
    num_found: int
    sources: list[Source]


def _find_sources(spec: ModelSpec, named: Sequence[str] | None, count: int) -> _Chosen:
    if named:
        return _Chosen(", ".join(named), *_spread(islice(iter_sources(named), _MOST_SOURCES), count))
    origin = str(spec.provenance.get("data") or "")
    if origin and Path(origin).is_dir():
        # The name comes from spec.json, whoever wrote that: with a folder in front it is never a list or a pattern.
        found = iter_sources([Path.cwd() / origin])
        chosen = _Chosen(origin, *_spread(islice(found, _MOST_SOURCES), count))
        if any(source.problem is None for source in chosen.sources):
            return chosen
    return _Chosen("rendered pictures", count, [_rendered(index) for index in range(count)])


def _spread(items: Iterable[_Item], count: int) -> tuple[int, list[_Item]]:
    """How many `items` there are, and `count` of them that lie evenly over all; at most 2 `count` are held."""
    kept: list[_Item] = []
    step, total = 1, 0
    for item in items:
        if total % step == 0:
            kept.append(item)
        total += 1
        if len(kept) > 2 * count:
            kept, step = kept[::2], 2 * step
    number = min(count, len(kept))
    return total, [kept[(2 * index + 1) * len(kept) // (2 * number)] for index in range(number)]


def _rendered(index: int) -> Source:
    buffer = io.BytesIO()
    sample.render_image(index % len(sample.CLASSES), np.random.default_rng(index)).save(buffer, "PNG")
    return Source(name=f"rendered picture {index}", data=buffer.getvalue())


def _read(sources: Sequence[Source], spec: ModelSpec) -> tuple[list[NDArray[np.uint8]], tuple[BrokenImage, ...]]:
    photographs, broken = [], []
    for source in sources:
        try:
            photographs.append(decode(source.read(), spec.preprocessing.resize))
        except ImageError as exc:
            broken.append(BrokenImage(source=source.name, error=exc.message))
    if not photographs:
        first = f": {broken[0].source}: {broken[0].error}" if broken else ""
        raise ImageError(f"none of {len(broken)} images can be read{first}", cure="Name photographs that can be read.")
    return photographs, tuple(broken)


def _verify_network(context: _Context, precision: Precision, reference: Reference) -> NetworkReport:
    folder, spec, options, photographs, on_progress = context
    graph = load_graph(folder, precision, spec)
    tensors = _layer_tensors(graph.model, spec)
    network = _open_network(graph.model, tensors, folder.onnx_path(precision))
    sha256 = graph.sha256
    # A full-size graph is 244 MB, and its session has its own copy.
    del graph
    expected_layers = _open_reference(folder, spec, reference, tensors)
    mean = folder.mean_image(spec)
    last = list(tensors)[-1]
    sums: dict[str, _ErrorSums] = {}
    expected, actual, num_done = [], [], 0
    for batch in _batches(photographs, max(1, _VIEWS_PER_BATCH // options.num_views)):
        inputs = np.concatenate([network_input(image, spec.preprocessing, options.num_views, mean) for image in batch])
        theirs, ours = expected_layers(inputs), network(inputs)
        for name in tensors:
            if name in theirs and _are_comparable(theirs[name], ours[name]):
                sums.setdefault(name, _ErrorSums()).add(theirs[name], ours[name])
        expected.append(theirs[last])
        actual.append(ours[last])
        num_done += len(batch)
        on_progress(num_done, len(photographs))
    logits = np.concatenate(expected)
    _check_reference(logits)
    agreement = compare(logits, np.concatenate(actual), _softmax(logits))
    layers = tuple(total.error(name) for name, total in sums.items())
    return NetworkReport(
        artifact=folder.onnx_path(precision).name,
        precision=precision,
        sha256=sha256,
        agreement=agreement,
        layers=layers,
        jump=first_jump(layers, FLOORS[precision]),
        failure=_failure(agreement, options.max_flips),
    )


def _layer_tensors(model: onnx.ModelProto, spec: ModelSpec) -> dict[str, str]:
    """The tensor of each layer by the layer's name, in order, the logits last.

    Where the architecture is not known, a layer is any tensor that depends on the images.
    """
    graph = model.graph
    output = graph.output[0].name
    if spec.architecture is not None:
        names = layer_tensors(model, plan_layers(spec.architecture, spec.num_classes))
        known = {name for node in graph.node for name in node.output}
        return {layer: name for layer, name in names.items() if name in known}
    reached = dict.fromkeys([graph.input[0].name])
    for node in graph.node:
        if any(name in reached for name in node.input):
            reached.update(dict.fromkeys(name for name in node.output if name))
    inner = list(reached)[1:]
    return {**{name: name for name in inner if name not in (output, "logits")}, "logits": output}


def _open_network(model: onnx.ModelProto, tensors: Mapping[str, str], path: Path) -> Layers:
    with _translated(path):
        runner = GraphRunner(model, tensors.values())

    def run(images: NDArray[np.float32]) -> dict[str, NDArray[np.floating]]:
        with _translated(path):
            outputs = runner.run(images)
        return {layer: outputs[name] for layer, name in tensors.items()}

    return run


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except AlexDeployError:
        raise
    # ONNX Runtime's own exceptions have no common base short of Exception.
    except Exception as exc:
        raise DeviceError(f"ONNX Runtime cannot run {path}: {first_line(exc)}") from exc


def _open_reference(folder: ModelFolder, spec: ModelSpec, reference: Reference, wanted: Mapping[str, str]) -> Layers:
    if reference == "torch":
        from alexdeploy.engines.torch import open_layers

        return open_layers(folder)
    model = load_graph(folder, "fp32", spec).model
    tensors = {layer: name for layer, name in _layer_tensors(model, spec).items() if layer in wanted}
    return _open_network(model, tensors, folder.onnx_path())


def _are_comparable(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> bool:
    """Both floating point, and of one size: in an imported graph a name may stand for a shape, or for a sequence."""
    are_floats = all(np.issubdtype(getattr(values, "dtype", None), np.floating) for values in (expected, actual))
    return are_floats and expected.size == actual.size


class _ErrorSums:
    """The errors of one layer, added up over batches: the activations themselves are not kept."""

    def __init__(self) -> None:
        self._error = self._reference = self._max_error = self._max_reference = 0.0

    def add(self, expected: NDArray[np.floating], actual: NDArray[np.floating]) -> None:
        # Infinity minus infinity is a NaN, which counts as an error without bounds.
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.subtract(actual.reshape(expected.shape), expected, dtype=np.float64)
            self._error += float(np.square(difference).sum())
            self._max_error = float(np.maximum(self._max_error, np.abs(difference).max()))
        self._reference += float(np.square(expected, dtype=np.float64).sum())
        self._max_reference = max(self._max_reference, float(np.abs(expected).max()))

    def error(self, name: str) -> LayerError:
        rms = (self._error / max(self._reference, 1e-60)) ** 0.5
        largest = self._max_error / max(self._max_reference, 1e-30)
        return LayerError(
            name=name,
            rms_error=rms if np.isfinite(rms) else float("inf"),
            max_error=largest if np.isfinite(largest) else float("inf"),
        )


def _run_engine(context: _Context, backend: Backend, precision: Precision) -> tuple[str, NDArray[np.float32]]:
    """The hash of the artifact that ran, and float32 [N, C]."""
    options = EngineOptions(precision=precision, num_views=context.options.num_views)
    parts: list[NDArray[np.float32]] = []
    num_done = 0
    with open_engine(context.folder, backend, options) as engine:
        info = engine.info
        # Each stream of an engine has a thread of its own: one batch at a time would leave the others idle.
        with ThreadPoolExecutor(info.num_streams) as pool:
            batches = _batches(context.photographs, info.batch_size)
            # Copies: an engine may give the same memory again with its next answer.
            for part in pool.map(lambda batch: np.array(engine.run(np.stack(batch)).probabilities), batches):
                parts.append(part)
                num_done += len(part)
                context.on_progress(num_done, len(context.photographs))
    return info.artifact, np.concatenate(parts)


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    powers = np.exp(np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _check_reference(scores: NDArray[np.floating]) -> None:
    num_broken = int((~np.isfinite(scores).all(axis=1)).sum())
    if num_broken:
        raise ModelError(
            f"the reference itself gives {num_broken} of {len(scores)} outputs that are not finite",
            cure="The weights are at fault: train or import the model again.",
        )


def _failure(agreement: Agreement, max_flips: float) -> str | None:
    if agreement.num_non_finite:
        return f"{agreement.num_non_finite} of {agreement.num_rows} outputs are not finite"
    if 100 * agreement.num_flips > max_flips * agreement.num_rows:
        return f"{_flips(agreement)}, allowed: {max_flips:g} %"
    return None


def _flips(agreement: Agreement) -> str:
    if not agreement.num_flips:
        return f"0 of {agreement.num_rows} answers differ"
    verb, most = ("differs", "") if agreement.num_flips == 1 else ("differ", "at most ")
    rate = 100 * agreement.num_flips / agreement.num_rows
    margin = f"by a margin of {most}{agreement.max_margin:.2g}"
    return f"{agreement.num_flips} of {agreement.num_rows} answers {verb} ({rate:.2f} %) {margin}"


def _cures(verification: Verification) -> Iterator[str]:
    """How to mend what failed: another graph where the network itself differs, another backend where it does not."""
    failed = [report for report in verification.reports if report.failure]
    differing = {report.precision for report in verification.networks if report.failure or report.agreement.num_flips}
    options = {"fp32": "", "fp16": " --fp16", "int8": " --int8 --max-drop 0.5"}
    precisions = {report.precision for report in failed}
    for precision in sorted(precisions & differing):
        yield f"Make {precision} again: alexdeploy export {verification.model}{options[precision]}"
    if precisions - differing:
        yield "Where only an engine differs its graph is not at fault: use another --backend or --precision."
    fewest = min(report.agreement.num_rows for report in failed)
    if 0 < verification.max_flips * fewest < 100:
        yield f"One answer of {fewest} is more than {verification.max_flips:g} %: --num-images takes more of them."
