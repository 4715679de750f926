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

if TYPE_CHECKING:
    from alexdeploy.core.artifacts import ModelFolder, find_model
    from alexdeploy.core.errors import AlexDeployError
    from alexdeploy.core.recipe import CalibrationRecipe
    from alexdeploy.export.calibrate import calibrate
    from alexdeploy.export.export import ExportOptions, export_model
    from alexdeploy.export.quantize import Budget
    from alexdeploy.inference.bench_plan import BenchOptions
    from alexdeploy.inference.bench_timing import Limits
    from alexdeploy.inference.benchmark import benchmark
    from alexdeploy.inference.evaluate import EvaluateOptions, evaluate
    from alexdeploy.inference.predict import Predictor
    from alexdeploy.inference.verify import VerifyOptions, verify

__version__ = "0.1.0"

_HOMES = {
    "AlexDeployError": "alexdeploy.core.errors",
    "BenchOptions": "alexdeploy.inference.bench_plan",
    "Budget": "alexdeploy.export.quantize",
    "CalibrationRecipe": "alexdeploy.core.recipe",
    "EvaluateOptions": "alexdeploy.inference.evaluate",
    "ExportOptions": "alexdeploy.export.export",
    "Limits": "alexdeploy.inference.bench_timing",
    "ModelFolder": "alexdeploy.core.artifacts",
    "Predictor": "alexdeploy.inference.predict",
    "VerifyOptions": "alexdeploy.inference.verify",
    "benchmark": "alexdeploy.inference.benchmark",
    "calibrate": "alexdeploy.export.calibrate",
    "evaluate": "alexdeploy.inference.evaluate",
    "export_model": "alexdeploy.export.export",
    "find_model": "alexdeploy.core.artifacts",
    "verify": "alexdeploy.inference.verify",
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
