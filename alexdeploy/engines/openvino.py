"""OpenVINO on the CPU: the fastest engine without a GPU."""

from __future__ import annotations

import queue
from types import TracebackType

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder, cache_folder
from alexdeploy.core.errors import DeviceError, DeviceMemoryError
from alexdeploy.engines.base import EngineInfo, EngineOptions, Predictions, available_threads, check_images
from alexdeploy.export.graphs import load_deployed


def open_engine(folder: ModelFolder, options: EngineOptions) -> OpenVINOEngine:
    """An engine for the model's graph of `options.precision`; bf16 runs the fp32 graph in bfloat16 arithmetic."""
    deployed = load_deployed(folder, "fp32" if options.precision == "bf16" else options.precision, options.num_views)
    threads = options.num_threads or available_threads()
    info = EngineInfo(
        backend="openvino",
        device="cpu",
        precision=options.precision,
        num_views=options.num_views,
        classes=deployed.spec.classes,
        artifact=deployed.artifact,
        batch_size=options.batch_size,
        # One thread a stream: no thread waits for another inside a batch, and decoding fits in between.
        num_streams=threads,
    )
    return OpenVINOEngine(deployed.content, info)


class OpenVINOEngine:
    """One compiled model with as many infer requests as streams."""

    def __init__(self, content: bytes, info: EngineInfo) -> None:
        self.info = info
        self._content: bytes | None = content
        self._requests: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        self._compiled: ov.CompiledModel | None = None

    def __enter__(self) -> OpenVINOEngine:
        core = ov.Core()
        if self.info.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError("this CPU has no bfloat16 arithmetic", cure="Use --precision fp32 here.")
        config = {
            # Left to itself it takes bfloat16 where the CPU has it, without a word.
            "INFERENCE_PRECISION_HINT": "bf16" if self.info.precision == "bf16" else "f32",
            "NUM_STREAMS": str(self.info.num_streams),
            "INFERENCE_NUM_THREADS": str(self.info.num_streams),
            "ENABLE_CPU_PINNING": "NO",
        }
        cache = cache_folder("openvino")
        if cache is not None:
            config["CACHE_DIR"] = str(cache)
        try:
            model = core.read_model(self._content)
            self._content = None
            self._compiled = core.compile_model(model, "CPU", config)
            del model
            for _ in range(self.info.num_streams):
                self._requests.put(self._compiled.create_infer_request())
        except RuntimeError as exc:
            raise _device_error(exc) from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests = queue.SimpleQueue()
        self._compiled = None

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows; up to `info.num_streams` calls run at once."""
        check_images(images, self.info.batch_size)
        if self._compiled is None:
            raise DeviceError("the engine is not open", cure="Use it in a with statement.")
        request = self._requests.get()
        try:
            request.infer({0: images}, share_inputs=True)
            probabilities = request.get_output_tensor(0).data.copy()
            view_classes = request.get_output_tensor(1).data.copy()
        except RuntimeError as exc:
            raise _device_error(exc) from exc
        finally:
            self._requests.put(request)
        return Predictions(probabilities, view_classes)


def _device_error(exc: RuntimeError) -> DeviceError:
    text = str(exc).strip().splitlines()[-1]
    if "memory" in text.lower() or "bad_alloc" in text:
        return DeviceMemoryError(f"OpenVINO ran out of memory: {text}", cure="Use a smaller --batch-size.")
    return DeviceError(f"OpenVINO failed: {text}")
