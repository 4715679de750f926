"""Whether what needs a GPU may be skipped here: where there is one and a package that uses it, it must not be."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import shutil


def has_gpu() -> bool:
    """Whether the system shows an NVIDIA GPU or its driver, working or not, and nobody asked to leave it alone."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return bool(glob.glob("/dev/nvidia*")) or shutil.which("nvidia-smi") is not None


def has_onnxruntime_gpu() -> bool:
    """Whether the build for GPUs is installed; another one over it may be what is imported."""
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def why_no_tensorrt() -> str | None:
    """Why TensorRT need not work here; None if it must."""
    for package in ("tensorrt", "pycuda"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return None if has_gpu() else "there is no NVIDIA GPU"


def why_no_onnxruntime_gpu() -> str | None:
    """Why ONNX Runtime need not work on a GPU here; None if it must."""
    if not has_onnxruntime_gpu():
        return "onnxruntime-gpu is not installed"
    return None if has_gpu() else "there is no NVIDIA GPU"


def why_no_nvimgcodec() -> str | None:
    """Why nvImageCodec need not decode here, which it does on a CPU; None if it must."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.nvimgcodec") is None:
        return "nvImageCodec is not installed: pip install nvidia-nvimgcodec-cu13"
    return None


def why_no_tensorrt_rtx() -> str | None:
    """Why TensorRT-RTX need not build here, which it does on a CPU; None if it must."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        return "TensorRT-RTX is not installed: pip install 'alexdeploy[rtx]' on x86-64 Linux"
    return None
