"""Which packages are installed, without importing them."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable
from contextlib import suppress

from alexdeploy.core.errors import UsageError
from alexdeploy.core.version import __version__

_DISTRIBUTIONS = {
    # One for each kind of device.
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Backend -> the distributions that may have it, where their names are others."""


def package_version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def missing_package(package: str, purpose: str, extra: str) -> UsageError:
    """The error for a missing package; `extra` is the extra of alexdeploy that installs it."""
    return UsageError(
        f"{purpose} needs the package {package}, which is not installed",
        hint=f"Install it: pip install 'alexdeploy[{extra}]'",
    )


def tensorrt_version() -> str | None:
    """The version of the installed TensorRT package, which may have a suffix after the numbers.

    TensorRT itself reports 8.6.1 for the package 8.6.1.post1; compare them with `release`.
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
    """The version of a backend or other package; "unknown" if it has none."""
    return (
        tensorrt_version() if name == "tensorrt" else package_version(*_DISTRIBUTIONS.get(name, (name,)))
    ) or "unknown"


def versions_for_report(backends: Iterable[str]) -> dict[str, str]:
    """The versions that a result depends on, by name: alexdeploy, Python and libraries; "unknown" if missing."""
    versions = {"alexdeploy": __version__, "python": platform.python_version()}
    names = ("numpy", "pillow", *dict.fromkeys(backends))
    return versions | {name: backend_version(name) for name in names}


def release(version: str) -> str:
    """The leading numbers of a version: 8.6.1 for "8.6.1.post1". A version without numbers is returned unchanged."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found[0] if found else version
