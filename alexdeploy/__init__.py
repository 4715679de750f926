"""AlexNet from training to production inference: ONNX, FP16/INT8, TensorRT, ten-crop.

from alexdeploy import ExportOptions, Predictor, export_model, find_model

model = find_model("models/alexnet")
export_model(model, ExportOptions(fp16=True))
with Predictor(model, num_views=10) as predictor:
    for row in predictor.predict(["images/"]):
        print(row.source, row.label)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alexdeploy.core.version import __version__ as __version__

if TYPE_CHECKING:
    from alexdeploy.benchmark.bench import benchmark
    from alexdeploy.benchmark.plan import BenchOptions
    from alexdeploy.benchmark.statistics import Limits
    from alexdeploy.core.errors import AlexDeployError
    from alexdeploy.core.model_folder import ModelFolder, find_model
    from alexdeploy.core.recipe import CalibrationRecipe
    from alexdeploy.evaluation.evaluate import EvaluateOptions, evaluate
    from alexdeploy.evaluation.verify import VerifyOptions, verify
    from alexdeploy.export.export import ExportOptions, export_model
    from alexdeploy.export.quantize.calibrate import calibrate
    from alexdeploy.export.quantize.quantize import Budget
    from alexdeploy.inference.predictor import Predictor

_HOMES = {
    "AlexDeployError": "alexdeploy.core.errors",
    "BenchOptions": "alexdeploy.benchmark.plan",
    "Budget": "alexdeploy.export.quantize.quantize",
    "CalibrationRecipe": "alexdeploy.core.recipe",
    "EvaluateOptions": "alexdeploy.evaluation.evaluate",
    "ExportOptions": "alexdeploy.export.export",
    "Limits": "alexdeploy.benchmark.statistics",
    "ModelFolder": "alexdeploy.core.model_folder",
    "Predictor": "alexdeploy.inference.predictor",
    "VerifyOptions": "alexdeploy.evaluation.verify",
    "benchmark": "alexdeploy.benchmark.bench",
    "calibrate": "alexdeploy.export.quantize.calibrate",
    "evaluate": "alexdeploy.evaluation.evaluate",
    "export_model": "alexdeploy.export.export",
    "find_model": "alexdeploy.core.model_folder",
    "verify": "alexdeploy.evaluation.verify",
}
__all__ = [
    "AlexDeployError",
    "BenchOptions",
    "Budget",
    "CalibrationRecipe",
    "EvaluateOptions",
    "ExportOptions",
    "Limits",
    "ModelFolder",
    "Predictor",
    "VerifyOptions",
    "benchmark",
    "calibrate",
    "evaluate",
    "export_model",
    "find_model",
    "verify",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `alexdeploy --help` imports neither NumPy nor ONNX.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
