"""INT8 in OpenVINO's engine: the answers of ONNX Runtime, and bfloat16 between layers only where all are INT8."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import (
    FIRST_LAYERS,
    TINY,
    assert_int8_agrees,
    make_model,
    replace_graph,
    smooth_images,
    write_pictures,
)

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.engines.base import EngineOptions, NumViews, open_engine
from alexdeploy.engines.openvino import OpenVINOEngine, may_be_bfloat16, precision_hint
from alexdeploy.engines.openvino_library import cpu_capabilities, ov
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.quantize import quantize
from alexdeploy.export.quantize.quantize import Budget
from alexdeploy.graphs.deployment import PREFIX
from alexdeploy.graphs.metadata import FLOAT_LAYERS_KEY, GraphMetadata
from alexdeploy.graphs.openvino import openvino_graph


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelFolder]:
    """(recipe, *overrides) -> a tiny model with all layers in INT8, made once for all tests: to read, not to change.

    Its weights have 7 bits: with 8, OpenVINO's sums saturate on processors without VNNI, see test_int8_sums.py.
    """
    root = tmp_path_factory.mktemp("int8")
    write_pictures(root / "pictures", 8)

    @functools.cache
    def quantized(recipe: str, *overrides: str) -> ModelFolder:
        name = f"{recipe}-{len(list(root.iterdir()))}"
        folder = make_model(root / name, recipe, (*TINY, *overrides))
        with pytest.MonkeyPatch.context() as patch:
            # Ranges lie in the working folder.
            patch.chdir(root)
            patch.setattr(quantize, "DEFAULT_MAX_DROP", 100.0)
            export_model(folder, ExportOptions(int8=True, int8_weights=7, calibrate="pictures"))
        return folder

    return quantized


@pytest.mark.parametrize(
    ("precision", "capabilities", "allow_bfloat16", "expected"),
    [
        ("fp32", ["FP32", "BF16"], True, "f32"),
        ("fp16", ["FP32", "BF16"], True, "f32"),
        ("bf16", ["FP32", "BF16"], False, "bf16"),
        ("int8", ["FP32", "INT8", "BF16"], True, "bf16"),
        ("int8", ["FP32", "INT8", "BF16"], False, "f32"),
        ("int8", ["FP32", "INT8"], True, "f32"),
    ],
)
def test_between_int8_layers_bfloat16_is_used_where_the_cpu_has_it(
    precision: str, capabilities: list[str], allow_bfloat16: bool, expected: str
) -> None:
    assert precision_hint(capabilities, precision, allow_bfloat16) == expected


class _Core:
    """A Core of an Intel processor with AMX and AVX-512 FP16, whatever oneDNN is limited to."""

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return ["BF16", "WINOGRAD", "FP32", "FP16", "INT8"]


@pytest.mark.parametrize(
    ("variable", "isa", "types"),
    [
        ("ONEDNN_MAX_CPU_ISA", "", {"BF16", "FP16"}),
        ("ONEDNN_MAX_CPU_ISA", "ALL", {"BF16", "FP16"}),
        # oneDNN ignores what it does not know.
        ("ONEDNN_MAX_CPU_ISA", "AVX3", {"BF16", "FP16"}),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX", {"BF16", "FP16"}),
        ("ONEDNN_MAX_CPU_ISA", "AVX10_1_512", {"BF16", "FP16"}),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16", {"BF16", "FP16"}),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", {"BF16"}),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", set()),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core_vnni", set()),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE", set()),
        ("ONEDNN_MAX_CPU_ISA", "AVX2_VNNI", set()),
        ("ONEDNN_MAX_CPU_ISA", "AVX2", set()),
        ("DNNL_MAX_CPU_ISA", "SSE41", set()),
    ],
)
def test_types_that_onednn_may_not_use_are_no_capabilities(
    variable: str, isa: str, types: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, isa)
    assert set(cpu_capabilities(_Core())) == {"WINOGRAD", "FP32", "INT8"} | types


_LIMITED = """
import sys
import numpy as np
from pathlib import Path
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.errors import DeviceError
from alexdeploy.engines.base import EngineOptions, open_engine

folder, images = ModelFolder(Path(sys.argv[1])), np.load(sys.argv[2])
with open_engine(folder, "openvino", EngineOptions()) as engine:
    np.save(sys.argv[3], engine.run(images).probabilities)
with open_engine(folder, "openvino", EngineOptions(precision="int8")) as engine:
    engine.run(images)
    print(engine._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
try:
    open_engine(folder, "openvino", EngineOptions(precision="bf16")).__enter__()
except DeviceError as error:
    print(error.message)
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE_VNNI"])
def test_openvino_runs_without_bfloat16_where_onednn_is_limited(
    quantized: Callable[..., ModelFolder], tmp_path: Path, isa: str
) -> None:
    """OpenVINO 2026.4 offers bfloat16 even then, and with AVX2 finds no kernel for its LRN."""
    folder, images = quantized("alexnet"), smooth_images(5)
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, folder.path, tmp_path / "images.npy", tmp_path / "found.npy"],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "f32\nthis CPU has no bfloat16 arithmetic\n"), done.stderr
    with open_engine(folder, "onnxruntime", EngineOptions()) as engine:
        expected = engine.run(images).probabilities
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, rtol=0, atol=1e-5)


def _check_answers(folder: ModelFolder, num_views: NumViews) -> None:
    """Compare the INT8 graph in OpenVINO with ONNX Runtime, where bfloat16 is never used."""
    images, found = smooth_images(16 if num_views == 1 else 8), []
    for backend, precision in (("onnxruntime", "int8"), ("openvino", "int8"), ("onnxruntime", "fp32")):
        options = EngineOptions(precision=precision, num_views=num_views, batch_size=16)  # type: ignore[arg-type]
        with open_engine(folder, backend, options) as engine:  # type: ignore[arg-type]
            found.append(engine.run(images).probabilities)
    assert_int8_agrees(*found)
    assert np.ptp(found[0]) > 0.1


def _arithmetic(folder: ModelFolder) -> str:
    with open_engine(folder, "openvino", EngineOptions(precision="int8")) as engine:
        assert isinstance(engine, OpenVINOEngine)
        assert engine._compiled is not None
        return str(engine._compiled.get_property("INFERENCE_PRECISION_HINT"))


@pytest.fixture
def without_lrn(quantized: Callable[..., ModelFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """Nothing in it stands against bfloat16; the test's own."""
    source = quantized("torchvision")
    shutil.copytree(source.path, tmp_path / "model")
    shutil.copytree(source.path.parent / "pictures", tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    return ModelFolder(tmp_path / "model")


def test_layers_that_are_kept_out_of_int8_are_computed_in_float32(without_lrn: ModelFolder, any_drop: None) -> None:
    has_bfloat16 = "BF16" in cpu_capabilities(ov.Core())
    assert ("bfloat16" in _arithmetic(without_lrn)) == has_bfloat16
    export_model(without_lrn, ExportOptions(int8=True, calibrate="pictures", budget=Budget(keep=("fc8",))))
    assert "float32" in _arithmetic(without_lrn)


def test_an_int8_graph_that_does_not_say_what_stays_in_float_runs_in_float32(without_lrn: ModelFolder) -> None:
    model = onnx.load(without_lrn.onnx_path("int8"))
    (entry,) = (entry for entry in model.metadata_props if entry.key == FLOAT_LAYERS_KEY)
    model.metadata_props.remove(entry)
    replace_graph(without_lrn, "int8", model)
    assert "float32" in _arithmetic(without_lrn)
    _check_answers(without_lrn, 1)


@pytest.mark.parametrize(
    ("recipe", "float_layers", "expected"),
    [
        ("alexnet", "", True),
        ("alexnet", "fc8", False),
        ("alexnet-quarter", "", False),
        ("caffenet", "", True),
        ("torchvision", "", True),
    ],
)
def test_bfloat16_is_for_lrns_of_maps_by_the_sixteen(recipe: str, float_layers: str, expected: bool) -> None:
    """OpenVINO 2026.4 computes others in a generic kernel: 59 ms instead of 13 for an LRN of 12 maps."""
    facts = GraphMetadata(metadata={FLOAT_LAYERS_KEY: float_layers}, sha256="0" * 64)
    spec = ModelSpec(
        name="t", classes=("a", "b"), preprocessing=Preprocessing(), architecture=load_recipe(recipe).architecture
    )
    assert may_be_bfloat16(facts, spec) == expected
    assert not may_be_bfloat16(facts, dataclasses.replace(spec, architecture=None))


@pytest.mark.parametrize("num_views", [1, 5, 10])
@pytest.mark.parametrize(("recipe", "overrides"), FIRST_LAYERS)
def test_int8_answers_as_in_onnx_runtime(
    quantized: Callable[..., ModelFolder], recipe: str, overrides: tuple[str, ...], num_views: NumViews
) -> None:
    _check_answers(quantized(recipe, *overrides), num_views)


def test_int8_with_average_pooling_answers_as_in_onnx_runtime(quantized: Callable[..., ModelFolder]) -> None:
    folder = quantized("alexnet", "architecture.pooling.kind=average")
    graph = onnx.load(folder.onnx_path("int8")).graph
    # Pooled in float, and quantized for the layer that reads it: a mean of INT8 values would be rounded twice.
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    pools = [node for node in graph.node if node.op_type == "AveragePool"]
    assert [made_by[node.input[0]] for node in pools] == ["Reshape", "Reshape", "Relu"]
    _check_answers(folder, 1)


@pytest.mark.parametrize("num_views", [1, 10])
@pytest.mark.parametrize("recipe", ["alexnet", "caffenet", "torchvision"])
def test_bfloat16_between_int8_layers_does_not_reach_the_pixels_before_the_first(
    quantized: Callable[..., ModelFolder], recipe: str, num_views: int
) -> None:
    folder = quantized(recipe)
    spec = folder.spec()
    network = onnx.load(folder.onnx_path("int8"))
    model = openvino_graph(network, spec, "int8", num_views, folder.mean_image(spec))
    name = PREFIX + "quantized"
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
    content = model.SerializeToString()
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = session.run([name], {"images": images})[0].astype(int)
    core = ov.Core()
    has_bfloat16 = "BF16" in cpu_capabilities(core)
    for hint in ("f32", "bf16") if has_bfloat16 else ("f32",):
        read = core.read_model(content)
        read.reshape([2, 256, 256, 3])
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        found = compiled({0: images})[2].astype(int)
        # A value halfway between two may be rounded to either.
        assert np.abs(found - expected).max() <= 1
        assert (found != expected).mean() < 1e-4
