"""Which packages are installed, without importing them."""

from __future__ import annotations

import importlib.metadata
from contextlib import suppress


def package_version(*names: str) -> str | None:
    """The version of the first of these distributions that is installed."""
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def tensorrt_version() -> str | None:
    """The version of TensorRT, as it tells it itself, by whichever of its packages is installed."""
    return package_version("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings")
