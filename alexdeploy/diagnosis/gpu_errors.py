"""The meaning of error messages of GPU libraries, and their fixes."""

from __future__ import annotations

import platform
import re
import textwrap

from alexdeploy.core.packages import package_version

LEAST_DRIVERS = {11: "450", 12: "525", 13: "580"}
"""CUDA's major version -> the oldest driver that runs it (CUDA Compatibility, "Minor Version Compatibility")."""

CUDA_ERRORS = {
    2: ("out of memory", "End what else runs on the GPU."),
    35: ("the driver is older than the CUDA it was built for", "Update the driver, or install a build for older CUDA."),
    100: ("no GPU is visible", "Look at CUDA_VISIBLE_DEVICES. In a container: docker run --gpus all ..."),
    101: ("there is no such GPU", "Look at CUDA_VISIBLE_DEVICES."),
    222: ("the driver is older than the compiler that was used", "Update the driver."),
    802: ("the GPUs' switch is not started", "Install and start nvidia-fabricmanager of the driver's version."),
    803: ("libcuda and the kernel module are of two drivers", "Restart the machine; in a container, start it again."),
    804: ("forward compatibility on a GPU that has none", "Take CUDA's compat folder out of LD_LIBRARY_PATH."),
    999: ("unknown error", "Restart the machine; after a suspend: sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm"),
}
"""Codes of cuda.h and of the runtime that users meet: their meaning and fix."""

PYCUDA_HINT = (
    "pycuda comes as source only: it needs g++, CUDA's headers and libcuda. Put nvcc on PATH, or set CPATH and "
    "LIBRARY_PATH (CUDA_ROOT is ignored), then: pip install pycuda"
)
_NO_CACHE = "--no-cache-dir --no-binary pycuda pycuda"


def explain_tensorrt(error: str, log: str = "") -> tuple[str, str]:
    """The meaning of a TensorRT error, and its hint."""
    library = missing_library(error)
    if library and library.startswith("libnv"):
        number = library.rpartition(".")[2]
        return (
            f"the Python bindings are there, its libraries are not: {library}",
            f"Install both in the same version: pip install 'tensorrt=={number}.*', or put the folder of {library} "
            "on LD_LIBRARY_PATH",
        )
    if library:
        return f"it needs {library}", _library_hint(library)
    if "No module named 'tensorrt" in error:
        python = ".".join(platform.python_version_tuple()[:2])
        return (
            f"its parts for Python {python} are missing ({short(error)})",
            "pip install --force-reinstall --no-cache-dir tensorrt; if there is no wheel for this Python, use another",
        )
    if "has no attribute 'bool'" in error:
        numpy = package_version("numpy")
        return f"it does not work with numpy {numpy}", "pip install 'tensorrt>=8.6', or else 'numpy<1.24'"
    code = re.search(r"CUDA initialization failure with error:? (\d+)", log + error)
    if code and int(code.group(1)) in CUDA_ERRORS:
        meaning, hint = CUDA_ERRORS[int(code.group(1))]
        return f"it cannot start CUDA, error {code.group(1)}: {meaning}", hint
    if "factory function returned nullptr" in error:
        return "it cannot start CUDA", "Look at the driver above; the builder also needs free memory on the GPU."
    if re.search(r"GLIBC(XX)?_[\d.]+'? not found", error):
        return short(error), "This system's C or C++ library is too old for it: use an older TensorRT."
    return short(error), "pip install --force-reinstall --no-cache-dir tensorrt"


def explain_onnxruntime(error: str | None, log: str) -> tuple[str, str]:
    """Why ONNX Runtime lists CUDA but does not use it, and the hint."""
    text = f"{error or ''}\n{log}"
    library = missing_library(text)
    if library:
        return f"CUDA is listed, but its libraries are missing: {library}", _library_hint(library)
    code = re.search(r"CUDA (?:failure|error) (\d+)|CUDA failure.*?error code: (\d+)", text)
    number = int(code.group(1) or code.group(2)) if code else None
    if number in CUDA_ERRORS:
        meaning, hint = CUDA_ERRORS[number]
        return f"CUDA is listed, but cannot be started, error {number}: {meaning}", hint
    asked = re.search(r"Require cuDNN (\S+) and CUDA (\d+)", text)
    if asked:
        return (
            f"CUDA is listed, but cannot be loaded: it wants cuDNN {asked.group(1)} and CUDA {asked.group(2)}",
            "Install those, or another version of onnxruntime-gpu.",
        )
    reason = short(error) if error else "it fell back to the CPU"
    return f"CUDA is listed, but not used: {reason}", "pip install --force-reinstall onnxruntime-gpu"


def explain_pycuda(error: str) -> tuple[str, str]:
    """Why pycuda does not work, and the hint."""
    library = missing_library(error)
    if library and library.startswith("libcuda.so"):
        return "it is installed, the driver is not: libcuda.so.1", "Install NVIDIA's driver."
    if library:
        return f"it was built for another CUDA: {library} is missing", f"pip install --force-reinstall {_NO_CACHE}"
    if "_driver" in error and "No module" in error:
        return "it was not built", PYCUDA_HINT
    if "cuInit failed" in error:
        return f"it imports, but {error.partition('cuInit failed: ')[2] or error}", "Look at the driver above."
    return short(error), f"pip install --force-reinstall {_NO_CACHE}"


def supported_capabilities(version: str) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """The lowest and the highest compute capability of a TensorRT version; None: no upper limit known.

    From NVIDIA's support matrices: 8.6, Maxwell to Hopper; 10.0 from Volta, 10.5 from Turing, 10.8 with Blackwell.
    An unknown version has no limits.
    """
    numbers = tuple(int(word) for word in re.findall(r"\d+", version)[:2])
    if not numbers:
        return (0, 0), None
    lowest = (5, 0) if numbers < (10,) else (7, 0) if numbers < (10, 5) else (7, 5)
    return lowest, (9, 0) if numbers < (10, 8) else None


def missing_library(text: str) -> str | None:
    match = re.search(r"(lib[\w+.-]+?\.so[.\d]*): cannot open shared object file", text)
    return match.group(1) if match else None


def _library_hint(library: str) -> str:
    """The PyPI package that contains a CUDA library, or where to put the library."""
    path = f"or put its folder on LD_LIBRARY_PATH: {library}"
    cudnn = re.fullmatch(r"libcudnn\w*\.so\.(\d+)", library)
    if cudnn:
        return f"pip install 'nvidia-cudnn-cu12=={cudnn.group(1)}.*' (cu13 for CUDA 13), {path}"
    cuda = re.fullmatch(r"lib(cudart|cublas|cublasLt)\.so\.(\d+)(?:\.\d+)*", library)
    if cuda:
        part = "cuda-runtime" if cuda.group(1) == "cudart" else "cublas"
        # From CUDA 13 on, package names contain no number.
        number = int(cuda.group(2))
        package = f"nvidia-{part}-cu{number}" if number < 13 else f"'nvidia-{part}=={number}.*'"
        return f"pip install {package}, {path}"
    return f"Install the CUDA libraries that it was built for, {path}"


def short(error: str) -> str:
    text = (error.strip().splitlines() or ["no reason given"])[0]
    return textwrap.shorten(text, 200, placeholder=" ...")
