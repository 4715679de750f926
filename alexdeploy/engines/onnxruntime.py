"""ONNX Runtime: runs on every CPU; on an NVIDIA GPU, the second choice after TensorRT."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError, UsageError, first_line
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import ModelSpec
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, check_images, predictions_of
from alexdeploy.graphs.features import find_cut
from alexdeploy.graphs.files import Graph, deploy
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.onnxruntime_library import load_onnxruntime, new_session
from alexdeploy.graphs.runner import device_error

onnxruntime = load_onnxruntime()

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
MEMORY_HINT = "Use a smaller --batch-size."
_ON_CPU = "--devices cpu (with --placement: cpu,cpu)"


def open_engine(folder: ModelFolder, options: EngineOptions) -> OnnxRuntimeEngine:
    """An engine for the model's graph of `options.precision`, on the CPU or a GPU ("cuda:0").

    Raises UsageError for bf16, which it cannot run, and DeviceError for a GPU without the CUDA provider.
    """
    _check(options)
    spec = folder.spec()
    return open_graph(load_graph(folder, options.precision, spec), spec, folder.mean_image(spec), options)


def open_graph(
    graph: Graph, spec: ModelSpec, mean_image: NDArray[np.float32] | None, options: EngineOptions
) -> OnnxRuntimeEngine:
    """An engine for a graph that need not be on disk. Raises as `open_engine` does."""
    index = _check(options)
    cut = None if options.layer is None else find_cut(graph.model, spec, options.layer)
    info = EngineInfo(
        backend="onnxruntime",
        device="cpu" if index is None else f"cuda:{index}",
        precision=options.precision,
        num_views=options.num_views,
        classes=spec.classes,
        artifact=graph.sha256,
        batch_size=options.batch_size,
        num_streams=1,
        layer=options.layer,
        feature_shape=() if cut is None else cut.shape,
    )
    content = deploy(graph, spec, options.num_views, mean_image, cut)
    return OnnxRuntimeEngine(content, info, options.num_threads or available_processors())


def _check(options: EngineOptions) -> int | None:
    """The number of the GPU, None for the CPU."""
    if options.precision == "bf16":
        raise UsageError(
            "ONNX Runtime's CPU provider has no bfloat16", hint="Use --backend openvino or --precision fp32."
        )
    return _gpu_index(options.device)


class OnnxRuntimeEngine:
    """One inference session, whose threads work together on one batch."""

    def __init__(self, content: bytes, info: EngineInfo, num_threads: int) -> None:
        self.info = info
        self._content: bytes | None = content
        self._num_threads = num_threads
        self._session: Any = None
        self._opened: OpenedHere | None = None
        # Its threads work together on one batch: another caller waits.
        self._running = threading.Lock()
        self._bound: BoundInput | None = None

    def __enter__(self) -> OnnxRuntimeEngine:
        assert self._content is not None, "an engine can be entered only once"
        self._opened = OpenedHere(self)
        self._session = open_session(self._content, self.info.device, self._num_threads)
        index = _gpu_index(self.info.device)
        if index is not None:
            self._bound = BoundInput(self._session, "cuda", index, self.info.batch_size)
        self._content = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None and self._opened.is_fork:
            return
        # The memory of the binding belongs to the session: release it first.
        self._bound = None
        self._session = None

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows."""
        check_images(images, self.info.batch_size)
        if self._session is None or self._opened is None:
            raise DeviceError("the engine is not open", hint="Open it in a with statement.")
        self._opened.check("engine")
        session = self._session
        run: Callable[[NDArray[np.uint8]], list[Any]] = (
            self._bound.run if self._bound is not None else lambda batch: session.run(None, {"images": batch})
        )
        try:
            with self._running:
                outputs = run(images)
        except Exception as exc:
            raise device_error(exc, MEMORY_HINT) from exc
        return predictions_of(outputs)


class BoundInput:
    """A session whose input buffer is on its device, so that a batch is copied exactly once.

    Outputs come back to the host. Full batches reuse the buffer; a smaller last batch allocates its own.
    """

    def __init__(self, session: Any, device: str, index: int, batch_size: int) -> None:
        self._session = session
        self._device, self._index = device, index
        self._batch_size = batch_size
        self._full: Any = None

    def run(self, images: NDArray[np.uint8]) -> list[Any]:
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", self._value(np.ascontiguousarray(images)))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, "cpu")
        self._session.run_with_iobinding(binding)
        outputs: list[Any] = binding.copy_outputs_to_cpu()
        return outputs

    def _value(self, images: NDArray[np.uint8]) -> Any:
        if self._full is not None and len(images) == self._batch_size:
            self._full.update_inplace(images)
            return self._full
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images, self._device, self._index)
        if len(images) == self._batch_size and self._device != "cpu":
            self._full = value
        return value


def open_session(content: bytes, device: str, num_threads: int) -> Any:
    """A session on "cpu" or "cuda:0" and so on; `num_threads` counts CPU threads.

    Raises UsageError for another device, and DeviceError if ONNX Runtime cannot run all of the graph there.
    """
    index = _gpu_index(device)
    provider, settings = _CPU, {}
    if index is not None:
        load_cuda_libraries()
        # Full FP32: the default is TF32, which has 10 bits of mantissa.
        provider, settings = _CUDA, {"device_id": str(index), "use_tf32": "0"}

    def set_options(options: Any) -> None:
        options.intra_op_num_threads = num_threads
        # Spinning threads would take cores from the decoder, and from the other of two devices.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if index is not None:
            # Fail instead of silently running the graph or a part of it on the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")

    try:
        session = new_session(content, [(provider, settings)], set_options)
    except Exception as exc:
        if "fallback to CPU" in str(exc):
            raise DeviceError(
                f"ONNX Runtime would run part of the graph on the CPU: {first_line(exc)}",
                hint=f"Use the CPU: {_ON_CPU}",
            ) from exc
        raise device_error(exc, MEMORY_HINT) from exc
    check_provider(session.get_providers(), provider)
    return session


def _gpu_index(device: str) -> int | None:
    """The number in "cuda:0", None for "cpu". Raises UsageError, and DeviceError without the CUDA provider."""
    if device == "cpu":
        return None
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise UsageError(f"ONNX Runtime runs on cpu or on cuda:0 and so on, not on {device!r}")
    if _CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"{device} needs ONNX Runtime's CUDA provider, which the installed {onnxruntime.__version__} does not have",
            hint="pip uninstall onnxruntime; pip install 'alexdeploy[gpu]'",
        )
    return int(number or 0)


def check_provider(found: list[str], wanted: str) -> None:
    """Raise DeviceError if a session does not use the requested provider: ONNX Runtime only warns."""
    if not found or found[0] != wanted:
        raise DeviceError(
            f"ONNX Runtime opened {', '.join(found) or 'nothing'} instead of {wanted}: "
            "its CUDA or cuDNN libraries do not load, or it finds no GPU",
            hint=f"Install them: pip install 'alexdeploy[gpu]'\nOr use the CPU: {_ON_CPU}",
        )


def load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from pip's packages, as `import torch` does, so that the system's are not used."""
    # Added in ONNX Runtime 1.21. It prints missing libraries to stdout, which is for results.
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):
            preload()
