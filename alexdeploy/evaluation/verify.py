"""Same answers? Every artifact of a model, as a network and as deployed, against FP32 in PyTorch or ONNX Runtime.

Two levels. The network alone, layer by layer in ONNX Runtime, shows what a conversion did; the engines, from pixels to
probabilities, show what users get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.arguments import Count, Percent, check_argument, check_fields
from alexdeploy.core.errors import ImageError, ModelError, UsageError
from alexdeploy.core.metrics import softmax
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec, Precision, graph_precision
from alexdeploy.engines.base import Backend, EngineOptions, NumViews, can_run, is_installed, open_engine
from alexdeploy.evaluation.agreement import (
    FLOORS,
    REFERENCE_NAMES,
    BrokenImage,
    EngineReport,
    ErrorSums,
    NetworkReport,
    Reference,
    Verification,
    compare,
    failure,
    first_jump,
)
from alexdeploy.export.parity import layer_tensors
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.runner import GraphRunner
from alexdeploy.images.decode import decode
from alexdeploy.images.pick import Picked, pick_sources, refuse_absent
from alexdeploy.images.preprocess import network_input
from alexdeploy.images.sources import is_list
from alexdeploy.network.layers import plan_layers

DEFAULT_MAX_FLIPS = 1.0
"""Percent of the answers that may differ where the user names no limit; always at least those of one image."""

_VIEWS_PER_BATCH = 16

Layers = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.floating]]]
"""float32 [N, 3, crop, crop] -> the outputs of layers by the layer's name; of floating point, but not all float32."""

_Item = TypeVar("_Item")
_OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """`precisions` None: every graph there is. `backends` None: every one installed.

    `num_images` are held decoded, 0.2 MB each. `max_flips` is in percent; None means DEFAULT_MAX_FLIPS.
    """

    precisions: tuple[Precision, ...] | None = None
    backends: tuple[Backend, ...] | None = None
    num_views: NumViews = 1
    num_images: Count = 64
    max_flips: Percent | None = None

    def __post_init__(self) -> None:
        check_fields(self)


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
    UsageError if there is nothing to compare or a list names images of which none is there.
    """
    folder = check_argument("folder", folder, ModelFolder)
    images = check_argument("images", images, tuple[str, ...] | None)
    options = check_argument("options", options, VerifyOptions)
    spec = folder.spec()
    plan = _plan(folder, spec, options)
    # Before minutes of work, not after: each is read again when it is its turn.
    for precision in plan.graphs:
        load_graph(folder, precision, spec)
    picked = pick_sources(images, spec, options.num_images)
    spread = ", evenly spread" if len(picked.sources) < picked.num_found else ""
    on_step(f"reading {len(picked.sources)} of {picked.num_found} images of {picked.origin}{spread}")
    if images and all(is_list(text) for text in images):
        refuse_absent(picked.sources, picked.origin)
    photographs, broken = _read(picked, spec)
    max_flips = max(DEFAULT_MAX_FLIPS, 100 / len(photographs)) if options.max_flips is None else options.max_flips
    run = _Run(folder, spec, plan.reference, photographs, options.num_views, max_flips, on_progress)

    networks = []
    for precision in plan.networks:
        on_step(f"{folder.onnx_path(precision).name} layer by layer against {REFERENCE_NAMES[plan.reference]}")
        networks.append(_verify_network(run, precision))
    jumps = {report.precision: report.jump for report in networks}
    engines = []
    if plan.engines:
        on_step(f"{plan.reference} fp32, the reference")
        _, expected = _probabilities(run, plan.reference, "fp32")
        _check_reference(expected)
        for backend, precision in plan.engines:
            on_step(f"{backend} {precision}")
            sha256, actual = _probabilities(run, backend, precision)
            agreement = compare(expected, actual, expected)
            path = folder.weights_path if backend == "torch" else folder.onnx_path(graph_precision(precision))
            engines.append(
                EngineReport(
                    artifact=path.name,
                    precision=precision,
                    backend=backend,
                    sha256=sha256,
                    agreement=agreement,
                    jump=jumps.get(precision),
                    failure=failure(agreement, max_flips),
                )
            )
    return Verification(
        model=str(folder.path),
        reference=plan.reference,
        images=picked.origin,
        num_found=picked.num_found,
        num_images=len(photographs),
        num_views=options.num_views,
        max_flips=max_flips,
        broken=broken,
        networks=tuple(networks),
        engines=tuple(engines),
    )


class _Plan(NamedTuple):
    """What is compared with what. `graphs` are those read from disk."""

    reference: Reference
    graphs: tuple[Precision, ...]
    networks: tuple[Precision, ...]
    engines: tuple[tuple[Backend, Precision], ...]


def _plan(folder: ModelFolder, spec: ModelSpec, options: VerifyOptions) -> _Plan:
    """Raises UsageError if there is nothing to compare, ModelError if there is no graph at all."""
    has_weights = folder.weights_path.is_file() and spec.architecture is not None
    reference: Reference = "torch" if has_weights and is_installed("torch") else "onnxruntime"
    precisions = options.precisions or tuple(name for name in FLOORS if folder.onnx_path(name).is_file())
    if not precisions:
        raise ModelError(f"{folder.path} has no ONNX graph", hint=f"Make one: alexdeploy export {folder.quoted}")
    backends = options.backends or tuple(backend for backend in get_args(Backend) if is_installed(backend))
    engines = tuple(
        (backend, precision)
        for precision in precisions
        for backend in backends
        if can_run(backend, precision)
        and (has_weights or backend != "torch")
        and (backend, precision) != (reference, "fp32")
    )
    networks = tuple(name for name in precisions if name in FLOORS and (reference, name) != ("onnxruntime", "fp32"))
    if not engines and not networks:
        raise UsageError(
            f"nothing to verify: {REFERENCE_NAMES[reference]} is itself what all else is compared with",
            hint=f"Ask for another --precision or --backend, or make a graph: alexdeploy export {folder.quoted} --fp16",
        )
    graphs = [graph_precision(precision) for precision in precisions]
    if reference == "onnxruntime":
        graphs.insert(0, "fp32")
    return _Plan(reference, tuple(dict.fromkeys(graphs)), networks, engines)


def _read(picked: Picked, spec: ModelSpec) -> tuple[list[NDArray[np.uint8]], tuple[BrokenImage, ...]]:
    photographs, broken = [], []
    for source in picked.sources:
        try:
            photographs.append(decode(source.read(spec.preprocessing.resize), spec.preprocessing.resize))
        except ImageError as exc:
            broken.append(BrokenImage(source=source.name, error=exc.message))
    if not photographs:
        first = f": {broken[0].source}: {broken[0].error}" if broken else ""
        raise ImageError(f"none of {len(broken)} images can be read{first}", hint="Name photographs that can be read.")
    return photographs, tuple(broken)


class _Run(NamedTuple):
    """What all comparisons have in common."""

    folder: ModelFolder
    spec: ModelSpec
    reference: Reference
    photographs: Sequence[NDArray[np.uint8]]
    num_views: NumViews
    max_flips: float
    on_progress: _OnProgress


def _verify_network(run: _Run, precision: Precision) -> NetworkReport:
    folder, spec = run.folder, run.spec
    graph = load_graph(folder, precision, spec)
    tensors = _layer_tensors(graph.model, spec)
    network = _graph_layers(graph.model, tensors)
    sha256 = graph.sha256
    # A full-size graph is 244 MB, and its session has its own copy.
    del graph
    reference = _reference_layers(run, tensors)
    mean = folder.mean_image(spec)
    last = list(tensors)[-1]
    sums: dict[str, ErrorSums] = {}
    expected, actual, num_done = [], [], 0
    for batch in _batches(run.photographs, max(1, _VIEWS_PER_BATCH // run.num_views)):
        inputs = np.concatenate([network_input(image, spec.preprocessing, run.num_views, mean) for image in batch])
        theirs, ours = reference(inputs), network(inputs)
        for name in tensors:
            if name in theirs and _are_comparable(theirs[name], ours[name]):
                sums.setdefault(name, ErrorSums()).add(theirs[name], ours[name])
        expected.append(theirs[last])
        actual.append(ours[last])
        num_done += len(batch)
        run.on_progress(num_done, len(run.photographs))
    logits = np.concatenate(expected)
    _check_reference(logits)
    agreement = compare(logits, np.concatenate(actual), softmax(logits))
    layers = tuple(total.error(name) for name, total in sums.items())
    return NetworkReport(
        artifact=folder.onnx_path(precision).name,
        precision=precision,
        sha256=sha256,
        agreement=agreement,
        layers=layers,
        jump=first_jump(layers, FLOORS[precision]),
        failure=failure(agreement, run.max_flips),
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


def _graph_layers(model: onnx.ModelProto, tensors: Mapping[str, str]) -> Layers:
    runner = GraphRunner(model, tensors.values())

    def run(images: NDArray[np.float32]) -> dict[str, NDArray[np.floating]]:
        outputs = runner.run(images)
        return {layer: outputs[name] for layer, name in tensors.items()}

    return run


def _reference_layers(run: _Run, wanted: Mapping[str, str]) -> Layers:
    if run.reference == "torch":
        from alexdeploy.engines.torch import open_layers

        return open_layers(run.folder)
    model = load_graph(run.folder, "fp32", run.spec).model
    tensors = _layer_tensors(model, run.spec)
    return _graph_layers(model, {layer: name for layer, name in tensors.items() if layer in wanted})


def _are_comparable(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> bool:
    """Both floating point, and of one size: in an imported graph a name may stand for a shape, or for a sequence."""
    are_floats = all(np.issubdtype(getattr(values, "dtype", None), np.floating) for values in (expected, actual))
    return are_floats and expected.size == actual.size > 0


def _probabilities(run: _Run, backend: Backend, precision: Precision) -> tuple[str, NDArray[np.float32]]:
    """The hash of the artifact that ran, and float32 [N, C]."""
    parts: list[NDArray[np.float32]] = []
    num_done = 0
    with open_engine(run.folder, backend, EngineOptions(precision=precision, num_views=run.num_views)) as engine:
        info = engine.info
        # Each stream of an engine has a thread of its own: one batch at a time would leave the others idle.
        with ThreadPoolExecutor(info.num_streams) as pool:
            batches = _batches(run.photographs, info.batch_size)
            # Copies: an engine may give the same memory again with its next answer.
            for part in pool.map(lambda batch: np.array(engine.run(np.stack(batch)).probabilities), batches):
                parts.append(part)
                num_done += len(part)
                run.on_progress(num_done, len(run.photographs))
    return info.artifact, np.concatenate(parts)


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _check_reference(scores: NDArray[np.floating]) -> None:
    num_broken = int((~np.isfinite(scores).all(axis=1)).sum())
    if num_broken:
        raise ModelError(
            f"the reference itself gives {num_broken} of {len(scores)} outputs that are not finite",
            hint="The weights are at fault: train or import the model again.",
        )
