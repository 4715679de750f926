"""verify: real graphs and engines, and graphs that were broken on purpose."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import replace_graph, smooth_images, write_pictures
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.errors import ImageError, ModelError, ParityError, StaleArtifactError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision, Preprocessing
from alexdeploy.engines.base import Backend, EngineOptions, open_engine
from alexdeploy.evaluation import verify as verify_module
from alexdeploy.evaluation.verify import VerifyOptions, verify
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.graphs.metadata import PRECISION_KEY
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.onnx import OnnxOptions, import_onnx
from alexdeploy.network import reference
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import Placed, place

GRAPH_ONLY = VerifyOptions(precisions=("fp16",), backends=("torch",))
"""No engine is compared: PyTorch runs no FP16 graph."""

Change = Callable[[str, NDArray[np.floating]], NDArray[np.floating]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures on which the tiny model gives different answers."""
    return write_pictures(tmp_path / "pictures", 12)


def change_weights(folder: ModelFolder, precision: str, change: Change) -> None:
    """Write the graph again with other weights, its metadata kept: not stale, but wrong."""
    model = onnx.load(folder.onnx_path(precision))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        changed = change(tensor.name, values).astype(values.dtype)
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    replace_graph(folder, precision, model)


def scaled(layer: str, factor: float) -> Change:
    return lambda name, values: values * factor if name == f"{layer}.weight" else values


def as_fp16(folder: ModelFolder, change: Change) -> None:
    """Put the FP32 graph, changed, in the place of the FP16 one: only the change is then an error."""
    model = onnx.load(folder.onnx_path())
    (precision,) = (entry for entry in model.metadata_props if entry.key == PRECISION_KEY)
    precision.value = "fp16"
    replace_graph(folder, "fp16", model)
    change_weights(folder, "fp16", change)


def test_an_export_gives_the_answers_of_pytorch_on_every_backend(tiny_model: ModelFolder, pictures: Path) -> None:
    found = verify(tiny_model, [str(pictures)])
    assert found.reference == "torch"
    assert (found.num_found, found.num_images, found.broken) == (12, 12, ())
    assert [report.precision for report in found.networks] == ["fp32", "fp16"]
    assert [(report.precision, report.backend) for report in found.engines] == [
        ("fp32", "openvino"),
        ("fp32", "onnxruntime"),
        ("fp16", "openvino"),
        ("fp16", "onnxruntime"),
    ]
    plan = plan_layers(tiny_model.spec().architecture, 5)  # type: ignore[arg-type]
    assert found.networks[0].jump is None
    for report in found.networks:
        assert [layer.name for layer in report.layers] == [layer.name for layer in plan if layer.kind != "dropout"]
        assert report.agreement.num_rows == 12
    for report in (*found.networks, *found.engines):
        assert report.failure is None
        assert report.agreement.num_flips == 0
        assert report.agreement.max_error is not None
        assert 0 < report.agreement.max_error < (1e-4 if report.precision == "fp32" else 0.1)
    found.check()


def test_errors_of_layers_and_logits_are_those_of_numpy(tiny_model: ModelFolder, pictures: Path) -> None:
    change: Change = lambda name, values: values + 0.5 if name == "fc8.bias" else values  # noqa: E731
    as_fp16(tiny_model, change)
    for path in sorted(pictures.iterdir())[4:]:
        path.unlink()
    options = VerifyOptions(precisions=("fp16",), backends=("torch",), num_views=10)
    (network,) = verify(tiny_model, [str(pictures)], options).networks

    spec = tiny_model.spec()
    assert spec.architecture is not None
    plan = plan_layers(spec.architecture, spec.num_classes)
    mean = tiny_model.mean_image(spec)
    inputs = np.concatenate([network_input(image, spec.preprocessing, 10, mean) for image in smooth_images(4)])
    *_, (_, logits) = reference.forward(plan, load_weights(tiny_model.weights_path, plan), inputs)
    assert network.agreement.num_rows == 40
    # Every logit of every view is off by 0.5, so the answers stay; 16 views go through at a time, and none is lost.
    assert network.agreement.num_flips == 0
    assert network.agreement.max_error == pytest.approx(0.5, rel=1e-4)
    assert network.agreement.mean_error == pytest.approx(0.5, rel=1e-4)
    assert network.agreement.relative_error == pytest.approx(0.5 / np.abs(logits).max(), rel=1e-4)
    last = network.layers[-1]
    assert last.name == "fc8"
    assert last.rms_error == pytest.approx(0.5 / np.sqrt(np.square(logits).mean()), rel=1e-4)
    assert last.max_error == pytest.approx(0.5 / np.abs(logits).max(), rel=1e-4)
    assert max(layer.rms_error for layer in network.layers[:-1]) < 1e-5
    assert network.jump == "fc8"


def test_a_layer_with_wrong_weights_is_named(tiny_model: ModelFolder, pictures: Path) -> None:
    change_weights(tiny_model, "fp16", scaled("conv3", 1.5))
    options = VerifyOptions(precisions=("fp16",), backends=("onnxruntime",))
    found = verify(tiny_model, [str(pictures)], options)
    (network,), (engine,) = found.networks, found.engines
    assert network.jump == engine.jump == "conv3"
    by_name = {layer.name: layer.rms_error for layer in network.layers}
    # The error is half of what the weights give without the bias.
    assert by_name["pool2"] < 2e-3
    assert by_name["conv3"] == pytest.approx(0.5, abs=0.05)
    assert network.agreement.num_flips > 0
    assert network.agreement.max_margin is not None
    assert 0 < network.agreement.max_margin < 1
    with pytest.raises(ParityError) as caught:
        found.check()
    assert "model.fp16.onnx: " in caught.value.message
    assert "model.fp16.onnx on onnxruntime: " in caught.value.message
    assert caught.value.message.count("answers differ (") == 2
    assert caught.value.message.count("allowed: 8.33 %; the error jumps at conv3") == 2
    assert f"alexdeploy export {tiny_model.path} --fp16" in str(caught.value.hint)


def test_flips_up_to_the_limit_are_allowed(tiny_model: ModelFolder, pictures: Path) -> None:
    change_weights(tiny_model, "fp16", scaled("conv3", 1.5))
    options = VerifyOptions(precisions=("fp16",), backends=("torch",), max_flips=100)
    found = verify(tiny_model, [str(pictures)], options)
    assert found.networks[0].agreement.num_flips > 0
    assert found.failures == ()
    found.check()


def test_one_percent_is_allowed_but_always_one_image(tiny_model: ModelFolder, pictures: Path) -> None:
    (pictures / "005.png").write_bytes(b"")
    assert verify(tiny_model, [str(pictures)], GRAPH_ONLY).max_flips == 100 / 11
    strict = dataclasses.replace(GRAPH_ONLY, max_flips=1.0)
    assert verify(tiny_model, [str(pictures)], strict).max_flips == 1.0
    many = dataclasses.replace(GRAPH_ONLY, num_images=120)
    assert verify(tiny_model, [str(pictures / "000.png")] * 120, many).max_flips == 1.0


def test_outputs_that_are_not_finite_fail_whatever_is_allowed(tiny_model: ModelFolder, pictures: Path) -> None:
    as_fp16(tiny_model, lambda name, values: values * (np.nan if name == "fc7.weight" else 1))
    options = VerifyOptions(precisions=("fp16",), backends=("onnxruntime",), max_flips=100)
    found = verify(tiny_model, [str(pictures)], options)
    assert found.networks[0].jump == "fc7"
    assert {layer.rms_error for layer in found.networks[0].layers if layer.name in ("fc7", "fc8")} == {float("inf")}
    assert found.failures == (
        "model.fp16.onnx: 12 of 12 outputs are not finite; the error jumps at fc7",
        "model.fp16.onnx on onnxruntime: 12 of 12 outputs are not finite; the error jumps at fc7",
    )


def test_an_infinity_inside_is_a_jump_though_the_answers_are_finite(tiny_model: ModelFolder, pictures: Path) -> None:
    # ReLU makes 0 of minus infinity.
    as_fp16(tiny_model, lambda name, values: values - (np.inf if name == "fc7.bias" else 0))
    (network,) = verify(tiny_model, [str(pictures)], GRAPH_ONLY).networks
    assert network.agreement.num_non_finite == 0
    assert network.jump == "fc7"


def test_a_layer_that_a_graph_lacks_is_left_out(tiny_model: ModelFolder, pictures: Path) -> None:
    model = onnx.load(tiny_model.onnx_path("fp16"))
    for node in model.graph.node:
        node.input[:] = ["other" if name == "relu3" else name for name in node.input]
        node.output[:] = ["other" if name == "relu3" else name for name in node.output]
    replace_graph(tiny_model, "fp16", model)
    (network,) = verify(tiny_model, [str(pictures)], GRAPH_ONLY).networks
    names = [layer.name for layer in network.layers]
    assert "relu3" not in names
    assert names[names.index("conv3") + 1] == "conv4"


def test_weights_that_are_not_finite_are_the_fault_of_the_reference(tiny_model: ModelFolder, pictures: Path) -> None:
    tiny_model.weights_path.unlink()
    change_weights(tiny_model, "fp32", lambda name, values: values * (np.nan if name == "fc7.weight" else 1))
    tiny_model.onnx_path("fp16").unlink()
    with pytest.raises(ModelError, match="the reference itself gives 12 of 12 outputs that are not finite"):
        verify(tiny_model, [str(pictures)])


def test_a_stale_graph_is_refused_before_anything_runs(tiny_model: ModelFolder, pictures: Path) -> None:
    change_weights(tiny_model, "fp32", scaled("conv3", 1.5))
    steps: list[object] = []
    with pytest.raises(StaleArtifactError, match=r"model\.fp16\.onnx was made from model\.onnx") as caught:
        verify(tiny_model, [str(pictures)], on_event=steps.append)
    assert caught.value.hint == f"Renew it: alexdeploy export {tiny_model.path} --fp16"
    assert steps == []


def test_without_weights_the_fp32_graph_is_the_reference(tiny_model: ModelFolder, pictures: Path) -> None:
    change_weights(tiny_model, "fp16", scaled("conv3", 1.5))
    tiny_model.weights_path.unlink()
    found = verify(tiny_model, [str(pictures)], VerifyOptions(backends=("openvino", "onnxruntime", "torch")))
    assert found.reference == "onnxruntime"
    assert [(report.precision, report.jump) for report in found.networks] == [("fp16", "conv3")]
    assert [(report.precision, report.backend, report.failure is None) for report in found.engines] == [
        ("fp32", "openvino", True),
        ("fp16", "openvino", False),
        ("fp16", "onnxruntime", False),
    ]


def imported(path: Path) -> ModelFolder:
    """A classifier of somebody else's, of unknown architecture, with a shape computed inside it."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(0, 0.02, (6, 3, 32, 32)).astype(np.float32),
        "v": rng.normal(0, 1.0, (6, 4)).astype(np.float32),
        "tail": np.array([6]),
    }
    nodes = [
        helper.make_node("Conv", ["data", "w"], ["conv"]),
        helper.make_node("Shape", ["data"], ["size"], start=0, end=1),
        helper.make_node("Concat", ["size", "tail"], ["rows"], axis=0),
        helper.make_node("Reshape", ["conv", "rows"], ["flat"]),
        helper.make_node("Relu", ["flat"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "v"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(values, name) for name, values in arrays.items()],
    )
    path.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path / "theirs.onnx")
    folder = ModelFolder(path / "theirs")
    import_onnx(path / "theirs.onnx", folder, OnnxOptions(preprocessing=Preprocessing(mean=(128.0, 128.0, 128.0))))
    export_model(folder, ExportOptions(fp16=True))
    return folder


def test_an_imported_model_is_compared_tensor_by_tensor_with_its_fp32_graph(tmp_path: Path, pictures: Path) -> None:
    folder = imported(tmp_path / "import")
    found = verify(folder, [str(pictures)], VerifyOptions(backends=("onnxruntime",)))
    (network,) = found.networks
    assert (found.reference, network.precision, network.failure) == ("onnxruntime", "fp16", None)
    names = [layer.name for layer in network.layers]
    assert [name for name in names if name in ("conv", "hidden", "logits")] == ["conv", "hidden", "logits"]
    assert not {"size", "rows"} & set(names)
    assert all(0 < layer.rms_error < 1e-2 for layer in network.layers)

    change_weights(folder, "fp16", lambda name, values: values * (2 if name == "v" else 1))
    (network,) = verify(folder, [str(pictures)], VerifyOptions(backends=("onnxruntime",))).networks
    # The import renamed their output, through a node of its own.
    assert (network.jump, network.layers[-1].name) == ("scores", "logits")
    assert network.layers[-1].rms_error == pytest.approx(1, abs=1e-2)


def test_a_broken_image_is_told_and_the_others_are_compared(tiny_model: ModelFolder, pictures: Path) -> None:
    (pictures / "005.png").write_bytes(b"")
    found = verify(tiny_model, [str(pictures)], GRAPH_ONLY)
    assert [(broken.source, broken.error) for broken in found.broken] == [
        (str(pictures / "005.png"), "the file is empty")
    ]
    assert found.num_images == found.networks[0].agreement.num_rows == 11


def test_no_image_that_can_be_read_is_an_error_that_says_why(tiny_model: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"none of 1 images can be read: .*empty\.png: the file is empty"):
        verify(tiny_model, [str(tmp_path / "empty.png")], GRAPH_ONLY)


def test_a_list_of_which_no_image_is_there_is_a_usage_error_that_names_both_sides(
    tiny_model: ModelFolder, pictures: Path
) -> None:
    names = pictures / "list.txt"
    names.write_text("x.JPEG\ny.JPEG\n")
    with pytest.raises(UsageError, match=r"the list has '.*/x\.JPEG', the folder '000\.png'"):
        verify(tiny_model, [f"@{names}"], GRAPH_ONLY)
    names.write_text("x.JPEG\n000.png\n")
    assert verify(tiny_model, [f"@{names}"], GRAPH_ONLY).num_images == 1


def test_the_images_lie_evenly_over_all_that_were_named(tiny_model: ModelFolder, pictures: Path) -> None:
    # Images that cannot be read are told by name: those that were taken, but the first.
    for path in sorted(pictures.iterdir())[1:]:
        path.write_bytes(b"")
    options = dataclasses.replace(GRAPH_ONLY, num_images=5)
    found = verify(tiny_model, [str(pictures)], options)
    assert (found.num_found, found.num_images) == (12, 1)
    assert [int(Path(broken.source).stem) for broken in found.broken] == [2, 6, 8, 10]


def test_without_images_the_training_data_is_taken_or_rendered_pictures(
    tiny_model: ModelFolder, pictures: Path
) -> None:
    options = VerifyOptions(precisions=("fp16",), backends=("torch",), num_images=3)
    assert verify(tiny_model, None, options).images == "rendered pictures"
    tiny_model.write_spec(tiny_model.spec().replace_provenance(data=str(pictures)))
    found = verify(tiny_model, None, options)
    assert (found.images, found.num_found, found.num_images) == (str(pictures), 12, 3)


def run_engine(folder: ModelFolder, backend: Backend, precision: Precision) -> NDArray[np.float32]:
    images = smooth_images(40)
    with open_engine(folder, backend, EngineOptions(precision=precision)) as engine:
        parts = [engine.run(images[start : start + 8]).probabilities.copy() for start in range(0, 40, 8)]
    return np.concatenate(parts)


def test_an_int8_graph_is_judged_on_every_engine(int8_model: ModelFolder) -> None:
    found = verify(int8_model, ["pictures"], VerifyOptions(precisions=("int8",), num_images=40))
    (network,) = found.networks
    assert (network.artifact, network.sha256) == ("model.int8.onnx", sha256_file(int8_model.onnx_path("int8")))
    assert all(1e-3 < layer.rms_error < 0.2 for layer in network.layers), "INT8's rounding, and no more"
    assert [(report.backend, report.precision) for report in found.engines] == [
        ("openvino", "int8"),
        ("onnxruntime", "int8"),
    ]
    expected = run_engine(int8_model, "torch", "fp32")
    for report in found.engines:
        actual = run_engine(int8_model, report.backend, "int8")  # type: ignore[arg-type]
        assert report.sha256 == network.sha256
        assert report.agreement.num_rows == 40
        assert report.agreement.num_flips == (actual.argmax(axis=1) != expected.argmax(axis=1)).sum()
        assert report.agreement.max_error == pytest.approx(np.abs(actual - expected).max(), rel=1e-3)


def test_an_int8_graph_with_a_wrong_scale_fails_with_the_command_that_makes_another(int8_model: ModelFolder) -> None:
    change_weights(int8_model, "int8", lambda name, values: values * (2 if name == "conv3.weight_scale" else 1))
    found = verify(int8_model, ["pictures"], VerifyOptions(precisions=("int8",)))
    assert [report.jump for report in found.reports] == ["conv3"] * 3
    assert len(found.failures) == 3
    with pytest.raises(ParityError) as caught:
        found.check()
    assert "alexdeploy export models/tiny --int8 --calibrate IMAGES" in str(caught.value.hint)


def test_bfloat16_is_compared_only_when_it_is_asked_for(tiny_model: ModelFolder, pictures: Path) -> None:
    options = VerifyOptions(precisions=("bf16",), backends=("onnxruntime", "torch"), max_flips=100)
    found = verify(tiny_model, [str(pictures)], options)
    assert found.networks == ()
    (engine,) = found.engines
    assert (engine.backend, engine.precision, engine.artifact) == ("torch", "bf16", "weights.safetensors")
    assert engine.agreement.max_error is not None
    assert 1e-5 < engine.agreement.max_error < 0.2


def test_an_engine_that_differs_where_its_graph_does_not_is_to_be_changed(
    tiny_model: ModelFolder, pictures: Path
) -> None:
    found = verify(tiny_model, [str(pictures)], VerifyOptions(precisions=("fp16",), backends=("onnxruntime",)))
    (engine,) = found.engines
    failing = dataclasses.replace(found, engines=(dataclasses.replace(engine, failure="it differs"),))
    with pytest.raises(ParityError, match=r"^model\.fp16\.onnx on onnxruntime: it differs") as caught:
        failing.check()
    assert "use another --backend or --precision" in str(caught.value.hint)
    assert "alexdeploy export" not in str(caught.value.hint)


def test_a_precision_that_is_missing_is_an_error_with_the_command_that_makes_it(tiny_model: ModelFolder) -> None:
    with pytest.raises(ModelError, match=r"has no model\.int8\.onnx") as caught:
        verify(tiny_model, None, VerifyOptions(precisions=("int8",)))
    assert caught.value.hint == f"Make it: alexdeploy export {tiny_model.path} --int8"
    for precision in ("fp32", "fp16"):
        tiny_model.onnx_path(precision).unlink()
    with pytest.raises(ModelError, match="has no ONNX graph"):
        verify(tiny_model)


def test_a_reference_alone_is_nothing_to_verify(tiny_model: ModelFolder) -> None:
    tiny_model.weights_path.unlink()
    with pytest.raises(UsageError, match=r"nothing to verify: model\.onnx in ONNX Runtime is itself"):
        verify(tiny_model, None, VerifyOptions(precisions=("fp32",), backends=("onnxruntime",)))


def test_the_reference_engine_has_the_threads_of_the_options(
    tiny_model: ModelFolder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[PredictOptions] = []

    def recording(folder: ModelFolder, options: PredictOptions) -> Placed:
        placed.append(options)
        return place(folder, options)

    monkeypatch.setattr(verify_module, "place", recording)
    verify(tiny_model, [str(pictures)], VerifyOptions(precisions=("fp16",), backends=("onnxruntime",), num_threads=1))
    assert {options.backend: options.num_threads for options in placed} == {"torch": 1, "onnxruntime": 1}


def test_verifying_needs_no_torch(tiny_model: ModelFolder, pictures: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "sys.modules['torch'] = None\n"
        "from alexdeploy.core.model_folder import ModelFolder\n"
        "from alexdeploy.evaluation.verify import verify\n"
        f"found = verify(ModelFolder(pathlib.Path({str(tiny_model.path)!r})), [{str(pictures)!r}])\n"
        "print(found.reference, [(report.precision, report.agreement.num_flips) for report in found.reports])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "onnxruntime [('fp16', 0), ('fp32', 0), ('fp16', 0), ('fp16', 0)]\n", done.stderr
