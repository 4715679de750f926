"""A `tensorrt` module with the names of a version, as read from its bindings, and nothing that computes.

`alexdeploy.engines.trt` imports with it. A name that the version lacks is an AttributeError, as it would be there.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import alexdeploy.engines.trt

_API = json.loads((Path(__file__).parents[2] / "data" / "tensorrt-api.json").read_text())
_MODULES = ("context", "network", "stream", "engine", "build")


def modules_over(version: str) -> dict[str, ModuleType]:
    """The modules of `alexdeploy.engines.trt` that need TensorRT, over an imagined one, by their names.

    Copies of their own: who imports them later gets what is installed.
    """
    names = [f"{alexdeploy.engines.trt.__name__}.{name}" for name in _MODULES]
    replaced = ("tensorrt", "pycuda", "pycuda.driver", *names)
    before = {name: sys.modules.pop(name) for name in replaced if name in sys.modules}
    sys.modules.update(_packages(version))
    try:
        return {name: importlib.import_module(full) for name, full in zip(_MODULES, names, strict=True)}
    finally:
        for name in replaced:
            sys.modules.pop(name, None)
        for name in _MODULES:
            vars(alexdeploy.engines.trt).pop(name, None)
        sys.modules.update(before)


def _packages(version: str) -> dict[str, ModuleType]:
    tensorrt = ModuleType("tensorrt")
    tensorrt.__version__ = version
    for kind, members in _API[version].items():
        # A value of an enumeration has its own name as its value.
        setattr(tensorrt, kind, type(kind, (), {member: f"{kind}.{member}" for member in members}))
    pycuda, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    pycuda.driver = driver
    for name in ("Context", "Stream", "DeviceAllocation"):
        setattr(driver, name, type(name, (), {}))
    for name in ("Error", "MemoryError"):
        setattr(driver, name, type(name, (Exception,), {}))
    return {"tensorrt": tensorrt, "pycuda": pycuda, "pycuda.driver": driver}
