"""Parts of a network in ONNX Runtime, each on a device of its own: the CPU or one NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError
from alexdeploy.engines.onnxruntime import load_cuda_libraries
from alexdeploy.export.runner import device_error

Tensors = Mapping[str, NDArray[Any]]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_MEMORY_CURE = "Use a smaller --batch-size."


def open_stage(model: bytes, device: str, num_threads: int) -> Callable[[Tensors], dict[str, NDArray[Any]]]:
    """Open a session on "cpu" or "cuda:0" and so on; what it returns maps inputs to outputs by name, on the host.

    `num_threads` are those of the CPU. Raises DeviceError, also if ONNX Runtime would run it elsewhere.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    onnxruntime.disable_telemetry_events()
    # Two devices share the processors: threads that spin while they wait would take the other's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    name, provider = _provider(device)
    if device != "cpu":
        # Asked for = got, for each node as well.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        load_cuda_libraries()
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as exc:
        raise device_error(exc, _MEMORY_CURE) from exc
    found = session.get_providers()
    if found[0] != name:
        raise DeviceError(
            f"ONNX Runtime opened {found[0]} where {name} was asked for: its CUDA or cuDNN libraries do not load",
            cure="Install those that its version needs, or name CPU devices.",
        )
    outputs = [value.name for value in session.get_outputs()]

    def run(inputs: Tensors) -> dict[str, NDArray[Any]]:
        try:
            return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))
        except Exception as exc:
            raise device_error(exc, _MEMORY_CURE) from exc

    return run


def _provider(device: str) -> tuple[str, str | tuple[str, dict[str, str]]]:
    """The provider's name, and what asks for it."""
    if device == "cpu":
        return _CPU, _CPU
    if _CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(
            f"{device} needs ONNX Runtime's CUDA provider, which {onnxruntime.__version__} here was built without",
            cure="pip uninstall onnxruntime; pip install 'alexdeploy[gpu]'",
        )
    # FP32 is FP32: left to itself it multiplies in TF32, which has 10 bits of mantissa.
    return _CUDA, (_CUDA, {"device_id": device.removeprefix("cuda:"), "use_tf32": "0"})
