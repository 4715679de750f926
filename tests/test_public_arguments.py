"""Arguments from Python are checked where they are given, as options are on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alexdeploy
from alexdeploy import (
    BenchOptions,
    Budget,
    BuildOptions,
    CalibrationRecipe,
    CardOptions,
    Embedder,
    EmbedOptions,
    EvaluateOptions,
    Explainer,
    ExplainOptions,
    ExportOptions,
    FigureOptions,
    ImportOptions,
    Limits,
    ModelFolder,
    PictureOptions,
    PredictOptions,
    Predictor,
    PrepareOptions,
    SimilarOptions,
    TrainOptions,
    TritonOptions,
    VerifyOptions,
    bench,
    build,
    calibrate,
    embed,
    ensemble,
    evaluate,
    export_model,
    figures,
    find_model,
    import_model,
    inspect,
    predict,
    prepare,
    similar,
    train,
    verify,
    write_card,
    write_triton_repository,
)
from alexdeploy.core.errors import UsageError

_BACKENDS = "tensorrt, tensorrt-rtx, openvino, onnxruntime or torch"
_PRECISIONS = "fp32, fp16, bf16 or int8"
_COUNT = "an integer from 1 on"
_NUMBER = "a finite number from 0 on"
_NOWHERE = ModelFolder(Path("nowhere"))

_REFUSED: tuple[tuple[Callable[..., object], str, Any, str], ...] = (
    *((Predictor, "num_views", value, "1, 5 or 10") for value in (0, 2, -1, 2.5, "10", True, np.int64(3), None)),
    *((Predictor, "batch_size", value, f"{_COUNT} or auto") for value in (0, -8, 2.5, "4", "many", True, None)),
    *((Predictor, "num_threads", value, f"{_COUNT} or None") for value in (0, 2.5, "4", False)),
    *((Predictor, "num_streams", value, f"{_COUNT} or None") for value in (0, 1.0, "1")),
    *((Predictor, name, value, _COUNT) for name in ("top_k", "replicas") for value in (0, -1, 2.5, "5", None, True)),
    *(
        (Predictor, "backend", value, "tensorrt, tensorrt-rtx, openvino, onnxruntime, torch or None")
        for value in ("tflite", "", 1, ("torch",))
    ),
    *((Predictor, "precision", value, _PRECISIONS) for value in ("float16", "FP16", 16, None)),
    *((Predictor, "placement", value, "towers, pipeline or None") for value in ("tower", 2)),
    *((Predictor, "devices", value, "a string or None") for value in (0, ["cpu"])),
    *((PredictOptions, name, 0, _COUNT) for name in ("top_k", "replicas")),
    *((PictureOptions, "sheet_images", value, _COUNT) for value in (0, -1, 2.5, None)),
    *((ExplainOptions, name, value, "an integer from 1 to 256") for name in ("size", "stride") for value in (0, 257)),
    (ExplainOptions, "method", "gradcam", "occlusion, grad-cam or both"),
    (PictureOptions, "sheet", 5, "a string or None"),
    (Explainer, "options", {"size": 10}, "an ExplainOptions"),
    (Predictor, "options", {"num_views": 10}, "a PredictOptions"),
    (Predictor, "model", 5, "a string or None"),
    (EmbedOptions, "layer", 7, "a string or None"),
    (EmbedOptions, "batch_size", 0, f"{_COUNT} or auto"),
    (Embedder, "num_views", 2, "1, 5 or 10"),
    (SimilarOptions, "k", 0, _COUNT),
    (SimilarOptions, "metric", "l1", "euclidean or cosine"),
    (find_model, "model", 5, "a string or None"),
    (ModelFolder, "path", None, "a string"),
    (ExportOptions, "fp16", "yes", "True or False"),
    (ExportOptions, "int8", 1, "True or False"),
    (ExportOptions, "int8_weights", 6, "7 or 8"),
    (ExportOptions, "images", 3, "a string or None"),
    (ExportOptions, "calibrate", ["a"], "a string or None"),
    (ExportOptions, "budget", 1.0, "a Budget"),
    *((Budget, "max_drop", value, f"{_NUMBER} or None") for value in (-1, "1", float("nan"), float("inf"))),
    (ImportOptions, "channels", "RGB", "rgb, bgr or None"),
    (ImportOptions, "scale", "1", "a finite number or None"),
    (ImportOptions, "overwrite", 1, "True or False"),
    (Budget, "keep", "conv1", "a list, each a string"),
    (Budget, "labelled", 1, "a string or None"),
    (CalibrationRecipe, "method", "max", "minmax, percentile, entropy or mse"),
    (CalibrationRecipe, "num_images", 0, _COUNT),
    (CalibrationRecipe, "num_images", "512", _COUNT),
    (CalibrationRecipe, "num_views", 5, "1 or 10"),
    (CalibrationRecipe, "percentile", 50, "a finite number above 50 to 100"),
    (CalibrationRecipe, "seed", -1, "an integer from 0 on"),
    (CalibrationRecipe, "exclude", "*.png", "a list, each a string"),
    (EvaluateOptions, "precisions", "fp32", f"a list, each {_PRECISIONS}"),
    (EvaluateOptions, "precisions", ("fp32", "float16"), f"a list, each {_PRECISIONS}"),
    (EvaluateOptions, "num_views", (1, 7), "a list, each 1, 5 or 10"),
    (EvaluateOptions, "backends", ("tflite",), f"a list, each {_BACKENDS} or None"),
    (EvaluateOptions, "labels", 5, "a string or None"),
    (EvaluateOptions, "exclude", "x", "a list, each a string"),
    (EvaluateOptions, "batch_size", "8", _COUNT),
    (EvaluateOptions, "batch_size", 0, _COUNT),
    (EvaluateOptions, "num_threads", 0, f"{_COUNT} or None"),
    (VerifyOptions, "precisions", ("fp8",), f"a list, each {_PRECISIONS} or None"),
    (VerifyOptions, "backends", "torch", f"a list, each {_BACKENDS} or None"),
    (VerifyOptions, "num_views", "1", "1, 5 or 10"),
    (VerifyOptions, "num_images", 0, _COUNT),
    (VerifyOptions, "max_flips", 101, "a finite number from 0 to 100 or None"),
    (TrainOptions, "num_threads", 0, f"{_COUNT} or None"),
    (TrainOptions, "parallel", "layers", "batches or towers"),
    (TrainOptions, "checkpoint_seconds", -1, _NUMBER),
    (TrainOptions, "freeze", "conv1", "a list, each a string or None"),
    (PrepareOptions, "jpeg_quality", 101, "an integer from 1 to 100 or None"),
    (PrepareOptions, "resize", "fit", "crop or warp"),
    (PrepareOptions, "val", 1, "a string or None"),
    (BuildOptions, "precision", "half", _PRECISIONS),
    (BuildOptions, "num_views", 2, "1, 5 or 10"),
    (BuildOptions, "max_batch", 0, f"an integer from 1 to {2**31 - 1}"),
    (BuildOptions, "workspace_bytes", 0, f"an integer from 1 to {2**50} or None"),
    (BuildOptions, "device", 0, "a string"),
    (CardOptions, "license", 2, "a string or None"),
    (CardOptions, "overwrite", "no", "True or False"),
    (TritonOptions, "backend", "torch", "onnxruntime, tensorrt, openvino or python"),
    (TritonOptions, "version", 0, _COUNT),
    (TritonOptions, "gpu_ids", (0, -1), "a list, each an integer from 0 on"),
    (TritonOptions, "jpeg", "no", "True or False"),
    (FigureOptions, "image", 5, "a string or None"),
    (FigureOptions, "precision", "half", _PRECISIONS),
    (FigureOptions, "overwrite", 1, "True or False"),
    (BenchOptions, "backends", ("onnx",), f"a list, each {_BACKENDS} or None"),
    (BenchOptions, "precisions", ("half",), f"a list, each {_PRECISIONS} or None"),
    (BenchOptions, "num_views", (0,), "a list, each 1, 5 or 10"),
    (BenchOptions, "batch_sizes", (1, 0), f"a list, each {_COUNT}"),
    (BenchOptions, "batch_sizes", 8, f"a list, each {_COUNT}"),
    (BenchOptions, "images", "photographs", "a list, each a string or None"),
    (BenchOptions, "num_images", 0, _COUNT),
    *((BenchOptions, "seconds", value, _NUMBER) for value in (-1, "1", float("nan"), float("inf"))),
    (BenchOptions, "seed", -1, "an integer from 0 on"),
    (BenchOptions, "num_threads", 0, f"{_COUNT} or None"),
    (BenchOptions, "devices", 0, "a string or None"),
    (BenchOptions, "limits", 5, "a Limits"),
    (BenchOptions, "with_profile", "no", "True or False"),
    *((Limits, "budget_ms", value, f"{_NUMBER} or None") for value in (-1, "5", float("inf"))),
    *((Limits, "min_agreement", value, "a finite number from 0 to 1 or None") for value in (-0.1, 99.5, float("nan"))),
)


@pytest.mark.parametrize(("take", "name", "value", "expected"), _REFUSED)
def test_a_wrong_argument_is_a_usage_error_with_its_name_its_value_and_the_choices(
    take: Callable[..., object], name: str, value: Any, expected: str
) -> None:
    shown = value.item() if isinstance(value, np.generic) else tuple(value) if isinstance(value, list) else value
    with pytest.raises(UsageError, match=f"^{re.escape(f'{name} is {shown!r}; expected {expected}')}$"):
        take(**{name: value})


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: ensemble("a", "b"), "models is 'a'; expected a list, each a string"),
        (lambda: ensemble([_NOWHERE, 5], "b"), "models is ('nowhere', 5); expected a list, each a string"),
        (lambda: ensemble([_NOWHERE, _NOWHERE], 5), "name is 5; expected a string"),
        (lambda: ensemble([_NOWHERE, _NOWHERE], "b", overwrite=2), "overwrite is 2; expected True or False"),
        (lambda: export_model(5), "model is 5; expected a string or None"),
        (lambda: export_model(_NOWHERE, {"fp16": True}), "options is {'fp16': True}; expected an ExportOptions"),
        (lambda: calibrate(5, "photographs"), "model is 5; expected a string or None"),
        (lambda: calibrate(_NOWHERE, ["a", "b"]), "images is ('a', 'b'); expected a string"),
        (lambda: calibrate(_NOWHERE, "a", 512), "recipe is 512; expected a CalibrationRecipe or None"),
        (lambda: build(5), "model is 5; expected a string or None"),
        (lambda: build(_NOWHERE, "fp16"), "options is 'fp16'; expected a BuildOptions"),
        (lambda: write_card(5), "model is 5; expected a string or None"),
        (lambda: write_card(_NOWHERE, 5), "directory is 5; expected a string or None"),
        (lambda: write_card(_NOWHERE, "r", "mit"), "options is 'mit'; expected a CardOptions"),
        (lambda: write_card(_NOWHERE, evaluation=5), "evaluation is 5; expected a string or None"),
        (lambda: write_triton_repository(5, "r"), "model is 5; expected a string or None"),
        (lambda: write_triton_repository(_NOWHERE, 5), "directory is 5; expected a string"),
        (lambda: write_triton_repository(_NOWHERE, "r", "python"), "options is 'python'; expected a TritonOptions"),
        (lambda: train(5), "data is 5; expected a string or None"),
        (lambda: train("data", "alexnet"), "options is 'alexnet'; expected a TrainOptions"),
        (lambda: prepare(5, "out"), "data is 5; expected a string"),
        (lambda: prepare("data", None), "out is None; expected a string"),
        (lambda: prepare("data", "out", 95), "options is 95; expected a PrepareOptions"),
        (lambda: predict(["a"], 5), "model is 5; expected a string or None"),
        (lambda: predict(["a"], None, 8), "options is 8; expected a PredictOptions"),
        (lambda: embed(["a"], None, 8), "options is 8; expected an EmbedOptions"),
        (lambda: similar("a", 5), "features is 5; expected a string"),
        (lambda: similar("a", "f.npy", None, 8), "options is 8; expected a SimilarOptions"),
        (lambda: import_model(5), "file is 5; expected a string"),
        (lambda: import_model("m.onnx", "torchvision"), "options is 'torchvision'; expected an ImportOptions"),
        (lambda: inspect(5), "target is 5; expected a string"),
        (lambda: figures(5), "model is 5; expected a string or None"),
        (lambda: figures(_NOWHERE, 5), "directory is 5; expected a string or None"),
        (lambda: figures(_NOWHERE, "d", "x.jpg"), "options is 'x.jpg'; expected a FigureOptions"),
        (lambda: evaluate(5, "data"), "model is 5; expected a string or None"),
        (lambda: evaluate(_NOWHERE, 5), "data is 5; expected a string"),
        (lambda: evaluate(_NOWHERE, "data", 8), "options is 8; expected an EvaluateOptions"),
        (lambda: verify(5), "model is 5; expected a string or None"),
        (lambda: verify(_NOWHERE, "photographs"), "images is 'photographs'; expected a list, each a string or None"),
        (lambda: verify(_NOWHERE, None, 64), "options is 64; expected a VerifyOptions"),
        (lambda: bench(5), "model is 5; expected a string or None"),
        (lambda: bench(_NOWHERE, 60), "options is 60; expected a BenchOptions"),
    ],
)
def test_a_function_refuses_what_is_not_of_its_types(call: Callable[[], object], told: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(told)}$"):
        call()


def test_every_public_name_is_among_those_that_are_checked() -> None:
    of_functions = {
        "train",
        "prepare",
        "build",
        "ensemble",
        "export_model",
        "import_model",
        "inspect",
        "predict",
        "embed",
        "similar",
        "calibrate",
        "evaluate",
        "explain",
        "figures",
        "verify",
        "bench",
        "write_card",
        "write_triton_repository",
    }
    kinds = {name: getattr(alexdeploy, name) for name in alexdeploy.__all__}
    raised = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, (Exception, Warning))}
    assert {take.__name__ for take, *_ in _REFUSED} | of_functions | raised == set(alexdeploy.__all__)


def test_numbers_of_numpy_lists_and_paths_are_taken_for_what_they_mean() -> None:
    options = BenchOptions(
        num_views=[np.int64(1), 10],
        batch_sizes=np.array([1, 8]).tolist(),
        num_images=np.int32(5),
        seconds=np.float64(2),
    )
    assert options == BenchOptions(num_views=(1, 10), batch_sizes=(1, 8), num_images=5, seconds=2.0)
    assert [type(value) for value in (*options.num_views, options.num_images, options.seconds)] == [
        int,
        int,
        int,
        float,
    ]
    assert EvaluateOptions(labels=Path("labels.txt")).labels == "labels.txt"
    assert ModelFolder("models/x").path == Path("models/x")
    assert hash(ModelFolder("models/x")) == hash(ModelFolder(Path("models/x")))


def test_a_predictor_takes_numpys_integers(tiny_model: ModelFolder) -> None:
    predictor = Predictor(tiny_model, num_views=np.int64(10), batch_size=np.int32(4), top_k=np.uint8(2))
    assert (predictor.info.num_views, predictor.info.batch_size, predictor.top_k) == (10, 4, 2)
