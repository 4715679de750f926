"""Graphs of old opsets, as today's ONNX Runtime and the deployment graph need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from onnx import ModelProto, version_converter

from alexdeploy.core.errors import ModelError, first_line

_OLDEST_RUN = 7
"""ONNX Runtime has no kernels from before it."""

_OLDEST_MEANT = 13
"""From here on Softmax and the shapes mean what the deployment graph expects."""

_OPSET = 17


def runnable(model: ModelProto, path: Path, on_warning: Callable[[str], None]) -> ModelProto:
    """The model itself, or one of opset 17 where ONNX Runtime cannot run it: answers are then compared with that."""
    opset = _opset(model)
    if opset >= _OLDEST_RUN:
        return model
    on_warning(f"{path} is opset {opset}, which nothing runs any more: its answers are those that opset {_OPSET} gives")
    return _converted(model, path)


def modern(model: ModelProto, path: Path) -> ModelProto:
    """The model at opset 13 or later."""
    return model if _opset(model) >= _OLDEST_MEANT else _converted(model, path)


def _opset(model: ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _converted(model: ModelProto, path: Path) -> ModelProto:
    try:
        return version_converter.convert_version(model, _OPSET)
    except (RuntimeError, version_converter.ConvertError) as exc:
        raise ModelError(
            f"{path} is opset {_opset(model)} and cannot be converted to {_OPSET}: {first_line(exc)}",
            cure="Export it again at opset 13 or later.",
        ) from exc
