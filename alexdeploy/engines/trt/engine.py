"""TensorRT and TensorRT-RTX on an NVIDIA GPU: run engines built by `alexdeploy build`. Needs the library and pycuda.

CUDA objects belong to the thread that created them: pycuda frees memory only in the thread in whose context it was
allocated. So the caller's threads use none. One thread owns the engine, and one thread per stream owns its execution
context, stream and buffers. A batch goes to any free stream, so that one copies while another computes. All use the
device's primary context, as torch and ONNX Runtime do.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import (
    TENSORRT_STREAMS,
    EngineBackend,
    EngineInfo,
    EngineOptions,
    Predictions,
    check_images,
)
from alexdeploy.engines.trt.choose import EngineRequirements, choose_engine, differences_from, engine_requirements
from alexdeploy.engines.trt.context import Gpu, find_gpu, on_gpu, primary_context, translated
from alexdeploy.engines.trt.files import kernel_cache_path, load_engine, read_record
from alexdeploy.engines.trt.library import Library, load_library
from alexdeploy.engines.trt.rebuild import rebuild_hint
from alexdeploy.engines.trt.stream import Stream
from alexdeploy.engines.trt.stream_threads import StreamThreads

if TYPE_CHECKING:
    import tensorrt as trt


def open_engine(folder: ModelFolder, options: EngineOptions, backend: EngineBackend = "tensorrt") -> TensorRTEngine:
    """The engine file of the model that fits the device and the options. Raises ModelError if there is none."""
    library = load_library(backend)
    spec = folder.spec()
    gpu = find_gpu(options.device)
    wanted = engine_requirements(
        folder,
        precision=options.precision,
        num_views=options.num_views,
        batch_size=options.batch_size,
        backend=backend,
        version=library.version,
        compute_capability=gpu.compute_capability,
        cuda=gpu.cuda,
    )
    path = choose_engine(folder, wanted, gpu=gpu.name)
    info = EngineInfo(
        backend=backend,
        device=f"cuda:{gpu.index}",
        precision=options.precision,
        num_views=options.num_views,
        classes=spec.classes,
        artifact=read_record(path).engine_sha256,
        batch_size=options.batch_size,
        num_streams=TENSORRT_STREAMS,
    )
    return TensorRTEngine(library, path, info, gpu, wanted)


class TensorRTEngine:
    """One engine with an execution context for each stream."""

    def __init__(self, library: Library, path: Path, info: EngineInfo, gpu: Gpu, wanted: EngineRequirements) -> None:
        self.info = info
        self._library = library
        self._wanted = wanted
        self._path = path
        self._gpu = gpu
        self._threads = self._new_threads()
        self._opened: OpenedHere | None = None

    def __enter__(self) -> TensorRTEngine:
        record, plan = load_engine(self._path)
        # The engine was chosen by an unverified record; this one is verified.
        if record.engine_sha256 != self.info.artifact or differences_from(record, self._wanted):
            raise ModelError(f"{self._path} was replaced while it was being opened", hint="Run the command again.")
        plans = [plan]
        # Free hundreds of megabytes that the loaded engine does not need.
        del plan
        self._threads = self._new_threads()
        self._opened = OpenedHere(self)
        self._threads.start(plans)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is None or not self._opened.is_fork:
            self._threads.end()

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> predictions of N rows; up to `info.num_streams` calls run at once."""
        if self._opened is not None:
            self._opened.check("engine")
        check_images(images, self.info.batch_size)
        return self._threads.run(images)

    def _new_threads(self) -> StreamThreads[trt.ICudaEngine]:
        return StreamThreads(
            context=lambda: primary_context(self._gpu.index),
            load=self._load,
            make_stream=lambda: Stream(self._library, self.info, kernel_cache_path(self._gpu.name, self.info.artifact)),
            num_streams=self.info.num_streams,
            translated=translated,
        )

    def _load(self, plan: bytes) -> trt.ICudaEngine:
        engine: trt.ICudaEngine = self._library.open_plan(plan, self._path)
        _check_engine(self._library, engine, self._path, self.info)
        return engine


def _check_engine(library: Library, engine: trt.ICudaEngine, path: Path, info: EngineInfo) -> None:
    """Raise ModelError unless inputs, outputs and batch sizes match the sidecar."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (
            engine.get_tensor_mode(name) == library.api.TensorIOMode.INPUT,
            engine.get_tensor_dtype(name),
            tuple(engine.get_tensor_shape(name))[1:],
        )
        for name in names
    }
    expected = {
        "images": (True, library.api.DataType.UINT8, (IMAGE_SIZE, IMAGE_SIZE, 3)),
        "probabilities": (False, library.api.DataType.FLOAT, (len(info.classes),)),
        "view_classes": (False, library.api.DataType.INT32, (info.num_views,)),
    }
    if found != expected:
        raise ModelError(
            f"the inputs and outputs of {path} are {found}, expected {expected}",
            hint=rebuild_hint(path),
        )
    least, _, most = (shape[0] for shape in engine.get_tensor_profile_shape("images", 0))
    if not least <= info.batch_size <= most:
        raise ModelError(f"{path} takes {least} to {most} images, requested {info.batch_size}")


def inspect_engine(path: Path, device: str) -> str:
    """The layers of a trusted engine as JSON, from its library's inspector."""
    record, plan = load_engine(path)
    library = load_library(record.backend)
    gpu = find_gpu(device)

    return on_gpu(gpu.index, lambda: library.layer_information(library.open_plan(plan, path)))
