"""What this machine can measure: its device, the precisions it computes in, and whether its memory is enough."""

from __future__ import annotations

import re
from typing import Literal, get_args

from alexdeploy.core.memory import host_memory
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import is_installed
from alexdeploy.placement.devices import cpu_device, survey_gpus

DeviceKind = Literal["cpu", "cuda"]

PEERS_BYTES = 13_000_000_000
"""What all sides of peers hold together: a dozen processes with the full network, 11.7 GB where it was measured."""


def choose_device(asked: str | None, *, needs_engines: bool) -> DeviceKind:
    """The one that was asked for, else the GPU where all that is needed on it is here, else the CPU.

    `needs_engines`: something is measured that runs TensorRT. Raises SystemExit for a GPU that cannot be used.
    """
    if asked not in (None, *get_args(DeviceKind)):
        raise SystemExit(f"--device is {asked}; expected one of {', '.join(get_args(DeviceKind))}")
    if asked == "cpu":
        return "cpu"
    reason = _reason_against_gpu(needs_engines=needs_engines)
    if asked == "cuda" and reason is not None:
        raise SystemExit(f"--device cuda: {reason}")
    return "cuda" if reason is None else "cpu"


def _reason_against_gpu(*, needs_engines: bool) -> str | None:
    if not survey_gpus().devices:
        return "there is no GPU that this process may use; see: alexdeploy devices"
    if needs_engines and not is_installed("tensorrt"):
        return "tensorrt is not installed"
    if not is_installed("torch"):
        return "torch is not installed"
    import torch

    return None if torch.cuda.is_available() else "this torch cannot use the GPU"


def precisions(device: DeviceKind) -> tuple[Precision, ...]:
    """What the machine computes in: on a CPU FP16 is FP32, and not every one has bfloat16."""
    if device == "cuda":
        return ("fp32", "fp16", "int8")
    return ("fp32", "bf16", "int8") if has_bfloat16() else ("fp32", "int8")


def has_bfloat16() -> bool:
    """Whether OpenVINO is here and computes in bfloat16."""
    if not is_installed("openvino"):
        return False
    from alexdeploy.engines.openvino_library import cpu_capabilities, ov

    return "BF16" in cpu_capabilities(ov.Core())


def check_memory(num_bytes: int, free_bytes: int | None) -> None:
    """Raise SystemExit if less than `num_bytes` are free; None: nobody knows."""
    if free_bytes is not None and free_bytes < num_bytes:
        raise SystemExit(
            f"peers takes {num_bytes / 1e9:.0f} GB of memory, as all sides are open at once; "
            f"{free_bytes / 1e9:.1f} GB are free. Measure other parts: --parts"
        )


def free_memory() -> int | None:
    return host_memory()[0]


def machine_name(device: DeviceKind) -> str:
    """What a machine's file is called: its GPU or processor, and how many processors."""
    measured = survey_gpus().devices[0] if device == "cuda" else cpu_device()
    words = re.sub(r"[^a-z0-9]+", "-", measured.name.lower()).strip("-")
    return f"{words}-{available_processors()}-processors"
