"""ONNX Runtime with its telemetry off, and its sessions. All other modules import it through this one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from alexdeploy.core.packages import missing_package

# ONNX Runtime reads this variable once, when it is imported. With telemetry on, it writes a device id and a database to
# the user's cache folder and looks up its collector; disable_telemetry_events() comes too late for both. Child
# processes inherit the variable. A value that the user has set is kept.
_TELEMETRY = "ORT_DISABLE_TELEMETRY"
os.environ.setdefault(_TELEMETRY, "1")

_EXACT_INT8 = "session.x64quantprecision"
"""A session option. Without it ONNX Runtime adds INT8 products in 16 bits, which saturate, on x86 without VNNI.

It affects layers with quantized outputs, as in imported graphs, and changes nothing on other processors.
"""


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


def new_session(content: bytes, providers: list[Any], set_options: Callable[[Any], None]) -> Any:
    """An InferenceSession that adds INT8 products exactly on every processor, if it can.

    `set_options` is called with the SessionOptions. ONNX Runtime 1.31 cannot prepare some graphs for exact sums: those
    in which two layers share a zero point, and QGemm of signed bytes. For those the check of backends measures the
    error. Raises the exceptions of ONNX Runtime, and prints nothing.
    """
    onnxruntime = load_onnxruntime()

    def opened(exact: str) -> Any:
        options = onnxruntime.SessionOptions()
        # Log only fatal errors: others are raised.
        options.log_severity_level = 4
        options.add_session_config_entry(_EXACT_INT8, exact)
        set_options(options)
        return onnxruntime.InferenceSession(content, options, providers=providers)

    try:
        return opened("1")
    # The only common base class is Exception; errors with another cause are raised again by the second try.
    except Exception:
        return opened("0")
