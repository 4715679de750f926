"""ONNX Runtime with its telemetry off. All other modules import it through this one."""

from __future__ import annotations

import importlib
import os
from typing import Any

from alexdeploy.core.packages import missing_package

# ONNX Runtime reads this variable once, when it is imported. With telemetry on, it writes a device id and a database to
# the user's cache folder and looks up its collector; disable_telemetry_events() comes too late for both. Child
# processes inherit the variable. A value that the user has set is kept.
_TELEMETRY = "ORT_DISABLE_TELEMETRY"
os.environ.setdefault(_TELEMETRY, "1")


def load_onnxruntime(part: str = "") -> Any:
    """The package, or its module `part` ("quantization.calibrate"). Raises UsageError where it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError as exc:
        if exc.name != "onnxruntime":
            raise
        raise missing_package("onnxruntime", "running and converting ONNX graphs", "cpu") from exc
    if os.environ[_TELEMETRY] == "1":
        # For Windows' event log before ONNX Runtime 1.24, and if other code imported it first.
        onnxruntime.disable_telemetry_events()
    return importlib.import_module(f"onnxruntime.{part}") if part else onnxruntime
