"""One stream of a TensorRT engine, created, used and released in one thread. Needs pycuda."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import TENSORRT_STREAMS, EngineInfo, Predictions
from alexdeploy.engines.trt.cuda_driver import CudaGraph, try_graph
from alexdeploy.engines.trt.kernel_cache import KernelCache
from alexdeploy.engines.trt.library import Library

if TYPE_CHECKING:
    import tensorrt as trt

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: it does not wait for the default stream, which other libraries in the process may use."""


def make_context(
    library: Library,
    engine: trt.ICudaEngine,
    stream: cuda.Stream,
    hint: str,
    config: object | None = None,
) -> trt.IExecutionContext:
    """An execution context with the engine's only profile, shared by all streams. `hint` is used if memory ran out.

    `config` is for TensorRT-RTX.
    """
    options = {} if config is None else {"runtime_config": config}
    context: trt.IExecutionContext = engine.create_execution_context(**options)
    if context is None:
        raise library.refused(f"{library.name} could not make an execution context", hint)
    try:
        context.set_optimization_profile_async(0, stream.handle)
    # Its return value is always True. TensorRT 8.6 raises without the GIL, so that the process may end there.
    except RuntimeError as exc:
        raise library.refused(f"{library.name} rejected the optimization profile", hint) from exc
    stream.synchronize()
    return context


def check_contexts(library: Library, engine: trt.ICudaEngine) -> None:
    """Raise DeviceError unless all streams can have their contexts at the same time."""
    stream = cuda.Stream(_NON_BLOCKING)
    hint = "Use a smaller --max-batch, or free memory on the GPU."
    contexts = [make_context(library, engine, stream, hint) for _ in range(TENSORRT_STREAMS)]
    # Free the contexts before their stream.
    del contexts


class Stream:
    """An execution context, a CUDA stream and buffers for one batch; created, used and released in one thread."""

    def __init__(self, library: Library, info: EngineInfo, kernels_path: Path | None = None) -> None:
        self._library = library
        self._kernels_path = kernels_path
        self._kernels: KernelCache | None = None
        self._batch_size = info.batch_size
        self._num_classes, self._num_views = len(info.classes), info.num_views
        self._context: trt.IExecutionContext | None = None
        self._stream: cuda.Stream | None = None
        self._graph: CudaGraph | None = None
        self._num_images = self._num_runs = 0
        self._is_capturable = True
        self._host: dict[str, NDArray[np.generic]] = {}
        self._device: dict[str, cuda.DeviceAllocation] = {}

    def open(self, engine: trt.ICudaEngine) -> None:
        """Allocate all memory for a full batch and run one, so that errors appear now."""
        self._stream = cuda.Stream(_NON_BLOCKING)
        if self._library.backend == "tensorrt-rtx":
            self._kernels = KernelCache(self._library, engine, self._kernels_path)
        config = None if self._kernels is None else self._kernels.config
        context: trt.IExecutionContext = make_context(
            self._library, engine, self._stream, "Use a smaller --batch-size.", config
        )
        self._context = context
        for name, shape, dtype in (
            ("images", (self._batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
            ("probabilities", (self._batch_size, self._num_classes), np.float32),
            ("view_classes", (self._batch_size, self._num_views), np.int32),
        ):
            self._host[name] = cuda.pagelocked_empty(shape, dtype)
            self._host[name][...] = 0
            self._device[name] = cuda.mem_alloc(self._host[name].nbytes)
            if not context.set_tensor_address(name, int(self._device[name])):
                raise self._library.refused(f"{self._library.name} rejected the address of {name}")
        blank = np.zeros((self._batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        # The first run enqueues, the second captures.
        self.run(blank)
        self.run(blank)
        if self._kernels is not None:
            self._kernels.save()

    def run(self, images: NDArray[np.uint8]) -> Predictions:
        assert self._stream is not None
        num_images = len(images)
        self._set_num_images(num_images)
        np.copyto(self._host["images"][:num_images], images)
        # A graph fixes shapes and addresses. TensorRT must run once with this shape before it is captured.
        if num_images == self._batch_size and self._graph is None and self._num_runs and self._is_capturable:
            self._graph = self._capture()
        if self._graph is not None:
            self._graph.launch(self._stream.handle)
        else:
            self._enqueue()
        self._stream.synchronize()
        self._num_runs += 1
        return Predictions(
            np.array(self._host["probabilities"][:num_images], np.float32),
            np.array(self._host["view_classes"][:num_images], np.int32),
        )

    def close(self) -> None:
        """Release everything in reverse order of dependency. Call it in the thread that opened the stream."""
        if self._stream is not None:
            # If the device is lost, the code below frees what it can.
            with suppress(cuda.Error):
                self._stream.synchronize()
        if self._graph is not None:
            self._graph.close()
        self._graph = None
        self._context = None
        self._kernels = None
        self._device.clear()
        self._host.clear()
        self._stream = None

    def _set_num_images(self, num_images: int) -> None:
        """Set the number of images in TensorRT, and check that the outputs have as many rows."""
        assert self._context is not None
        if num_images == self._num_images:
            return
        context: trt.IExecutionContext = self._context
        if self._graph is not None:
            # TensorRT may keep shape-dependent data on the device, so the graph of another shape is not reused.
            self._graph.close()
            self._graph = None
        # The context has no valid shape until the new one is set.
        self._num_images = self._num_runs = 0
        if not context.set_input_shape("images", (num_images, IMAGE_SIZE, IMAGE_SIZE, 3)):
            raise self._library.refused(f"{self._library.name} rejected a batch of {num_images} images")
        try:
            missing: list[str] = context.infer_shapes()
        # As with the profile: it never returns an error.
        except RuntimeError as exc:
            raise self._library.refused(f"{self._library.name} cannot compute a batch of {num_images} images") from exc
        rows = [context.get_tensor_shape(name)[0] for name in ("probabilities", "view_classes")]
        if missing or rows != [num_images, num_images]:
            raise DeviceError(f"a batch of {num_images} images would give {rows} rows {' '.join(missing)}")
        self._num_images = num_images

    def _enqueue(self) -> None:
        """Enqueue copies and computation of the current batch."""
        assert self._context is not None
        assert self._stream is not None
        rows = slice(self._num_images)
        cuda.memcpy_htod_async(self._device["images"], self._host["images"][rows], self._stream)
        context: trt.IExecutionContext = self._context
        if not context.execute_async_v3(self._stream.handle):
            raise self._library.refused(f"{self._library.name} failed to run a batch")
        for name in ("probabilities", "view_classes"):
            cuda.memcpy_dtoh_async(self._host[name][rows], self._device[name], self._stream)

    def _capture(self) -> CudaGraph | None:
        """The current batch as one CUDA graph; None if the engine can never be captured."""
        assert self._stream is not None
        graph = try_graph(self._stream.handle, self._enqueue)
        if graph is None:
            # The same work is enqueued without a graph. Discard the log messages.
            self._library.take_log()
            self._is_capturable = False
        return graph
