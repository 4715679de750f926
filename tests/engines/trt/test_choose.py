"""Which engines fit a model folder as it is: no TensorRT is needed to tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from helpers import change_weights, make_model
from made_engines import make_engine

from alexdeploy.core.errors import ModelError, StaleArtifactError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision
from alexdeploy.engines.trt.choose import EngineRequirements, choose_engine, engine_requirements, fitting_engines
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.graphs.files import Source, read_graph, serialize, write_graph


def wanted_of(folder: ModelFolder, precision: Precision = "fp16") -> EngineRequirements:
    return engine_requirements(
        folder,
        precision=precision,
        num_views=10,
        batch_size=8,
        version="10.16.1.11",
        compute_capability=(9, 0),
        cuda="13.0",
    )


def engine_of(folder: ModelFolder, **changes: object) -> Path:
    """An engine that fits a model folder, but for what is changed."""
    wanted = wanted_of(folder)
    hashes = {name: getattr(wanted, name) for name in ("graph_sha256", "weights_sha256", "contract_sha256")}
    return make_engine(folder, **{**hashes, **changes})


def test_what_is_wanted_is_of_the_files_of_the_model(tiny_model: ModelFolder) -> None:
    wanted = wanted_of(tiny_model)
    assert wanted.graph_sha256 == sha256_file(tiny_model.path / "model.fp16.onnx")
    assert wanted.weights_sha256 == sha256_file(tiny_model.path / "weights.safetensors")
    assert wanted.contract_sha256 == tiny_model.spec().contract_sha256
    assert (wanted.precision, wanted.num_views, wanted.batch_size) == ("fp16", 10, 8)
    assert (wanted.version, wanted.compute_capability, wanted.cuda) == ("10.16.1.11", (9, 0), "13.0")


def test_the_engines_that_fit_come_smallest_batch_first(tiny_model: ModelFolder) -> None:
    large, small = engine_of(tiny_model, profile=(1, 64, 64)), engine_of(tiny_model, profile=(1, 16, 16))
    engine_of(tiny_model, compute_capabilities=((8, 0),))
    engine_of(tiny_model, weights_sha256="0" * 64)
    wanted = wanted_of(tiny_model)
    found = fitting_engines(tiny_model, wanted)
    assert [path for path, _ in found] == [small, large]
    assert [record.profile[2] for _, record in found] == [16, 64]
    assert [path for path, _ in fitting_engines(tiny_model, dataclasses.replace(wanted, batch_size=17))] == [large]


def test_an_engine_is_compared_with_the_weights_where_its_graph_is_gone(tiny_model: ModelFolder) -> None:
    path = engine_of(tiny_model)
    for gone in ("model.onnx", "model.fp16.onnx"):
        (tiny_model.path / gone).unlink()
    assert choose_engine(tiny_model, wanted_of(tiny_model)) == path
    change_weights(tiny_model, conv1__weight=lambda weight: weight * 2)
    with pytest.raises(ModelError, match="it was built from weights"):
        choose_engine(tiny_model, wanted_of(tiny_model))


def test_an_engine_is_compared_with_any_graph_where_its_own_and_the_weights_are_gone(
    tiny_model: ModelFolder, tmp_path: Path
) -> None:
    path = engine_of(tiny_model)
    (tiny_model.path / "model.fp16.onnx").unlink()
    tiny_model.weights_path.unlink()
    assert choose_engine(tiny_model, wanted_of(tiny_model)) == path
    other = make_model(tmp_path / "other", seed=1)
    export_model(other, ExportOptions())
    tiny_model.onnx_path().write_bytes(other.onnx_path().read_bytes())
    with pytest.raises(ModelError, match="it was built from weights"):
        choose_engine(tiny_model, wanted_of(tiny_model))


def test_an_engine_that_came_alone_fits(tiny_model: ModelFolder) -> None:
    path = engine_of(tiny_model)
    for gone in ("model.onnx", "model.fp16.onnx", "weights.safetensors"):
        (tiny_model.path / gone).unlink()
    wanted = wanted_of(tiny_model)
    assert (wanted.graph_sha256, wanted.weights_sha256) == (None, None)
    assert choose_engine(tiny_model, wanted) == path


def test_a_graph_that_its_weights_left_behind_is_not_wanted(tiny_model: ModelFolder) -> None:
    change_weights(tiny_model, conv1__weight=lambda weight: weight * 2)
    with pytest.raises(StaleArtifactError):
        wanted_of(tiny_model)


def test_an_imported_model_is_told_by_its_fp32_graph_whatever_the_precision(tiny_model: ModelFolder) -> None:
    path, spec = tiny_model.onnx_path(), tiny_model.spec()
    content = serialize(read_graph(path).model, spec, Source(name="original.onnx", sha256="0" * 64))
    write_graph(tiny_model, "fp32", content)
    tiny_model.weights_path.unlink()
    export_model(tiny_model, ExportOptions(fp16=True))
    found = {precision: wanted_of(tiny_model, precision).weights_sha256 for precision in ("fp32", "fp16", "int8")}
    assert found == dict.fromkeys(("fp32", "fp16", "int8"), sha256_file(path)), "there is no INT8 graph at all"
