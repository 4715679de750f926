"""Parts of a network in ONNX Runtime, each on its own device: the CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from alexdeploy.engines.onnxruntime import MEMORY_HINT, open_session
from alexdeploy.graphs.runner import device_error

Tensors = Mapping[str, NDArray[Any]]


def open_stage(model: bytes, device: str, num_threads: int) -> Callable[[Tensors], dict[str, NDArray[Any]]]:
    """Open a session as `open_session` does; return a function from inputs to outputs, by name, on the host."""
    session = open_session(model, device, num_threads)
    outputs = [value.name for value in session.get_outputs()]

    def run(inputs: Tensors) -> dict[str, NDArray[Any]]:
        try:
            return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))
        except Exception as exc:
            raise device_error(exc, MEMORY_HINT) from exc

    return run
