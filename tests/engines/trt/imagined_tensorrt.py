"""A `tensorrt` module with the names of a version, as read from its bindings, and nothing that computes.

A name that the version lacks is an AttributeError, as it would be there.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import alexdeploy.engines.trt
from alexdeploy.engines.base import EngineBackend
from alexdeploy.engines.trt.library import Library, library_over

_API = json.loads((Path(__file__).parents[2] / "data" / "tensorrt-api.json").read_text())


def imagined(version: str, backend: EngineBackend = "tensorrt") -> Library:
    """TensorRT or TensorRT-RTX as a library of that version."""
    tensorrt = ModuleType("tensorrt")
    tensorrt.__version__ = version
    for kind, members in _API[version].items():
        # A value of an enumeration has its own name as its value.
        setattr(tensorrt, kind, type(kind, (), {member: f"{kind}.{member}" for member in members}))
    return library_over(tensorrt, backend)


def stream_module() -> ModuleType:
    """`alexdeploy.engines.trt.stream` over an imagined pycuda. A copy: who imports it later gets what is installed."""
    full = f"{alexdeploy.engines.trt.__name__}.stream"
    packages = _pycuda()
    before = {name: sys.modules.pop(name) for name in (*packages, full) if name in sys.modules}
    sys.modules.update(packages)
    try:
        return importlib.import_module(full)
    finally:
        for name in (*packages, full):
            sys.modules.pop(name, None)
        vars(alexdeploy.engines.trt).pop("stream", None)
        sys.modules.update(before)


def _pycuda() -> dict[str, ModuleType]:
    pycuda, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    pycuda.driver = driver
    for name in ("Context", "Stream", "DeviceAllocation"):
        setattr(driver, name, type(name, (), {}))
    for name in ("Error", "MemoryError"):
        setattr(driver, name, type(name, (Exception,), {}))
    return {"pycuda": pycuda, "pycuda.driver": driver}
