"""OpenVINO itself, without its converter and its telemetry, which comes with that."""

from __future__ import annotations

import sys
from typing import Any

# Importing openvino imports its converter of other frameworks' models, which takes as long as all the rest and tells
# Google Analytics, from a thread that the program then waits for as it ends. What runs here, and how often, is nobody
# else's business. Where the converter cannot be imported, openvino does without.
_CONVERTER = "openvino.tools.ovc"
_is_first = "openvino" not in sys.modules
if _is_first:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]
try:
    import openvino as ov
finally:
    if _is_first:
        del sys.modules[_CONVERTER]


def _convert_model(*args: Any, **options: Any) -> Any:
    from openvino.tools.ovc import convert_model

    return convert_model(*args, **options)


if not hasattr(ov, "convert_model"):
    # Others in this process may want it.
    ov.convert_model = _convert_model

# The first call fills a table, and may let go of the interpreter's lock meanwhile: two threads whose first inference is
# at the same time would wait for each other for ever.
ov.Type.u8.to_dtype()

__all__ = ["ov"]
