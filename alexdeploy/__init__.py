"""AlexNet from training to production inference: ONNX, FP16/INT8, TensorRT, ten-crop.

Each command has a function of its name here, which takes a model folder, its path or its name under models/:

    import alexdeploy as ad

    ad.export_model("models/alexnet", ad.ExportOptions(fp16=True))
    with ad.Predictor("models/alexnet", num_views=10) as predictor:
        for row in predictor.predict(["images/"]):
            print(row.source, row.label, row.probability)

Errors are AlexDeployError and its subclasses. What a step warns of is a Python warning, AlexDeployWarning, unless a
function is passed as `on_warning`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alexdeploy.core.version import __version__ as __version__

if TYPE_CHECKING:
    from alexdeploy.benchmark.bench import bench
    from alexdeploy.benchmark.plan import BenchOptions
    from alexdeploy.benchmark.statistics import Limits
    from alexdeploy.cards.card import write_card
    from alexdeploy.cards.options import CardOptions
    from alexdeploy.core.errors import (
        AlexDeployError,
        AlexDeployWarning,
        DataError,
        DeadlineError,
        DeviceError,
        DeviceMemoryError,
        DivergedError,
        ImageError,
        InputError,
        ModelError,
        OutputError,
        ParityError,
        QueueFullError,
        RecipeError,
        StaleArtifactError,
        UsageError,
    )
    from alexdeploy.core.model_folder import ModelFolder, find_model
    from alexdeploy.core.recipe import CalibrationRecipe
    from alexdeploy.diagnosis.figures import FigureOptions, figures
    from alexdeploy.diagnosis.inspect import inspect
    from alexdeploy.engines.trt.files import BuildOptions
    from alexdeploy.evaluation.evaluate import EvaluateOptions, evaluate
    from alexdeploy.evaluation.verify import VerifyOptions, verify
    from alexdeploy.explaining.explain import Explainer, ExplainOptions, explain
    from alexdeploy.export.build import build
    from alexdeploy.export.export import ExportOptions, export_model
    from alexdeploy.export.quantize.calibrate import calibrate
    from alexdeploy.export.quantize.quantize import Budget
    from alexdeploy.importing.ensemble import ensemble
    from alexdeploy.importing.import_model import ImportOptions, import_model
    from alexdeploy.inference.embed import embed
    from alexdeploy.inference.embedder import Embedder, EmbedOptions
    from alexdeploy.inference.pictures import PictureOptions
    from alexdeploy.inference.predict import predict
    from alexdeploy.inference.predictor import Predictor
    from alexdeploy.inference.similar import SimilarOptions, similar
    from alexdeploy.placement.options import PredictOptions
    from alexdeploy.serving.triton.repository import TritonOptions, write_triton_repository
    from alexdeploy.training.prepare import PrepareOptions, prepare
    from alexdeploy.training.train import TrainOptions, train

_HOMES = {
    "benchmark.bench": ("bench",),
    "benchmark.plan": ("BenchOptions",),
    "benchmark.statistics": ("Limits",),
    "cards.card": ("write_card",),
    "cards.options": ("CardOptions",),
    "core.errors": (
        *("AlexDeployError", "AlexDeployWarning", "DataError", "DeadlineError", "DeviceError", "DeviceMemoryError"),
        *("DivergedError", "ImageError", "InputError", "ModelError", "OutputError", "ParityError", "QueueFullError"),
        *("RecipeError", "StaleArtifactError", "UsageError"),
    ),
    "core.model_folder": ("ModelFolder", "find_model"),
    "core.recipe": ("CalibrationRecipe",),
    "diagnosis.figures": ("FigureOptions", "figures"),
    "diagnosis.inspect": ("inspect",),
    "engines.trt.files": ("BuildOptions",),
    "evaluation.evaluate": ("EvaluateOptions", "evaluate"),
    "evaluation.verify": ("VerifyOptions", "verify"),
    "explaining.explain": ("ExplainOptions", "Explainer", "explain"),
    "export.build": ("build",),
    "export.export": ("ExportOptions", "export_model"),
    "export.quantize.calibrate": ("calibrate",),
    "export.quantize.quantize": ("Budget",),
    "importing.ensemble": ("ensemble",),
    "importing.import_model": ("ImportOptions", "import_model"),
    "inference.embed": ("embed",),
    "inference.embedder": ("EmbedOptions", "Embedder"),
    "inference.pictures": ("PictureOptions",),
    "inference.predict": ("predict",),
    "inference.predictor": ("Predictor",),
    "inference.similar": ("SimilarOptions", "similar"),
    "placement.options": ("PredictOptions",),
    "serving.triton.repository": ("TritonOptions", "write_triton_repository"),
    "training.prepare": ("PrepareOptions", "prepare"),
    "training.train": ("TrainOptions", "train"),
}
__all__ = [
    "AlexDeployError",
    "AlexDeployWarning",
    "BenchOptions",
    "Budget",
    "BuildOptions",
    "CalibrationRecipe",
    "CardOptions",
    "DataError",
    "DeadlineError",
    "DeviceError",
    "DeviceMemoryError",
    "DivergedError",
    "EmbedOptions",
    "Embedder",
    "EvaluateOptions",
    "ExplainOptions",
    "Explainer",
    "ExportOptions",
    "FigureOptions",
    "ImageError",
    "ImportOptions",
    "InputError",
    "Limits",
    "ModelError",
    "ModelFolder",
    "OutputError",
    "ParityError",
    "PictureOptions",
    "PredictOptions",
    "Predictor",
    "PrepareOptions",
    "QueueFullError",
    "RecipeError",
    "SimilarOptions",
    "StaleArtifactError",
    "TrainOptions",
    "TritonOptions",
    "UsageError",
    "VerifyOptions",
    "bench",
    "build",
    "calibrate",
    "embed",
    "ensemble",
    "evaluate",
    "explain",
    "export_model",
    "figures",
    "find_model",
    "import_model",
    "inspect",
    "predict",
    "prepare",
    "similar",
    "train",
    "verify",
    "write_card",
    "write_triton_repository",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `alexdeploy --help` imports neither NumPy nor ONNX.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"alexdeploy.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
