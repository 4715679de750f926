"""OpenVINO itself, without its telemetry: what runs here, and how often, is nobody else's business."""

from __future__ import annotations

import sys

# Importing openvino tells Google Analytics so, from a thread that the program then waits for as it ends; a request that
# gets no answer costs it seconds. Where this package cannot be imported, openvino does without.
_TELEMETRY = "openvino_telemetry"
_was_loaded = _TELEMETRY in sys.modules
if not _was_loaded:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
try:
    import openvino as ov
finally:
    if not _was_loaded:
        del sys.modules[_TELEMETRY]

__all__ = ["ov"]
