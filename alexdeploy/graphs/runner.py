"""Run a plain network in ONNX Runtime with any of its tensors as outputs: for checks, ranges and rankings."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.errors import AlexDeployError, DeviceError, DeviceMemoryError, first_line
from alexdeploy.graphs.onnxruntime_library import load_onnxruntime, new_session

_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |/\S+\.(?:h|cc|cpp):\d+ .*?\) (?:\[with .*?\] )?")

_SECONDS_TO_TERMINATE = 0.5
"""ONNX Runtime can be stopped only between two nodes."""


class GraphRunner:
    """One session on the CPU that returns the named tensors of a network, by default its outputs.

    Without `optimize` every node runs as written; with it nodes are fused, except those whose outputs are requested.
    Either way INT8 graphs are computed in float32, on the INT8 values. Raises DeviceError for a graph that ONNX
    Runtime cannot load or run.
    """

    def __init__(self, model: onnx.ModelProto, outputs: Iterable[str] | None = None, *, optimize: bool = False) -> None:
        self.outputs = tuple(_output_names(model) if outputs is None else outputs)
        self._input = model.graph.input[0].name
        with _translated():
            self._session = _open_session(model, self.outputs, optimize=optimize)

    def run(self, images: NDArray[np.float32] | NDArray[np.uint8]) -> dict[str, NDArray[np.floating]]:
        """float32 [N, 3, H, W], or whatever input the graph has -> the tensors by name."""
        with _translated():
            values = _run(self._session, self.outputs, {self._input: images})
        return dict(zip(self.outputs, values, strict=True))


def run_graph(
    model: onnx.ModelProto, images: NDArray[np.generic], outputs: Iterable[str] | None = None
) -> list[NDArray[Any]]:
    """Run a network once; `outputs` may name any of its tensors, by default its outputs.

    Raises the exceptions of ONNX Runtime; for an imported graph the caller translates them.
    """
    names = list(_output_names(model) if outputs is None else outputs)
    return _run(_open_session(model, names), names, {model.graph.input[0].name: images})


def runtime_message(exc: BaseException) -> str:
    """The message of an ONNX Runtime exception, without the error code and source location."""
    return _NOISE.sub("", first_line(exc))


def device_error(exc: Exception, memory_hint: str) -> DeviceError:
    """Convert an exception of ONNX Runtime. `memory_hint` is the hint if memory ran out."""
    text = runtime_message(exc)
    if "allocate" in text.lower() or "bad_alloc" in text:
        return DeviceMemoryError(f"ONNX Runtime ran out of memory: {text}", hint=memory_hint)
    return DeviceError(f"ONNX Runtime failed: {text}")


def _run(session: Any, outputs: Iterable[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[np.floating]]:
    """Run in a separate thread, which is stopped if the caller is interrupted: some graphs would run for years."""
    options = load_onnxruntime().RunOptions()
    # ONNX Runtime returns an input that is asked for as an array on the caller's memory, without keeping that alive.
    asked = [name for name in outputs if name not in inputs]
    answers: SimpleQueue[list[NDArray[np.floating]] | Exception] = SimpleQueue()

    def work() -> None:
        try:
            answers.put(session.run(asked, inputs, options) if asked else [])
        except Exception as exc:
            answers.put(exc)

    thread = threading.Thread(target=work, name="alexdeploy-check", daemon=True)
    thread.start()
    try:
        answer = answers.get()
        thread.join()
    except BaseException:
        options.terminate = True
        with suppress(Empty):
            answers.get(timeout=_SECONDS_TO_TERMINATE)
        raise
    if isinstance(answer, Exception):
        raise answer
    found = inputs | dict(zip(asked, answer, strict=True))
    return [found[name] for name in outputs]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except AlexDeployError:
        raise
    # The only common base class of ONNX Runtime's exceptions is Exception.
    except Exception as exc:
        raise device_error(exc, "Stop other processes, or use a machine with more memory.") from exc


def _open_session(model: onnx.ModelProto, outputs: Iterable[str], *, optimize: bool = False) -> Any:
    onnxruntime = load_onnxruntime()
    inner = [name for name in outputs if name not in _output_names(model)]
    probed = model
    if inner:
        probed = deepcopy(model)
        probed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)

    def set_options(options: Any) -> None:
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    return new_session(probed.SerializeToString(), ["CPUExecutionProvider"], set_options)


def _output_names(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]
