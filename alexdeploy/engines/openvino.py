"""OpenVINO on the CPU, the fastest engine without a GPU."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, StaleArtifactError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.memory import host_memory
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision, graph_precision
from alexdeploy.core.version import __version__
from alexdeploy.engines.base import (
    EngineInfo,
    EngineOptions,
    Predictions,
    check_images,
    compiling_bytes,
    join_predictions,
)
from alexdeploy.engines.openvino_library import cpu_capabilities, has_exact_int8, ov, shared_core
from alexdeploy.engines.openvino_models import CompiledModel, SingleImages, compiled_model, infer
from alexdeploy.graphs.freshness import load_metadata
from alexdeploy.graphs.metadata import GraphMetadata
from alexdeploy.network.feature_names import feature_layer
from alexdeploy.network.layers import plan_layers

if TYPE_CHECKING:
    from onnx import ModelProto

    from alexdeploy.graphs.features import Cut
    from alexdeploy.graphs.files import Graph

_DERIVATION = 6
"""Version of the graph derived for this engine. Increment it when the derived graph changes."""

_VIEWS_AT_ONCE = 40
"""Views computed together. More is no faster, and the tensors between layers no longer fit into the CPU's cache."""

_LRN_MAPS = 16
"""OpenVINO's bfloat16 LRN kernel for AVX-512 needs a multiple of this number of maps."""


def open_engine(folder: ModelFolder, options: EngineOptions) -> OpenVINOEngine:
    """An engine for the model's graph of `options.precision`; bf16 runs the fp32 graph in bfloat16 arithmetic."""
    spec = folder.spec()
    precision = graph_precision(options.precision)
    facts = load_metadata(folder, precision, spec)

    def read() -> ModelProto:
        # Not above: what is in the cache runs without ONNX.
        from alexdeploy.graphs.freshness import load_graph

        graph = load_graph(folder, precision, spec)
        if (graph.sha256, graph.metadata) != (facts.sha256, facts.metadata):
            raise StaleArtifactError(f"{folder.onnx_path(precision)} changed while it was opened", hint="Run it again.")
        return graph.model

    num_bytes = folder.onnx_path(precision).stat().st_size
    return _engine(facts, read, spec, folder.mean_image(spec), options, num_bytes)


def open_graph(
    graph: Graph, spec: ModelSpec, mean_image: NDArray[np.float32] | None, options: EngineOptions
) -> OpenVINOEngine:
    """An engine for a graph that need not be on disk."""
    # A graph in memory may be large, and whoever passes it has full batches.
    return _engine(graph, lambda: graph.model, spec, mean_image, options, None)


def _engine(
    facts: GraphMetadata,
    read: Callable[[], ModelProto],
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    options: EngineOptions,
    num_bytes: int | None,
) -> OpenVINOEngine:
    # `num_bytes` is the size of the graph's file, None where it is in memory.
    num_threads = options.num_threads or available_processors()
    info = EngineInfo(
        backend="openvino",
        device="cpu",
        precision=options.precision,
        num_views=options.num_views,
        classes=spec.classes,
        artifact=facts.sha256,
        batch_size=options.batch_size,
        # One thread per stream: no thread waits for another inside a batch, and decoding runs in between.
        num_streams=min(options.num_streams or num_threads, num_threads),
        layer=options.layer,
        feature_shape=_feature_shape(spec, options.layer, read),
    )

    def load() -> bytes:
        if num_bytes is not None:
            _check_memory_to_compile(num_bytes, options.precision)
        network = read()
        cut = None if options.layer is None else _cut(network, spec, options.layer)
        model = local_graph(network, spec, options.precision, options.num_views, mean_image, cut)
        # Each is as large as the weights.
        del network
        content: bytes = model.SerializeToString()
        return content

    return OpenVINOEngine(load, info, facts.metadata, num_threads, may_be_bfloat16(facts, spec), num_bytes is not None)


def _check_memory_to_compile(num_bytes: int, precision: Precision) -> None:
    """Raise DeviceMemoryError if a graph of `num_bytes` cannot be compiled in the memory that is free."""
    needed = compiling_bytes(num_bytes, precision)
    free, _ = host_memory()
    if free is not None and needed > free:
        raise DeviceMemoryError(
            f"OpenVINO needs about {needed / 1e6:,.0f} MB of memory to compile it, {free / 1e6:,.0f} MB are free",
            hint=("" if precision == "int8" else "Use --precision int8. ")
            + "Opened once where more is free, it is in the cache of compiled models.",
        )


def _feature_shape(spec: ModelSpec, layer: str | None, read: Callable[[], ModelProto]) -> tuple[int, ...]:
    """The shape of a layer's features; where the architecture is unknown, from the graph."""
    if layer is None:
        return ()
    if spec.architecture is not None:
        return feature_layer(spec, layer).output_shape
    return _cut(read(), spec, layer).shape


def _cut(network: ModelProto, spec: ModelSpec, layer: str) -> Cut:
    # Not above: what is in the cache runs without ONNX.
    from alexdeploy.graphs.features import find_cut

    return find_cut(network, spec, layer)


def local_graph(
    network: ModelProto,
    spec: ModelSpec,
    precision: Precision,
    num_views: int,
    mean_image: NDArray[np.float32] | None,
    cut: Cut | None = None,
) -> ModelProto:
    """`openvino_graph` for this processor."""
    # Not above: what is in the cache runs without ONNX.
    from alexdeploy.graphs.openvino import openvino_graph

    unsigned = precision == "int8" and not has_exact_int8()
    return openvino_graph(network, spec, precision, num_views, mean_image, unsigned=unsigned, cut=cut)


def may_be_bfloat16(facts: GraphMetadata, spec: ModelSpec) -> bool:
    """Whether bfloat16 can be used between the layers of an INT8 graph: all are INT8, and each LRN has a fast kernel.

    For other numbers of maps OpenVINO 2026.4 has a slow kernel: `alexnet-quarter` would take three times as long.
    """
    if not facts.is_int8_throughout:
        return False
    for network in spec.networks:
        if network.architecture is None:
            return False
        layers = plan_layers(network.architecture, network.num_classes)
        if any(layer.output_shape[0] // layer.groups % _LRN_MAPS for layer in layers if layer.kind == "lrn"):
            return False
    return True


def precision_hint(capabilities: Collection[str], precision: str, allow_bfloat16: bool = True) -> str:
    """The type of operations that are not INT8. By default, OpenVINO uses bfloat16 if the CPU supports it.

    Between INT8 layers bfloat16 is enough: see docs/decisions.md and `may_be_bfloat16`. Raises DeviceError for bf16 if
    `capabilities`, from `cpu_capabilities`, do not include it.
    """
    has_bfloat16 = "BF16" in capabilities
    if precision == "bf16" and not has_bfloat16:
        raise DeviceError("this CPU has no bfloat16 arithmetic", hint="Use --precision fp32.")
    takes_bfloat16 = precision == "bf16" or (precision == "int8" and allow_bfloat16 and has_bfloat16)
    return "bf16" if takes_bfloat16 else "f32"


def images_at_once(batch_size: int, num_views: int) -> int:
    """Images computed together: a batch is split into equal parts of at most `_VIEWS_AT_ONCE` views each."""
    num_parts = -(-batch_size // max(1, _VIEWS_AT_ONCE // num_views))
    return -(-batch_size // num_parts)


class OpenVINOEngine:
    """One compiled model with as many infer requests as streams, and a second for batches that are not full.

    A model is compiled for a fixed number of images, `images_at_once`, because OpenVINO merges layout changes only for
    fixed shapes. A batch runs part by part, and the last part is padded with black images. With `low_latency`, such a
    part runs image by image in a model for one image, if it is small enough that this is faster. That model is opened
    when it is first needed, from the cache or from the graph, which is read again; not if `can_reload` is False.

    `load` returns the serialized deployment graph. It is not called if the compiled model is in the cache; then
    `was_compiled` stays False. `metadata` is that of the network's file and includes the contract.
    """

    def __init__(
        self,
        load: Callable[[], bytes],
        info: EngineInfo,
        metadata: Mapping[str, str],
        num_threads: int,
        allow_bfloat16: bool,
        can_reload: bool,
    ) -> None:
        self.info = info
        self._num_threads = num_threads
        self._allow_bfloat16 = allow_bfloat16
        self._can_reload = can_reload
        self.was_compiled = False
        self._load: Callable[[], bytes] | None = load
        self._shape = (images_at_once(info.batch_size, info.num_views), IMAGE_SIZE, IMAGE_SIZE, 3)
        # Everything that the compiled model depends on, by content. The metadata is read each time, so that a graph of
        # other weights has another key even if a stale hash is remembered for its file.
        versions = (__version__, _DERIVATION, ov.__version__)
        contents = (info.artifact, sorted(metadata.items()), info.precision, info.num_views)
        self._identity = (*versions, *contents, *([] if info.layer is None else [info.layer]))
        self._requests: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        self._compiled: ov.CompiledModel | None = None
        self._blob: NDArray[np.uint8] | None = None
        self._single: SingleImages | None = None
        self._opens_single = threading.Lock()
        self._opened: OpenedHere | None = None

    def __enter__(self) -> OpenVINOEngine:
        self._opened = OpenedHere(self)
        try:
            opened = self._open_model(self._shape)
            for _ in range(self.info.num_streams):
                self._requests.put(opened.model.create_infer_request())
        except RuntimeError as exc:
            raise self._device_error(exc) from exc
        self._compiled, self._blob, self.was_compiled = opened.model, opened.blob, opened.was_compiled
        if self._shape[0] == 1 or not self._can_reload:
            # Free the graph.
            self._load = None
        return self

    def _open_model(self, shape: tuple[int, ...]) -> CompiledModel:
        assert self._load is not None, "an engine can be entered only once"
        core = shared_core()
        config = {
            "INFERENCE_PRECISION_HINT": precision_hint(
                cpu_capabilities(core), self.info.precision, self._allow_bfloat16
            ),
            "NUM_STREAMS": str(self.info.num_streams),
            "INFERENCE_NUM_THREADS": str(self._num_threads),
            "ENABLE_CPU_PINNING": "NO",
        }
        return compiled_model(core, self._identity, shape, config, self._load)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None and self._opened.is_fork:
            return
        self._requests = queue.SimpleQueue()
        self._compiled = self._single = self._load = None

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows; up to `info.num_streams` calls run at once."""
        check_images(images, self.info.batch_size)
        if self._compiled is None or self._opened is None:
            raise DeviceError("the engine is not open", hint="Open it in a with statement.")
        self._opened.check("engine")
        request = self._requests.get()
        try:
            size = self._shape[0]
            parts = [
                self._run_part(request, images[start : start + size], low_latency)
                for start in range(0, len(images), size)
            ]
        except RuntimeError as exc:
            raise self._device_error(exc) from exc
        finally:
            self._requests.put(request)
        return join_predictions(parts)

    def _run_part(self, request: ov.InferRequest, images: NDArray[np.uint8], low_latency: bool) -> Predictions:
        num_images = len(images)
        if low_latency and num_images < self._shape[0]:
            single = self._single_images(request)
            if single is not None and num_images < single.break_even:
                return single.run(images)
        return infer(request, images, self._shape[0])

    def _single_images(self, request: ov.InferRequest) -> SingleImages | None:
        """The model for one image, opened by the first caller; None while it opens, and where it cannot be opened."""
        if self._single is None and self._load is not None and self._opens_single.acquire(blocking=False):
            try:
                # Another thread may have opened it meanwhile.
                if self._single is None and self._load is not None:
                    opened = self._open_model((1, *self._shape[1:]))
                    self._single = SingleImages(opened, self.info.num_streams, request, self._shape[0])
            # The model that is open gives the same answers: the file may have been replaced, or memory may be short.
            except (AlexDeployError, RuntimeError):
                pass
            finally:
                self._load = None
                self._opens_single.release()
        return self._single

    def _device_error(self, exc: RuntimeError) -> DeviceError:
        lines = str(exc).strip().splitlines() or ["no reason given"]
        # A list of operators that it cannot convert comes before a line of advice.
        text = next((line[3:] for line in lines if line.startswith("-- ")), lines[-1])
        if "memory" in text.lower() or "bad_alloc" in text:
            # A batch larger than that takes no more memory; each stream has its own.
            smaller = f"--batch-size {self._shape[0] // 2}, or " if self._shape[0] > 1 else ""
            return DeviceMemoryError(f"OpenVINO ran out of memory: {text}", hint=f"Use {smaller}fewer --threads.")
        return DeviceError(f"OpenVINO failed: {text}")
