"""The engine protocol of every backend: it maps uint8 images to probabilities on one device."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.backend_checks import backend_problem
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import missing_package
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision, graph_precision

if TYPE_CHECKING:
    from alexdeploy.graphs.files import Graph

EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
"""Backends that run engine files, which `alexdeploy build` makes."""

Backend = Literal[EngineBackend, "openvino", "onnxruntime", "torch"]
NumViews = Literal[1, 5, 10]

ENGINE_BACKENDS: tuple[EngineBackend, ...] = get_args(EngineBackend)

TENSORRT_STREAMS = 2
"""Batches that TensorRT has in flight: one is copied while the other is computed. Each stream reserves memory for its
engine's largest batch, for any batch size."""


class Predictions(NamedTuple):
    """`probabilities` float32 [N, C], the mean over the views; `view_classes` int32 [N, V], each view's top class.

    Of an engine that is cut at a layer, `probabilities` are the layer's features, float32 [N, D], and `view_classes` is
    [N, 0]. `errors` maps a row without an answer to the reason. Only an engine of several replicas sets it, for an
    image on which they all fail.
    """

    probabilities: NDArray[np.float32]
    view_classes: NDArray[np.int32]
    errors: Mapping[int, str] = MappingProxyType({})


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of consecutive parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    errors_by_row: dict[int, str] = {}
    start = 0
    for part in parts:
        errors_by_row |= {start + row: message for row, message in part.errors.items()}
        start += len(part.probabilities)
    return Predictions(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.view_classes for part in parts]),
        errors_by_row,
    )


def predictions_of(outputs: Sequence[NDArray[Any]]) -> Predictions:
    """The outputs of a deployment graph; one that is cut at a layer has only its features."""
    first = outputs[0]
    return Predictions(first, outputs[1] if len(outputs) > 1 else np.empty((len(first), 0), np.int32))


def copied(found: Predictions) -> Predictions:
    """The same in memory of its own: an engine may reuse its memory for the next answer."""
    return Predictions(np.array(found.probabilities), np.array(found.view_classes), found.errors)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Options of an engine. `batch_size` counts images, not views. `num_threads` None: all that the process may use.

    `num_streams` is the maximum number of batches that run at once on a CPU; None: the number with the best throughput.
    One stream, which has all threads, gives the lowest latency for a single batch. For one image at a time, use
    `batch_size` 1 and `num_streams` 1: OpenVINO always computes the number of images that it was opened for.

    `device` is "cpu", or "cuda:0" and so on, in the numbering of this process's CUDA runtime.

    `layer`, as `feature_name` gives it, cuts the network there: the engine gives the layer's features.
    """

    precision: Precision = "fp32"
    num_views: NumViews = 1
    batch_size: int = 8
    num_threads: int | None = None
    num_streams: int | None = None
    device: str = "cpu"
    layer: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One way to run a model. `num_views` are averaged."""

    backend: Backend
    precision: Precision
    num_views: NumViews

    def __str__(self) -> str:
        return f"{self.backend} {self.precision} {self.num_views} view{'' if self.num_views == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What actually runs, which is what was requested. `artifact` is the SHA-256 of the graph, engine file or weights.

    For several replicas, all backends and artifacts are joined by "+". An engine that is cut at `layer` has features of
    `feature_shape`, (C, H, W) or (features,); of one that gives probabilities it is empty.
    """

    backend: str
    device: str
    precision: str
    num_views: int
    classes: tuple[str, ...]
    artifact: str
    batch_size: int
    num_streams: int
    layer: str | None = None
    feature_shape: tuple[int, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Values for each image: probabilities or features."""
        return math.prod(self.feature_shape) if self.feature_shape else len(self.classes)

    @property
    def configuration(self) -> Configuration:
        """The configuration; for replicas on several backends, the names joined by "+", like `backend`."""
        return Configuration(
            backend=cast("Backend", self.backend),
            precision=cast("Precision", self.precision),
            num_views=cast("NumViews", self.num_views),
        )


class Engine(Protocol):
    """A context manager: nothing touches a device before `__enter__`.

    Any number of threads may call `run`; `num_streams` batches are computed at once, the others wait.
    """

    @property
    def info(self) -> EngineInfo: ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] with 1 <= N <= batch_size -> predictions of exactly N rows.

        `low_latency`: a batch that is not full should not take the time of a full one, even if that costs memory. The
        last bits of its answers may then depend on the number of images. Engines for which it is the same ignore it.
        """
        ...


_PACKAGES: dict[Backend, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "gpu"),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "rtx"),
    "openvino": ("openvino", "cpu"),
    "onnxruntime": ("onnxruntime", "cpu"),
    "torch": ("torch", "train"),
}
"""Backend -> (required package, extra that installs it)."""

_PRECISIONS: dict[Backend, tuple[Precision, ...]] = {
    "tensorrt": ("fp32", "fp16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "torch": ("fp32", "bf16"),
}
"""What each backend can run, the best backend first. PyTorch reads weights, the others ONNX graphs."""


def is_installed(backend: Backend) -> bool:
    """Whether the backend's package is installed; does not import it."""
    return importlib.util.find_spec(_PACKAGES[backend][0]) is not None


def check_installed(backend: Backend) -> None:
    """Raise UsageError when the backend's package is not installed."""
    if not is_installed(backend):
        package, extra = _PACKAGES[backend]
        raise missing_package(package, f"the {backend} backend", extra)


def compiling_bytes(graph_bytes: int, precision: Precision) -> int:
    """What OpenVINO takes of memory while it compiles a graph of `graph_bytes`: measured 4.1 times the float32 weights.

    Of an FP16 graph it makes float32.
    """
    return 4 * graph_bytes * (2 if precision == "fp16" else 1)


def can_run(backend: Backend, precision: Precision) -> bool:
    """Whether the backend supports the precision. PyTorch supports none that is a property of an ONNX graph."""
    return precision in _PRECISIONS[backend]


def choose_backend(folder: ModelFolder, precision: Precision) -> Backend:
    """The first installed backend that can run the model on the CPU: one that reads its ONNX graph, or PyTorch.

    Skips backends that were found not to give the model's answers. If none can run it, returns the first that reads
    graphs, whose error then says what is missing. Raises ModelError if all that can run it were found unfit,
    UsageError if none that reads graphs is installed.
    """
    installed = [backend for backend in _PRECISIONS if backend not in ENGINE_BACKENDS and is_installed(backend)]
    able = [
        backend
        for backend in installed
        if can_run(backend, precision) and _artifact(folder, backend, precision).is_file()
    ]
    unfit = unfit_backends(folder, precision)
    for backend in able:
        if backend not in unfit:
            return backend
    if able:
        raise ModelError(
            f"no installed backend reproduces the answers of {folder.path}: "
            + "; ".join(f"{backend} {unfit[backend]}" for backend in able),
            hint=f"Check them again: alexdeploy export {folder.quoted}\nUse one anyway: --backend {able[0]}",
        )
    for backend in installed:
        if backend != "torch":
            return backend
    raise UsageError(
        "no backend that can run this model is installed", hint="Install one: pip install 'alexdeploy[cpu]'"
    )


def unfit_backends(folder: ModelFolder, precision: Precision) -> dict[Backend, str]:
    """The installed backends that do not give the answers of the folder's current files, and why."""
    graph = graph_precision(precision)
    return {
        backend: problem
        for backend in _PRECISIONS
        if is_installed(backend)
        and (problem := backend_problem(folder, backend, graph, _artifact(folder, backend, precision))) is not None
    }


def _artifact(folder: ModelFolder, backend: Backend, precision: Precision) -> Path:
    return folder.weights_path if backend == "torch" else folder.onnx_path(graph_precision(precision))


def open_engine(folder: ModelFolder, backend: Backend, options: EngineOptions) -> Engine:
    """An engine for the model, not yet opened. Raises UsageError when the backend's package is not installed."""
    engine: Engine
    if backend in ENGINE_BACKENDS:
        check_uncut(backend, options.layer)
        engine = _module(backend).open_engine(folder, options, backend)
    else:
        engine = _module(backend).open_engine(folder, options)
    return engine


def check_uncut(backend: Backend | None, layer: str | None) -> None:
    """Raise UsageError for a layer's features from a backend whose engine files give probabilities only."""
    if layer is not None and backend in ENGINE_BACKENDS:
        raise UsageError(
            f"{backend} runs engine files, which give probabilities and no layer's features",
            hint="Use --backend onnxruntime, which runs on GPUs too (pip install 'alexdeploy[gpu]'), or openvino.",
        )


def open_graph(
    backend: Backend,
    graph: Graph,
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    options: EngineOptions,
) -> Engine:
    """An OpenVINO or ONNX Runtime engine, not yet opened, for a network that need not be on disk.

    `mean_image` is float32 [3, 256, 256] if the spec has one.
    """
    engine: Engine = _module(backend).open_graph(graph, spec, mean_image, options)
    return engine


def _module(backend: Backend) -> ModuleType:
    if backend not in _PACKAGES:
        raise UsageError(f"unknown backend {backend!r}", hint=f"Backends: {', '.join(_PACKAGES)}")
    check_installed(backend)
    return importlib.import_module("alexdeploy.engines." + ("trt.engine" if backend in ENGINE_BACKENDS else backend))


def check_images(images: NDArray[np.uint8], batch_size: int) -> None:
    """Raise UsageError unless `images` is uint8 [1..batch_size, 256, 256, 3]."""
    shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or not 1 <= len(images) <= batch_size:
        expected = f"uint8 [1..{batch_size}, {IMAGE_SIZE}, {IMAGE_SIZE}, 3]"
        raise UsageError(f"images are {images.dtype} {list(images.shape)}, expected {expected}")
