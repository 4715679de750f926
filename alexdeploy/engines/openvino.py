"""OpenVINO on the CPU, the fastest engine without a GPU."""

from __future__ import annotations

import hashlib
import platform
import queue
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.cache import cache_folder, limit_folder
from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, OutputError, StaleArtifactError
from alexdeploy.core.files import atomic_write, sha256_bytes
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.hashes import remembered_sha256
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.reading import MAX_DATA_BYTES, open_regular, read_regular
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision, graph_precision
from alexdeploy.core.version import __version__
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, check_images, join_predictions
from alexdeploy.engines.openvino_library import cpu_capabilities, has_exact_int8, max_cpu_isa, ov
from alexdeploy.graphs.freshness import load_metadata
from alexdeploy.graphs.metadata import GraphMetadata
from alexdeploy.network.layers import plan_layers

if TYPE_CHECKING:
    from onnx import ModelProto

    from alexdeploy.graphs.files import Graph

_DERIVATION = 5
"""Version of the graph derived for this engine. Increment it when the derived graph changes."""

_VIEWS_AT_ONCE = 40
"""Views computed together. More is no faster, and the tensors between layers no longer fit into the CPU's cache."""

_LRN_MAPS = 16
"""OpenVINO's bfloat16 LRN kernel for AVX-512 needs a multiple of this number of maps."""

_CACHE_BYTES = 2 << 30
"""Compiled models kept in the cache, one for each precision, number of views and number of images at once: 245 MB each
for the full network in FP32, 62 MB in INT8."""

_TOUCH_SECONDS = 3600
"""Resolution of the cache's last use. A touched file is hashed again once: 0.2 s for 245 MB."""


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

    return _engine(facts, read, spec, folder.mean_image(spec), options)


def open_graph(
    graph: Graph, spec: ModelSpec, mean_image: NDArray[np.float32] | None, options: EngineOptions
) -> OpenVINOEngine:
    """An engine for a graph that need not be on disk."""
    return _engine(graph, lambda: graph.model, spec, mean_image, options)


def _engine(
    facts: GraphMetadata,
    read: Callable[[], ModelProto],
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    options: EngineOptions,
) -> OpenVINOEngine:
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
    )

    def load() -> bytes:
        model = local_graph(read(), spec, options.precision, options.num_views, mean_image)
        content: bytes = model.SerializeToString()
        return content

    return OpenVINOEngine(load, info, facts.metadata, num_threads, may_be_bfloat16(facts, spec))


def local_graph(
    network: ModelProto,
    spec: ModelSpec,
    precision: Precision,
    num_views: int,
    mean_image: NDArray[np.float32] | None,
) -> ModelProto:
    """`openvino_graph` for this processor."""
    # Not above: what is in the cache runs without ONNX.
    from alexdeploy.graphs.openvino import openvino_graph

    unsigned = precision == "int8" and not has_exact_int8()
    return openvino_graph(network, spec, precision, num_views, mean_image, unsigned=unsigned)


def may_be_bfloat16(facts: GraphMetadata, spec: ModelSpec) -> bool:
    """Whether bfloat16 can be used between the layers of an INT8 graph: all are INT8, and each LRN has a fast kernel.

    For other numbers of maps OpenVINO 2026.4 has a slow kernel: `alexnet-quarter` would take three times as long.
    """
    if spec.architecture is None or not facts.is_int8_throughout:
        return False
    layers = plan_layers(spec.architecture, spec.num_classes)
    return all(layer.output_shape[0] // layer.groups % _LRN_MAPS == 0 for layer in layers if layer.kind == "lrn")


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
    """One compiled model with as many infer requests as streams.

    It is compiled for a fixed number of images, `images_at_once`, because OpenVINO merges layout changes only for fixed
    shapes. A batch runs part by part, and the last part is padded with black images: for one image at a time, use a
    `batch_size` of 1.

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
    ) -> None:
        self.info = info
        self._num_threads = num_threads
        self._allow_bfloat16 = allow_bfloat16
        self.was_compiled = False
        self._load: Callable[[], bytes] | None = load
        self._shape = (images_at_once(info.batch_size, info.num_views), IMAGE_SIZE, IMAGE_SIZE, 3)
        # Everything that the compiled model depends on, by content. The metadata is read each time, so that a graph of
        # other weights has another key even if a stale hash is remembered for its file.
        versions = (__version__, _DERIVATION, ov.__version__)
        of_graph = (info.artifact, sorted(metadata.items()))
        self._key = (*versions, *of_graph, info.precision, info.num_views, self._shape)
        self._cache_key = ""
        self._requests: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        self._compiled: ov.CompiledModel | None = None
        self._opened: OpenedHere | None = None
        # The memory of a compiled model from the cache, which must stay mapped as long as the model is used.
        self._blob: NDArray[np.uint8] | None = None

    def __enter__(self) -> OpenVINOEngine:
        self._opened = OpenedHere(self)
        core = ov.Core()
        capabilities = cpu_capabilities(core)
        hint = precision_hint(capabilities, self.info.precision, self._allow_bfloat16)
        config = {
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": str(self.info.num_streams),
            "INFERENCE_NUM_THREADS": str(self._num_threads),
            "ENABLE_CPU_PINNING": "NO",
        }
        # Machines may share a home folder. Streams and threads are set again when a model is imported.
        device_name = core.get_property("CPU", "FULL_DEVICE_NAME")
        processor = (platform.machine(), device_name, max_cpu_isa(), sorted(capabilities))
        self._cache_key = sha256_bytes(repr((self._key, hint, processor)).encode())[:32]
        try:
            self._compiled = self._cached(core, config) or self._compile(core, config)
            for _ in range(self.info.num_streams):
                self._requests.put(self._compiled.create_infer_request())
        except RuntimeError as exc:
            raise self._device_error(exc) from exc
        self._load = None
        return self

    def _cached(self, core: ov.Core, config: dict[str, str]) -> ov.CompiledModel | None:
        folder = cache_folder("openvino")
        if folder is None:
            return None
        # The file name ends with the hash of the content.
        for path in folder.glob(f"{self._cache_key}-*.blob"):
            with suppress(OSError, RuntimeError, ModelError):
                # OpenVINO loads a damaged blob without an error, and then gives wrong answers.
                if remembered_sha256(path) == path.stem.partition("-")[2]:
                    return self._import(core, path, config)
        # Missing, damaged, or from another build: compile and write it again.
        return None

    def _import(self, core: ov.Core, path: Path, config: dict[str, str]) -> ov.CompiledModel:
        # Mapped, not read: all processes share the weights in the page cache. Copy on write, because OpenVINO does not
        # accept read-only memory.
        with open_regular(path) as file:
            self._blob = np.memmap(file, np.uint8, "c")
        try:
            compiled = core.import_model(ov.Tensor(self._blob, shared_memory=True), "CPU", config)
        except TypeError:
            # OpenVINO 2025.1 does not accept tensors.
            compiled = core.import_model(read_regular(path, MAX_DATA_BYTES), "CPU", config)
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
                # The cache deletes the least recently used models.
                path.touch()
        return compiled

    def _compile(self, core: ov.Core, config: dict[str, str]) -> ov.CompiledModel:
        assert self._load is not None, "an engine can be entered only once"
        content = self._load()
        self.was_compiled = True
        # Free the graph as read from disk, which is as large as the compiled model.
        self._load = None
        model = core.read_model(content)
        del content
        model.reshape(list(self._shape))
        compiled = core.compile_model(model, "CPU", config)
        del model
        folder = cache_folder("openvino")
        if folder is not None:
            blob = compiled.export_model().getbuffer()
            path = folder / f"{self._cache_key}-{hashlib.sha256(blob).hexdigest()}.blob"
            with suppress(OSError, OutputError):
                with atomic_write(path) as file:
                    file.write(blob)
                # A damaged blob, or one from another process: two compilations may differ in some bytes.
                for other in set(folder.glob(f"{self._cache_key}-*.blob")) - {path}:
                    other.unlink()
            limit_folder(folder, _CACHE_BYTES)
        return compiled

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None and self._opened.is_fork:
            return
        self._requests = queue.SimpleQueue()
        self._compiled = None

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows; up to `info.num_streams` calls run at once."""
        check_images(images, self.info.batch_size)
        if self._compiled is None or self._opened is None:
            raise DeviceError("the engine is not open", hint="Open it in a with statement.")
        self._opened.check("engine")
        request = self._requests.get()
        try:
            size = self._shape[0]
            parts = [self._run_part(request, images[start : start + size]) for start in range(0, len(images), size)]
        except RuntimeError as exc:
            raise self._device_error(exc) from exc
        finally:
            self._requests.put(request)
        return join_predictions(parts)

    def _run_part(self, request: ov.InferRequest, images: NDArray[np.uint8]) -> Predictions:
        num_images = len(images)
        if num_images < self._shape[0]:
            whole = np.zeros(self._shape, np.uint8)
            whole[:num_images] = images
            images = whole
        request.infer({0: images}, share_inputs=True)
        return Predictions(
            probabilities=request.get_output_tensor(0).data[:num_images].copy(),
            view_classes=request.get_output_tensor(1).data[:num_images].copy(),
        )

    def _device_error(self, exc: RuntimeError) -> DeviceError:
        lines = str(exc).strip().splitlines() or ["no reason given"]
        # A list of operators that it cannot convert comes before a line of advice.
        text = next((line[3:] for line in lines if line.startswith("-- ")), lines[-1])
        if "memory" in text.lower() or "bad_alloc" in text:
            # A batch larger than that takes no more memory; each stream has its own.
            smaller = f"--batch-size {self._shape[0] // 2}, or " if self._shape[0] > 1 else ""
            return DeviceMemoryError(f"OpenVINO ran out of memory: {text}", hint=f"Use {smaller}fewer --threads.")
        return DeviceError(f"OpenVINO failed: {text}")
