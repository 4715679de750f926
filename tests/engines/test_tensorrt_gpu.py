"""TensorRT itself, on a GPU. `make test-gpu` checks more, and needs no torch and no pytest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from gpu_here import why_no_tensorrt
from helpers import smooth_images

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import DeviceError, ModelError
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import EngineOptions, NumViews, open_engine
from alexdeploy.engines.engine_files import BuildOptions

if TYPE_CHECKING:
    from alexdeploy.engines.tensorrt_build import BuiltEngine

WHY_NOT = why_no_tensorrt()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

MAX_BATCH = 4
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1}
"""Of probabilities, against ONNX Runtime on the CPU with the same graph."""


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))


def _build(folder: ModelFolder, precision: Precision = "fp16", num_views: NumViews = 10) -> BuiltEngine:
    from alexdeploy.engines.tensorrt_build import build_engine

    return build_engine(folder, BuildOptions(precision=precision, num_views=num_views, max_batch=MAX_BATCH))


def _options(precision: Precision = "fp16", num_views: NumViews = 10) -> EngineOptions:
    return EngineOptions(precision=precision, num_views=num_views, batch_size=MAX_BATCH, device="cuda:0")


@pytest.mark.parametrize("num_views", [1, 10])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_gives_the_answers_of_its_graph_for_full_and_tail_batches(
    int8_model: ModelFolder, precision: Precision, num_views: NumViews
) -> None:
    _build(int8_model, precision, num_views)
    images = smooth_images(MAX_BATCH)
    reference = EngineOptions(precision=precision, num_views=num_views, batch_size=MAX_BATCH)
    with open_engine(int8_model, "onnxruntime", reference) as engine:
        expected = engine.run(images)
    with open_engine(int8_model, "tensorrt", _options(precision, num_views)) as engine:
        assert (engine.info.backend, engine.info.device, engine.info.num_streams) == ("tensorrt", "cuda:0", 2)
        for count in (4, 4, 4, 3, 1, 4, 4, 4):
            found = engine.run(images[:count])
            assert found.view_classes.shape == (count, num_views)
            np.testing.assert_allclose(found.probabilities, expected.probabilities[:count], atol=TOLERANCE[precision])


def test_two_threads_at_once_get_each_their_own_answers(int8_model: ModelFolder) -> None:
    _build(int8_model)
    batches = [smooth_images(MAX_BATCH, seed) for seed in range(8)]
    with open_engine(int8_model, "tensorrt", _options()) as engine:
        expected = [engine.run(batch).probabilities for batch in batches]
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda batch: engine.run(batch).probabilities, batches * 5))
    for index, each in enumerate(found):
        np.testing.assert_allclose(each, expected[index % 8], atol=1e-3)


def test_an_engine_that_is_there_is_used_again(int8_model: ModelFolder) -> None:
    first, second = _build(int8_model), _build(int8_model)
    assert (first.reused, second.reused) == (False, True)
    assert first.record == second.record


def test_another_installations_engine_is_not_opened(
    int8_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(int8_model)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "other"))
    with (
        pytest.raises(ModelError, match="another installation"),
        open_engine(int8_model, "tensorrt", _options()),
    ):
        pass


def test_the_inspector_lists_layers(int8_model: ModelFolder) -> None:
    from alexdeploy.inference.inspect import inspect

    built = _build(int8_model)
    assert len(inspect(str(built.path)).layers) > 3


def test_a_gpu_that_is_not_there_is_a_device_error(int8_model: ModelFolder) -> None:
    with pytest.raises(DeviceError, match="there is no cuda:99"):
        open_engine(int8_model, "tensorrt", EngineOptions(device="cuda:99"))
