"""Kernels that TensorRT-RTX compiles for the GPU on which an engine runs, kept on disk for the next time."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from alexdeploy.core.cache import limit_folder
from alexdeploy.core.errors import OutputError
from alexdeploy.core.files import atomic_write
from alexdeploy.core.reading import MAX_DATA_BYTES, read_regular
from alexdeploy.engines.trt.library import Library

if TYPE_CHECKING:
    import tensorrt as trt

_MOST_BYTES = 1 << 30
"""Of all files of kernels together."""


class KernelCache:
    """The kernels of one execution context; `config` is what the context is made with.

    `path` is None if nothing may be kept. The library rejects kernels of another version, GPU or driver.
    """

    def __init__(self, library: Library, engine: trt.ICudaEngine, path: Path | None) -> None:
        self._path = path
        self.config: trt.IRuntimeConfig = engine.create_runtime_config()
        # By default better kernels come later, from another thread: a CUDA graph would keep the first ones.
        eager = library.api.DynamicShapesKernelSpecializationStrategy.EAGER
        self.config.dynamic_shapes_kernel_specialization_strategy = eager
        self._cache: trt.IRuntimeCache = self.config.create_runtime_cache()
        self._kept = b""
        if path is not None:
            with suppress(OSError):
                self._kept = read_regular(path, MAX_DATA_BYTES)
        if self._kept and not self._cache.deserialize(self._kept):
            library.take_log()
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the kernels that were compiled since, if any. Optional: it only speeds up the next start."""
        if self._path is None:
            return
        cache: trt.IRuntimeCache = self._cache
        content = bytes(cache.serialize())
        if content == self._kept:
            return
        with suppress(OutputError, OSError):
            with atomic_write(self._path) as file:
                file.write(content)
            limit_folder(self._path.parent, _MOST_BYTES)
