"""TensorRT itself, on a GPU. `make test-gpu` checks more, and needs no torch and no pytest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gpu_here import why_no_tensorrt
from helpers import smooth_images

from alexdeploy.core.errors import DeviceError, ModelError, OutputError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import TENSORRT_STREAMS, EngineOptions, NumViews, open_engine
from alexdeploy.engines.trt.files import BuildOptions

if TYPE_CHECKING:
    from alexdeploy.engines.trt.build import BuiltEngine

WHY_NOT = why_no_tensorrt()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

MAX_BATCH = 4
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1}
"""Of probabilities, against ONNX Runtime on the CPU with the same graph."""


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))


def _build(folder: ModelFolder, precision: Precision = "fp16", num_views: NumViews = 10) -> BuiltEngine:
    from alexdeploy.engines.trt.build import build_engine

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


def test_the_network_is_strongly_typed_where_this_tensorrt_can(int8_model: ModelFolder) -> None:
    from alexdeploy.engines.trt.context import on_gpu
    from alexdeploy.engines.trt.library import load_library
    from alexdeploy.engines.trt.network import read_network
    from alexdeploy.graphs.freshness import load_graph
    from alexdeploy.graphs.tensorrt import engine_graph, opset_for

    library = load_library("tensorrt")
    if not library.is_strongly_typed:
        pytest.skip(f"{library} is older than 10.12")
    spec = int8_model.spec()
    graph = load_graph(int8_model, "fp16", spec)
    typed = engine_graph(graph.model, spec, 1, int8_model.mean_image(spec), opset_for(library.interface[0]))

    def read() -> bool:
        builder = library.api.Builder(library.log)
        network = read_network(library, builder, typed.SerializeToString())
        return bool(network.get_flag(library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))

    assert on_gpu(0, read)


def test_where_no_engine_can_be_written_no_build_begins(int8_model: ModelFolder) -> None:
    from alexdeploy.engines.trt.build import build_engine

    (int8_model.path / "engines").write_bytes(b"a file in the place of the folder")
    phases: list[str] = []
    with pytest.raises(OutputError, match="could not be written"):
        build_engine(int8_model, BuildOptions(), lambda phase, done, total: phases.append(phase))
    assert phases == []


def test_a_plan_whose_streams_cannot_all_have_a_context_is_not_written(
    int8_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alexdeploy.engines.trt import stream

    make_context, contexts = stream.make_context, 0

    def last_fails(*given: Any) -> object:
        nonlocal contexts
        contexts += 1
        if contexts == TENSORRT_STREAMS:
            raise DeviceError("no memory is left for the last one")
        return make_context(*given)

    monkeypatch.setattr(stream, "make_context", last_fails)
    with pytest.raises(DeviceError, match="for the last one"):
        _build(int8_model)
    assert list((int8_model.path / "engines").iterdir()) == []


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
    from alexdeploy.diagnosis.inspect import inspect

    built = _build(int8_model)
    assert len(inspect(str(built.path)).layers) > 3


def test_a_gpu_that_is_not_there_is_a_device_error(int8_model: ModelFolder) -> None:
    with pytest.raises(DeviceError, match="there is no cuda:99"):
        open_engine(int8_model, "tensorrt", EngineOptions(device="cuda:99"))
