"""Which packages are installed, without importing them."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from contextlib import suppress

from alexdeploy.core.errors import UsageError
from alexdeploy.core.version import __version__


def package_version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def missing_package(package: str, purpose: str, extra: str) -> UsageError:
    """The error of what needs a package that is not installed; `extra` of alexdeploy installs it."""
    return UsageError(
        f"{purpose} needs the package {package}, which is not installed",
        hint=f"Install it: pip install 'alexdeploy[{extra}]'",
    )


def tensorrt_version() -> str | None:
    """The version of TensorRT, as whichever of its packages is installed has it: there may be more behind the numbers.

    TensorRT itself says 8.6.1 where its package is 8.6.1.post1; `release` is what both have.
    """
    return package_version(
        "tensorrt",
        "tensorrt-cu13",
        "tensorrt-cu12",
        "tensorrt-cu13-bindings",
        "tensorrt-cu12-bindings",
        "tensorrt-bindings",
    )


def backend_version(name: str) -> str:
    """The version of a backend, or of another package by its name; "unknown" if it has none."""
    # ONNX Runtime has a distribution for each kind of device.
    names = ("onnxruntime", "onnxruntime-gpu") if name == "onnxruntime" else (name,)
    return (tensorrt_version() if name == "tensorrt" else package_version(*names)) or "unknown"


def versions_for_report(backends: Iterable[str]) -> dict[str, str]:
    """The versions that a result depends on, by name: ours, Python's and the libraries'; "unknown" if it has none."""
    versions = {"alexdeploy": __version__, "python": platform.python_version()}
    names = ("numpy", "pillow", *dict.fromkeys(backends))
    return versions | {name: backend_version(name) for name in names}


def release(version: str) -> str:
    """The numbers that a version begins with: of "8.6.1.post1" 8.6.1. One that begins with none is all there is."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version
