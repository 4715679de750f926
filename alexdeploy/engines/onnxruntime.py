"""ONNX Runtime on the CPU: the engine that is everywhere."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import DeviceError, UsageError
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, check_images
from alexdeploy.export.graphs import deploy, load_graph
from alexdeploy.export.runner import device_error

_PROVIDER = "CPUExecutionProvider"
_MEMORY_CURE = "Use a smaller --batch-size."


def open_engine(folder: ModelFolder, options: EngineOptions) -> OnnxRuntimeEngine:
    """An engine for the model's graph of `options.precision`. Raises UsageError for bf16, which it cannot run."""
    if options.precision == "bf16":
        raise UsageError(
            "ONNX Runtime's CPU provider has no bfloat16", cure="Use --backend openvino or --precision fp32."
        )
    spec = folder.spec()
    graph = load_graph(folder, options.precision, spec)
    content = deploy(graph, spec, options.num_views, folder.mean_image(spec))
    info = EngineInfo(
        backend="onnxruntime",
        device="cpu",
        precision=options.precision,
        num_views=options.num_views,
        classes=spec.classes,
        artifact=graph.sha256,
        batch_size=options.batch_size,
        num_streams=1,
    )
    return OnnxRuntimeEngine(content, info, options.num_threads or available_processors())


class OnnxRuntimeEngine:
    """One inference session; its threads work together on one batch."""

    def __init__(self, content: bytes, info: EngineInfo, num_threads: int) -> None:
        self.info = info
        self._content: bytes | None = content
        self._num_threads = num_threads
        self._session: onnxruntime.InferenceSession | None = None

    def __enter__(self) -> OnnxRuntimeEngine:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        options.log_severity_level = 3
        onnxruntime.disable_telemetry_events()
        # Threads that spin while they wait would take the cores from the decoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(self._content, options, providers=[_PROVIDER])
        except Exception as exc:
            raise device_error(exc, _MEMORY_CURE) from exc
        self._content = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows."""
        check_images(images, self.info.batch_size)
        if self._session is None:
            raise DeviceError("the engine is not open", cure="Use it in a with statement.")
        try:
            probabilities, view_classes = self._session.run(["probabilities", "view_classes"], {"images": images})
        except Exception as exc:
            raise device_error(exc, _MEMORY_CURE) from exc
        return Predictions(probabilities, view_classes)
