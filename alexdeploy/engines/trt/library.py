"""The library over which engines are built and run: TensorRT, or TensorRT-RTX.

TensorRT-RTX has the interface of TensorRT 11 under a name of its own. It builds on a CPU, for RTX cards that need not
be here, and compiles an engine's kernels where the engine is opened. Importing this module imports neither of the two.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from alexdeploy.core.errors import DeviceError, DeviceMemoryError, ModelError, UsageError, first_line
from alexdeploy.engines.base import EngineBackend
from alexdeploy.engines.trt.files import NAMES
from alexdeploy.engines.trt.log import Complaints
from alexdeploy.engines.trt.rebuild import rebuild_hint

if TYPE_CHECKING:
    import tensorrt as trt


_STRONGLY_TYPED_FROM = (10, 12)
"""In earlier versions of TensorRT, strongly typed networks lacked layers."""

_RTX_INTERFACE = (11, 0)
"""The version of TensorRT whose interface TensorRT-RTX has."""

_MEMORY_WORDS = (
    "out of memory",
    "outofmemory",
    "failed_allocation",
    "insufficient memory",
    "cudaerrormemoryallocation",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """`api` is the module of the Python bindings, `log` the logger of all its objects in this process.

    `interface` is the major and minor version of TensorRT whose interface it has.
    """

    backend: EngineBackend
    api: ModuleType
    interface: tuple[int, int]
    log: Any

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def name(self) -> str:
        return NAMES[self.backend]

    @property
    def version(self) -> str:
        return str(self.api.__version__)

    @property
    def needs_gpu(self) -> bool:
        """Whether it builds for the GPU on which it runs; if not, for the compute capabilities that it is told."""
        return self.backend == "tensorrt"

    @property
    def is_strongly_typed(self) -> bool:
        """Whether every node computes in the type that it has in the graph. Before, types are hints."""
        return self.interface >= _STRONGLY_TYPED_FROM

    def take_log(self) -> str:
        """The messages from this thread since the last call here; if none, those from the library's own threads."""
        return str(self.log.take())

    def refused(self, what: str, hint: str = "Use a smaller --batch-size.") -> DeviceError:
        """The error for a failed call, with its log messages. `hint` is used if memory ran out."""
        lines = self.take_log().splitlines() or ["no reason given"]
        for line in lines:
            if any(word in line.lower() for word in _MEMORY_WORDS):
                return DeviceMemoryError(f"{what}: {line}", hint=hint)
        return DeviceError(f"{what}: {lines[0]}")

    def open_plan(self, plan: bytes, path: Path) -> trt.ICudaEngine:
        """The engine, which keeps its runtime. `plan` comes from `load_engine`. Raises ModelError."""
        runtime: trt.Runtime = self.api.Runtime(self.log)
        engine: trt.ICudaEngine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            error = self.refused(f"{self} cannot open {path}", "Free memory on the GPU.")
            if isinstance(error, DeviceMemoryError):
                raise error
            raise ModelError(error.message, hint=rebuild_hint(path))
        return engine

    def layer_information(self, engine: trt.ICudaEngine) -> str:
        """The layers of an engine as JSON, from the library's inspector."""
        inspector: trt.EngineInspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.api.LayerInformationFormat.JSON))

    def known_capabilities(self) -> dict[tuple[int, int], trt.ComputeCapability]:
        """The compute capabilities for which it builds without a GPU."""
        members = self.api.ComputeCapability.__members__
        numbers = {name.removeprefix("SM"): value for name, value in members.items() if name.startswith("SM")}
        return {(int(digits[:-1]), int(digits[-1])): value for digits, value in numbers.items()}


@functools.cache
def load_library(backend: EngineBackend) -> Library:
    """Import the bindings. Raises UsageError, with install instructions, or DeviceError if they do not load."""
    try:
        api = _tensorrt() if backend == "tensorrt" else _tensorrt_rtx()
    except (ImportError, OSError) as exc:
        raise not_usable(backend, exc) from exc
    return library_over(api, backend)


def library_over(api: ModuleType, backend: EngineBackend) -> Library:
    """The library of a module of bindings. One for each module in a process, for the sake of its log."""
    numbers = _RTX_INTERFACE if backend == "tensorrt-rtx" else _numbers(api.__version__)
    return Library(backend=backend, api=api, interface=numbers, log=_make_log(api, backend))


def _tensorrt() -> ModuleType:
    import tensorrt

    return tensorrt  # type: ignore[no-any-return]


def _tensorrt_rtx() -> ModuleType:
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings  # type: ignore[no-any-return]


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def not_usable(backend: EngineBackend, exc: ImportError | OSError) -> UsageError | DeviceError:
    """The error for a package that is not installed, or that lacks a library of CUDA or the driver."""
    packages = ("tensorrt", "tensorrt_rtx_bindings", "pycuda")
    is_missing = isinstance(exc, ModuleNotFoundError) and str(exc.name).partition(".")[0] in packages
    if backend == "tensorrt-rtx":
        hint = "On x86-64 Linux or Windows: pip install 'alexdeploy[rtx]'"
    else:
        hint = (
            "On a machine with an NVIDIA GPU and its driver: pip install 'alexdeploy[gpu]'\n"
            "(pip compiles pycuda, which needs g++ and the CUDA headers: put nvcc on PATH.)\n"
            "Without a GPU, every other backend runs the ONNX files."
        )
    # pycuda is the way to the GPU of both libraries.
    is_driver = isinstance(exc, ImportError) and str(exc.name).partition(".")[0] == "pycuda"
    name = " and ".join(sorted(NAMES.values(), reverse=True)) if is_driver else NAMES[backend]
    message = f"{name} cannot be used here: {first_line(exc)}"
    return (UsageError if is_missing else DeviceError)(message, hint=hint)


def _make_log(api: ModuleType, backend: EngineBackend) -> trt.ILogger:
    class Log(api.ILogger):  # type: ignore[misc,name-defined]
        """Keeps the library's messages for the error that follows. One per process, as it requires."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)
            self._complaints = Complaints()

        # Called mostly in the thread that called the library, which ends the process if it raises.
        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if severity in (api.ILogger.ERROR, api.ILogger.INTERNAL_ERROR):
                self._complaints.add(message)
            if "ALEXDEPLOY_DEBUG" in os.environ and severity != api.ILogger.VERBOSE:
                print(f"{backend}: {message}", file=sys.stderr)

        def take(self) -> str:
            return self._complaints.take()

    return Log()
