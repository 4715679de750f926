"""Check a package in a subprocess, so that a crash or a hang ends only that process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

PROBE_SECONDS = 120.0
"""The first import of torch or tensorrt from a cold network disk takes a minute."""

_MARK = "alexdeploy-probe "


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageCheck:
    """What a probe reported from its subprocess. `error` is why it reported no more; `log` is its stderr."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    log: str = ""


PROBES = {
    "libcuda": """
        import ctypes
        cuda, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        facts["init"] = cuda.cuInit(0)
        if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
            facts["version"] = number.value
        if facts["init"] == 0 and cuda.cuDeviceGetCount(ctypes.byref(number)) == 0:
            facts["count"] = number.value
        """,
    "tensorrt": """
        import tensorrt
        facts["version"] = tensorrt.__version__
        tensorrt.nptype(tensorrt.DataType.FLOAT)
        if has_gpu:
            tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
        """,
    "tensorrt_rtx_bindings": """
        import tensorrt_rtx_bindings
        facts["version"] = tensorrt_rtx_bindings.__version__
        # It builds on a CPU.
        tensorrt_rtx_bindings.Builder(tensorrt_rtx_bindings.Logger(tensorrt_rtx_bindings.Logger.ERROR))
        """,
    "pycuda": """
        import pycuda
        facts["version"] = pycuda.VERSION_TEXT
        import pycuda.driver
        pycuda.driver.init()
        facts["count"] = pycuda.driver.Device.count()
        """,
    "onnxruntime": """
        # As in export/onnxruntime_library: no telemetry.
        import os
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import ctypes, onnxruntime
        facts["version"] = onnxruntime.__version__
        facts["cuda"] = getattr(onnxruntime, "cuda_version", "")
        facts["providers"] = onnxruntime.get_available_providers()
        if has_gpu and "CUDAExecutionProvider" in facts["providers"]:
            import numpy
            from onnx import TensorProto, helper
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()
            for name in ("libcudnn.so.9", "libcudnn.so.8"):
                try:
                    version = ctypes.CDLL(name).cudnnGetVersion
                    version.restype = ctypes.c_size_t
                    facts["cudnn"] = version()
                    break
                except OSError:
                    pass
            ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
            graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", ends[:1], ends[1:])
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
            session.run(None, {"x": numpy.zeros(1, numpy.float32)})
            facts["used"] = session.get_providers()
        """,
    "openvino": """
        from alexdeploy.engines.openvino_library import cpu_capabilities, ov, shared_core
        facts["version"] = ov.__version__
        facts["capabilities"] = cpu_capabilities(shared_core())
        """,
    "torch": """
        import torch
        facts["version"] = torch.__version__
        facts["cuda"] = torch.version.cuda
        facts["is_available"] = torch.cuda.is_available()
        """,
}
"""The code that probes each package; it fills `facts` and can read `has_gpu`."""


def run_probe(code: str, *, has_gpu: bool = False, timeout: float = PROBE_SECONDS) -> PackageCheck:
    """Run `code` in a Python subprocess that sees the same packages. It fills the dictionary `facts`."""
    script = (
        f"import json, sys\nsys.path[:] = {sys.path!r}\nhas_gpu = {has_gpu}\nfacts = {{}}\ntry:\n"
        + textwrap.indent(textwrap.dedent(code).strip(), "    ")
        + "\nexcept BaseException as exc:\n    facts['error'] = f'{type(exc).__name__}: {exc}'\n"
        f"print()\nprint({_MARK!r} + json.dumps(facts), flush=True)\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return PackageCheck(error=f"no answer in {timeout:.0f} s")
    except OSError as exc:
        return PackageCheck(error=f"Python cannot be started: {exc.strerror}")
    # The last line, unless a library prints during shutdown.
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if lines:
        facts = json.loads(lines[-1].removeprefix(_MARK))
        return PackageCheck(error=facts.pop("error", None), facts=facts, log=done.stderr)
    ending = f"exit code {done.returncode}"
    if done.returncode < 0:
        with suppress(ValueError):
            ending = signal.Signals(-done.returncode).name
    return PackageCheck(error=f"it ended its process ({ending})", log=done.stderr)
