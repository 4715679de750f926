"""Compare every artifact of a model, as a network and as deployed, with FP32 in PyTorch or ONNX Runtime.

There are two levels. The plain network, layer by layer in ONNX Runtime, shows the effect of a conversion. The engines,
from pixels to probabilities, show what users get.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import Count, Percent, check_argument
from alexdeploy.core.errors import DeviceError, ModelError, UsageError
from alexdeploy.core.events import Notice, Status, warn_of_notices
from alexdeploy.core.metrics import softmax
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.spec import ModelSpec, Precision, graph_precision
from alexdeploy.engines.base import ENGINE_BACKENDS, Backend, NumViews, can_run, is_installed
from alexdeploy.engines.trt.files import find_engines
from alexdeploy.evaluation.agreement import (
    FLOORS,
    REFERENCE_NAMES,
    EngineReport,
    ErrorSums,
    NetworkReport,
    Reference,
    Verification,
    compare,
    failure,
    first_jump,
)
from alexdeploy.evaluation.answers import ImageRow, best_answers, engine_answers, image_rows, shown_rows
from alexdeploy.evaluation.decoders import compare_decoders, read_images, second_decoder
from alexdeploy.evaluation.layers import are_comparable, deployed_layers, open_networks
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.images.named import is_list
from alexdeploy.images.pick import pick_sources, refuse_absent
from alexdeploy.placement.options import BATCH_SIZE, DeviceOptions, PredictOptions
from alexdeploy.placement.place import check_devices, devices_for, place
from alexdeploy.reports.thumbnails import thumbnail

DEFAULT_MAX_FLIPS = 1.0
"""Percent of the answers that may differ if no limit is given; at least one image is always allowed."""

_VIEWS_PER_BATCH = 16

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions(DeviceOptions):
    """`precisions` None: every existing graph. `backends` None: every installed one that the devices can run.

    `num_images` are held decoded, 0.2 MB each. `max_flips` is in percent; None means DEFAULT_MAX_FLIPS. `decoders`
    compares nvImageCodec with the one decoder, on the first GPU if there is one and `devices` is not "cpu".
    `thumbnails` makes those of the images that differ, for a page. The devices
    apply to the engines, each on those of a kind that its backend supports; the reference and the graphs run on the
    CPU.
    """

    precisions: tuple[Precision, ...] | None = None
    backends: tuple[Backend, ...] | None = None
    num_views: NumViews = 1
    batch_size: Count = BATCH_SIZE
    num_images: Count = 64
    max_flips: Percent | None = None
    decoders: bool = False
    thumbnails: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesDone:
    """Images processed in the step named by the last Status."""

    num_done: int
    num_images: int


Event = Status | Notice | ImagesDone


def verify(
    model: ModelFolder | str | os.PathLike[str] | None = None,
    images: Sequence[str] | None = None,
    options: VerifyOptions = VerifyOptions(),
    *,
    on_event: Callable[[Event], None] = warn_of_notices,
) -> Verification:
    """Compare every artifact of a model with FP32: PyTorch on the weights if both are available, else `model.onnx`.

    `model` is a folder or anything `find_model` accepts. `images` is anything `iter_sources` accepts; None uses the
    training data if it exists here, else rendered pictures. If there are more than `options.num_images`, an evenly
    spaced sample is used. Unreadable images are in `broken`. A Notice reports what is skipped because nothing here can
    run it. Differing answers are reported, not raised: see `Verification.check`. Raises StaleArtifactError, ModelError,
    ImageError if no image can be read, DeviceError if a backend named in the options cannot run, and UsageError if
    there is nothing to compare, the options name devices and no engine can be compared on them, or a list names images
    of which none exists.
    """
    folder = find_model(model)
    images = check_argument("images", images, tuple[str, ...] | None)
    options = check_argument("options", options, VerifyOptions)
    check_devices(options)
    spec = folder.spec()
    plan = _plan(folder, spec, options)
    for note in plan.notes:
        on_event(Notice(message=note))
    decoder = second_decoder(options.devices) if options.decoders else None
    picked = pick_sources(images, spec, options.num_images)
    spread = ", evenly spread" if len(picked.sources) < picked.num_found else ""

    def begin(step: str) -> None:
        on_event(Status(message=step))

    begin(f"reading {len(picked.sources)} of {picked.num_found} images of {picked.origin}{spread}")
    if images and all(is_list(text) for text in images):
        refuse_absent(picked.sources, picked.origin)
    names, photographs, others, broken = read_images(picked, spec, decoder)
    max_flips = max(DEFAULT_MAX_FLIPS, 100 / len(photographs)) if options.max_flips is None else options.max_flips
    run = _Run(folder, spec, plan.reference, photographs, options, max_flips, on_event)

    networks = []
    for precision in plan.networks:
        begin(f"{folder.onnx_path(precision).name} layer by layer against {REFERENCE_NAMES[plan.reference]}")
        networks.append(_verify_network(run, precision))
    jumps = {report.precision: report.jump for report in networks}
    engines, answers = [], []
    decoders, rows = None, tuple[ImageRow, ...]()
    if plan.engines or decoder is not None:
        begin(f"{plan.reference} fp32, the reference")
        on_cpu = PredictOptions(
            backend=plan.reference, num_views=options.num_views, devices="cpu", num_threads=options.num_threads
        )
        _, expected = _probabilities(run, on_cpu)
        _check_reference(expected)
        for backend, precision in plan.engines:
            begin(f"{backend} {precision}")
            sha256, actual = _probabilities(run, _options_for(options, backend, precision))
            agreement = compare(expected, actual, expected)
            answers.append(engine_answers(spec.classes, expected, actual))
            engines.append(
                EngineReport(
                    artifact=_artifact(folder, backend, precision, sha256),
                    precision=precision,
                    backend=backend,
                    sha256=sha256,
                    agreement=agreement,
                    jump=jumps.get(precision),
                    failure=failure(agreement, max_flips),
                )
            )
        rows = image_rows(names, best_answers(spec.classes, expected), answers)
        if decoder is not None:
            begin(decoder.name)

            def answer(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
                return _probabilities(run._replace(photographs=images), on_cpu)[1]

            decoders = compare_decoders(decoder.name, photographs, others, expected, answer)
    shown = (number for group in shown_rows(rows) for number in group)
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
        decoders=decoders,
        rows=rows,
        thumbnails={number: thumbnail(photographs[number]) for number in shown} if options.thumbnails else {},
    )


class _Plan(NamedTuple):
    """The comparisons to make, and the notes for the user."""

    reference: Reference
    networks: tuple[Precision, ...]
    engines: tuple[tuple[Backend, Precision], ...]
    notes: tuple[str, ...]


def _plan(folder: ModelFolder, spec: ModelSpec, options: VerifyOptions) -> _Plan:
    """Open everything once and close it again, so that errors show before minutes of work; each is reopened later.

    Raises UsageError if there is nothing to compare, or no engine on the named devices, ModelError if there is no
    graph at all, and the errors of `load_graph` and `place`. Anything not named in the options that cannot run here is
    skipped with a note.
    """
    has_weights = folder.weights_path.is_file() and spec.architecture is not None
    reference: Reference = "torch" if has_weights and is_installed("torch") else "onnxruntime"
    precisions = options.precisions or tuple(name for name in FLOORS if folder.onnx_path(name).is_file())
    if not precisions:
        raise ModelError(f"{folder.path} has no ONNX graph", hint=f"Make one: alexdeploy export {folder.quoted}")
    graphs = [graph_precision(precision) for precision in precisions]
    if reference == "onnxruntime":
        graphs.insert(0, "fp32")
    for graph in dict.fromkeys(graphs):
        load_graph(folder, graph, spec)
    built = {(record.backend, record.precision) for _, record in find_engines(folder)}
    backends = options.backends or tuple(backend for backend in get_args(Backend) if is_installed(backend))
    engines, notes = [], dict[str, None]()
    for precision, backend in itertools.product(precisions, backends):
        is_reference = (backend, precision) == (reference, "fp32")
        if is_reference or not can_run(backend, precision) or (backend == "torch" and not has_weights):
            continue
        if options.backends is None and backend in ENGINE_BACKENDS and (backend, precision) not in built:
            continue
        try:
            notes.update(dict.fromkeys(place(folder, _options_for(options, backend, precision)).notes))
        except (UsageError, DeviceError, ModelError) as exc:
            # An unusable graph is an error for every backend but those whose engine file may be for another GPU.
            if options.backends is not None or (isinstance(exc, ModelError) and backend not in ENGINE_BACKENDS):
                raise
            notes[f"{backend} {precision} is left out: {exc.message}"] = None
        else:
            engines.append((backend, precision))
    networks = tuple(name for name in precisions if name in FLOORS and (reference, name) != ("onnxruntime", "fp32"))
    if not engines and not networks:
        raise UsageError(
            f"nothing to verify: {REFERENCE_NAMES[reference]} is itself what all else is compared with"
            + "".join(f"; {note}" for note in notes),
            hint=f"Ask for another --precision or --backend, or make a graph: alexdeploy export {folder.quoted} --fp16",
        )
    if options.devices is not None and not engines:
        raise UsageError(
            f"no engine can be verified on --devices {options.devices}" + "".join(f"; {note}" for note in notes),
            hint=f"Leave out --devices, use another --backend, or build an engine: alexdeploy build {folder.quoted}",
        )
    return _Plan(reference, networks, tuple(engines), tuple(notes))


def _options_for(options: VerifyOptions, backend: Backend, precision: Precision) -> PredictOptions:
    options = replace(options, devices=devices_for(backend, options))
    return options.predict_options(backend, precision, options.num_views, options.batch_size)


def _artifact(folder: ModelFolder, backend: Backend, precision: Precision, sha256: str) -> str:
    """The name of the file that an engine ran; with several files, all of their names."""
    if backend in ENGINE_BACKENDS:
        return "+".join(path.name for path, record in find_engines(folder) if record.engine_sha256 in sha256.split("+"))
    return (folder.weights_path if backend == "torch" else folder.onnx_path(graph_precision(precision))).name


class _Run(NamedTuple):
    """State shared by all comparisons."""

    folder: ModelFolder
    spec: ModelSpec
    reference: Reference
    photographs: Sequence[NDArray[np.uint8]]
    options: VerifyOptions
    max_flips: float
    on_event: Callable[[Event], None]

    def tell(self, num_done: int) -> None:
        self.on_event(ImagesDone(num_done=num_done, num_images=len(self.photographs)))


def _verify_network(run: _Run, precision: Precision) -> NetworkReport:
    folder, spec = run.folder, run.spec
    graph = load_graph(folder, precision, spec)
    mean, num_views = folder.mean_image(spec), run.options.num_views
    networks = open_networks(graph.model, spec, mean)
    sha256 = graph.sha256
    # A full-size graph is 244 MB, and its session has its own copy.
    del graph
    if run.reference == "torch":
        from alexdeploy.engines.torch import open_layers

        references = [networks[0]._replace(layers=open_layers(folder))]
    else:
        references = open_networks(load_graph(folder, "fp32", spec).model, spec, mean, like=networks)
    sums: dict[str, ErrorSums] = {}
    expected, actual, num_done = [], [], 0
    for batch in _batches(run.photographs, max(1, _VIEWS_PER_BATCH // num_views)):
        (theirs, their_logits), (ours, our_logits) = (
            deployed_layers(each, batch, num_views) for each in (references, networks)
        )
        for name in ours:
            if name in theirs and are_comparable(theirs[name], ours[name]):
                sums.setdefault(name, ErrorSums()).add(theirs[name], ours[name])
        expected.append(their_logits)
        actual.append(our_logits)
        num_done += len(batch)
        run.tell(num_done)
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


def _probabilities(run: _Run, options: PredictOptions) -> tuple[str, NDArray[np.float32]]:
    """The hash of the artifact that ran, and float32 [N, C]. Raises DeviceError if an image has no answer."""
    parts: list[NDArray[np.float32]] = []
    num_done = 0
    with place(run.folder, options).engine as engine:
        info = engine.info

        def answer(batch: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            found = engine.run(np.stack(batch))
            for message in found.errors.values():
                raise DeviceError(f"{options.backend} {options.precision} gives no answer: {message}")
            # A copy: an engine may reuse the memory for its next answer.
            return np.array(found.probabilities)

        # Each stream of an engine has its own thread: one batch at a time would leave the others idle.
        with ThreadPoolExecutor(info.num_streams) as pool:
            for part in pool.map(answer, _batches(run.photographs, info.batch_size)):
                parts.append(part)
                num_done += len(part)
                run.tell(num_done)
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
