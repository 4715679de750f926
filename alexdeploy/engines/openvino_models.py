"""Models that OpenVINO compiles for a fixed number of images, and the cache that keeps them."""

from __future__ import annotations

import hashlib
import math
import platform
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.cache import cache_folder, limit_folder
from alexdeploy.core.errors import ModelError, OutputError
from alexdeploy.core.files import atomic_write, sha256_bytes
from alexdeploy.core.hashes import remembered_sha256
from alexdeploy.core.reading import MAX_DATA_BYTES, open_regular, read_regular
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import Predictions, join_predictions, predictions_of
from alexdeploy.engines.openvino_library import cpu_capabilities, max_cpu_isa, ov

_CACHE_BYTES = 2 << 30
"""Compiled models kept in the cache, one for each precision, number of views and number of images at once: 245 MB each
for the full network in FP32, 62 MB in INT8."""

_TOUCH_SECONDS = 3600
"""Resolution of the cache's last use. A touched file is hashed again once: 0.2 s for 245 MB."""

_MEASURE_SECONDS = 0.5
_MOST_ROUNDS = 5
"""How long, and how many times, two models are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledModel:
    """`blob` is the memory of a model from the cache, which must stay mapped as long as the model is used."""

    model: ov.CompiledModel
    blob: NDArray[np.uint8] | None
    was_compiled: bool


def compiled_model(
    core: ov.Core,
    identity: tuple[object, ...],
    shape: tuple[int, ...],
    config: dict[str, str],
    load: Callable[[], bytes],
) -> CompiledModel:
    """The model for inputs of `shape`, from the cache, or else compiled from the graph that `load` returns.

    `identity` is everything that the compiled model depends on, by content, besides the shape and the processor; the
    precision hint in `config` counts, its streams and threads are set again when a model is imported. Raises
    RuntimeError from OpenVINO and the errors of `load`.
    """
    capabilities = cpu_capabilities(core)
    # Machines may share a home folder.
    processor = (
        platform.machine(),
        core.get_property("CPU", "FULL_DEVICE_NAME"),
        max_cpu_isa(),
        sorted(capabilities),
    )
    hint = config["INFERENCE_PRECISION_HINT"]
    key = sha256_bytes(repr(((*identity, shape), hint, processor)).encode())[:32]
    return _cached(core, key, config) or _compile(core, key, shape, config, load)


def _cached(core: ov.Core, key: str, config: dict[str, str]) -> CompiledModel | None:
    folder = cache_folder("openvino")
    if folder is None:
        return None
    # The file name ends with the hash of the content.
    for path in folder.glob(f"{key}-*.blob"):
        with suppress(OSError, RuntimeError, ModelError):
            # OpenVINO loads a damaged blob without an error, and then gives wrong answers.
            if remembered_sha256(path) == path.stem.partition("-")[2]:
                return _import(core, path, config)
    # Missing, damaged, or from another build: compile and write it again.
    return None


def _import(core: ov.Core, path: Path, config: dict[str, str]) -> CompiledModel:
    # Mapped, not read: all processes share the weights in the page cache. Copy on write, because OpenVINO does not
    # accept read-only memory.
    with open_regular(path) as file:
        blob = np.memmap(file, np.uint8, "c")
    try:
        model = core.import_model(ov.Tensor(blob, shared_memory=True), "CPU", config)
    except TypeError:
        # OpenVINO 2025.1 does not accept tensors.
        model = core.import_model(read_regular(path, MAX_DATA_BYTES), "CPU", config)
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
            # The cache deletes the least recently used models.
            path.touch()
    return CompiledModel(model=model, blob=blob, was_compiled=False)


def _compile(
    core: ov.Core, key: str, shape: tuple[int, ...], config: dict[str, str], load: Callable[[], bytes]
) -> CompiledModel:
    content = load()
    graph = core.read_model(content)
    del content
    graph.reshape(list(shape))
    if shape[0] == 1:
        graph = with_two_rows(graph)
    model = core.compile_model(graph, "CPU", config)
    del graph
    folder = cache_folder("openvino")
    if folder is not None:
        blob = model.export_model().getbuffer()
        path = folder / f"{key}-{hashlib.sha256(blob).hexdigest()}.blob"
        with suppress(OSError, OutputError):
            with atomic_write(path) as file:
                file.write(blob)
            # A damaged blob, or one from another process: two compilations may differ in some bytes.
            for other in set(folder.glob(f"{key}-*.blob")) - {path}:
                other.unlink()
        limit_folder(folder, _CACHE_BYTES)
    return CompiledModel(model=model, blob=None, was_compiled=True)


def with_two_rows(graph: ov.Model) -> ov.Model:
    """The graph for one image, or where its matrix products have one row, one that computes that row twice.

    A product of one row has a kernel of its own, which sums in another order: the image would have other last bits
    alone than among others. The outputs then have two equal rows.
    """
    doubled = graph.clone()
    products = (node for node in doubled.get_ordered_ops() if node.get_type_name() == "MatMul")
    first = next(products, None)
    if first is None or first.input_value(0).get_shape()[0] != 1:
        return graph
    row = first.input_value(0)
    first.input(0).replace_source_output(ov.opset8.concat([row, row], 0).output(0))
    try:
        doubled.validate_nodes_and_infer_types()
    except RuntimeError:
        return graph
    # Of an imported graph, what comes after may not go by its input's rows.
    shapes = [[2, *output.get_shape()[1:]] for output in graph.outputs]
    return doubled if [list(output.get_shape()) for output in doubled.outputs] == shapes else graph


def infer(request: ov.InferRequest, images: NDArray[np.uint8], size: int) -> Predictions:
    """Run at most `size` images in a model for that number, padded with black ones."""
    num_images = len(images)
    if num_images < size:
        whole = np.zeros((size, *images.shape[1:]), np.uint8)
        whole[:num_images] = images
        images = whole
    request.infer({0: images}, share_inputs=True)
    return predictions_of([tensor.data[:num_images].copy() for tensor in request.output_tensors])


class SingleImages:
    """A model for one image, beside one for `size` images of which `request` is one. Thread-safe.

    `break_even` is the number of images from which on it is slower than the other, measured here.
    """

    def __init__(self, opened: CompiledModel, num_streams: int, request: ov.InferRequest, size: int) -> None:
        self._opened = opened
        self._requests: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(num_streams):
            self._requests.put(opened.model.create_infer_request())
        blank = np.zeros((size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self.run(blank[:1])
        # As many images in both, since short times are less certain.
        whole, singles = least_cpu_seconds(lambda: infer(request, blank, size), lambda: self.run(blank))
        self.break_even = size * whole / singles

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        """Run any number of images, one after the other."""
        request = self._requests.get()
        try:
            return join_predictions([infer(request, images[n : n + 1], 1) for n in range(len(images))])
        finally:
            self._requests.put(request)


def least_cpu_seconds(*calls: Callable[[], object]) -> list[float]:
    """The least processor time of each call, in rounds: other programs on the machine do not count."""
    least = [math.inf] * len(calls)
    end = time.monotonic() + _MEASURE_SECONDS
    for _ in range(_MOST_ROUNDS):
        for number, call in enumerate(calls):
            began = time.process_time()
            call()
            least[number] = min(least[number], time.process_time() - began)
        if time.monotonic() > end:
            break
    return least
