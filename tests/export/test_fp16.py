from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from half_machine import run_in_fp16
from helpers import TINY, change_weights, make_model, smooth_images, write_pictures
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alexdeploy.core.events import Status
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.export.events import Event
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.fp16 import LARGEST, _join_islands, plan_fp16, to_fp16, to_fp32
from alexdeploy.export.quantize.calibrate import calibrate
from alexdeploy.graphs.runner import run_graph
from alexdeploy.images.preprocess import network_input


def _chain(*ops: str, weight: float = 1.0) -> onnx.ModelProto:
    """x -> ops, one after the other; a Mul has the constant `weight`."""
    nodes, previous, constants = [], "x", [numpy_helper.from_array(np.array(weight, np.float32), "w")]
    for index, op in enumerate(ops):
        name = "y" if index == len(ops) - 1 else f"t{index}"
        inputs = [previous, "w"] if op == "Mul" else [previous]
        attributes = {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 2.0} if op == "LRN" else {}
        nodes.append(helper.make_node(op, inputs, [name], name=f"{op.lower()}{index}", **attributes))
        previous = name
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 4, 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _planned(model: onnx.ModelProto, **largest: float) -> dict[str, tuple[str, float]]:
    return {layer.layer: (layer.precision, layer.share) for layer in plan_fp16(model, largest)}


def test_a_layer_stays_fp32_where_its_values_come_within_half_of_the_limit() -> None:
    model = _chain("Relu", "Sigmoid", "Abs")
    plan = _planned(model, x=10.0, t0=0.49 * LARGEST, t1=0.51 * LARGEST, y=1.0)
    assert {name: precision for name, (precision, _) in plan.items()} == {
        "relu0": "fp16",
        "sigmoid1": "fp32",
        "abs2": "fp32",
    }
    assert plan["relu0"][1] == pytest.approx(0.49)


def test_an_lrn_is_fp32_always_and_measured_by_the_square_of_its_input() -> None:
    (layer,) = plan_fp16(_chain("LRN"), {"x": 128.0, "y": 100.0})
    assert (layer.precision, layer.largest) == ("fp32", 128.0)
    assert layer.share == pytest.approx(128 / 65504**0.5)
    assert "squares its input" in layer.reason
    (layer,) = plan_fp16(_chain("LRN"), {"x": 300.0, "y": 100.0})
    assert layer.reason == "its squares overflow FP16"


def test_the_last_layer_can_stay_fp32(tiny_model: ModelFolder) -> None:
    model = onnx.load(tiny_model.onnx_path())
    x = np.random.default_rng(0).normal(0, 50, (2, 3, 227, 227)).astype(np.float32)
    (expected,) = run_graph(model, x)
    for keep in (["fc8"], ["relu7", "fc8"]):
        found = run_in_fp16(to_fp16(model, keep), x)["logits"]
        np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


def test_a_weight_beyond_fp16_keeps_its_layer() -> None:
    (layer,) = plan_fp16(_chain("Mul", weight=1e5), {"x": 1e-3, "y": 100.0})
    assert (layer.precision, layer.largest) == ("fp32", 1e5)
    assert "|x| reaches 100,000 of 65,504: overflows FP16" in layer.reason


def test_what_lies_between_two_fp32_layers_is_not_rounded_on_the_way() -> None:
    model = _chain("Relu", "Mul", "LRN", "Relu", weight=1000.0)
    x = np.random.default_rng(0).uniform(0, 100, (2, 8, 4, 4)).astype(np.float32)
    expected = dict(zip(("t1", "t2", "y"), run_graph(model, x, ["t1", "t2", "y"]), strict=True))
    assert expected["t1"].max() > LARGEST
    found = run_in_fp16(to_fp16(model, ["mul1"]), x)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].astype(np.float32), value, rtol=3e-3, err_msg=name)
    assert np.isinf(run_in_fp16(to_fp16(model), x)["t1"].astype(np.float32)).any()


def test_without_islands_each_layer_but_lrn_is_fp16(tiny_model: ModelFolder) -> None:
    converted = onnx.load(tiny_model.onnx_path("fp16"))
    types = {tensor.name: tensor.data_type for tensor in converted.graph.initializer}
    assert {types[f"{name}.weight"] for name in ("conv1", "conv3", "fc6", "fc8")} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_layer_that_overflows_is_kept_by_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calibrated: bool
) -> None:
    """fc6 reaches a million and fc7 brings it back: in FP32 the same answers, in FP16 none."""
    monkeypatch.chdir(tmp_path)
    folder = make_model(tmp_path / "models" / "wide", "alexnet", TINY)
    change_weights(folder, fc6__weight=lambda w: w * 1e6, fc6__bias=lambda b: b * 1e6, fc7__weight=lambda w: w * 1e-6)
    export_model(folder)
    spec, mean = folder.spec(), folder.mean_image(folder.spec())
    inputs = np.concatenate([network_input(image, spec.preprocessing, 1, mean) for image in smooth_images(4)])
    (expected,) = run_graph(onnx.load(folder.onnx_path()), inputs)
    naive = run_in_fp16(to_fp16(onnx.load(folder.onnx_path())), inputs)["logits"]
    assert not np.isfinite(naive).all()
    if calibrated:
        write_pictures(tmp_path / "pictures", 8)
        calibrate(folder, "pictures")
    steps: list[Event] = []
    _, fp16 = export_model(folder, ExportOptions(fp16=True), steps.append)
    kept = {layer.layer: layer.reason for layer in fp16.half_layers if layer.precision == "fp32"}
    assert set(kept) == {"norm1", "norm2", "fc6", "relu6", "fc7"}
    assert "overflows FP16" in kept["fc6"]
    assert fp16.parity is not None
    assert fp16.parity.same_answers == fp16.parity.num_images
    found = run_in_fp16(onnx.load(folder.onnx_path("fp16")), inputs)["logits"]
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())
    assert (
        any(
            "ranges of calibration/wide.ranges.json: 8 images" in step.message
            for step in steps
            if isinstance(step, Status)
        )
        == calibrated
    )


def _graph(
    nodes: list[onnx.NodeProto], kind: int, outputs: tuple[str, ...], *constants: onnx.TensorProto
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 4])],
        [helper.make_tensor_value_info(name, kind, [None, None]) for name in outputs],
        list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_network_in_fp16_computes_in_fp32_afterwards_also_where_it_casts() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["wide", "thousand"], ["large"]),
        helper.make_node("Cast", ["large"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["narrow", "third"], ["part"]),
        helper.make_node("Reshape", ["part", "shape"], ["y"]),
    ]
    third = np.array(1 / 3, np.float16)
    constants = {"thousand": np.array(1000, np.float32), "third": third, "shape": np.array([-1, 2], np.int64)}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = _graph(nodes, TensorProto.FLOAT16, ("y",), *tensors)
    x = np.array([[1.0, 2.0, 3.0, 1000.0]], np.float32)
    wide = to_fp32(model)
    onnx.checker.check_model(wide, full_check=True)
    # 1,000,000 is beyond FP16.
    expected = (x.astype(np.float64) * 1000 * np.float64(third)).reshape(-1, 2)
    np.testing.assert_allclose(run_graph(wide, x)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("is_output", [False, True])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_a_tensor_that_others_read_in_fp16_stays_and_the_fp32_nodes_do_not_go_through_it(is_output: bool) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "thousand"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["narrow"], ["again"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["narrow"], ["half"]),
        helper.make_node("Cast", ["half"], ["z"], to=TensorProto.FLOAT),
    ]
    if not is_output:
        nodes.append(helper.make_node("Relu", ["again"], ["y"]))
    outputs = ("again" if is_output else "y", "z")
    model = _graph(nodes, TensorProto.FLOAT, outputs, numpy_helper.from_array(np.array(1000, np.float32), "thousand"))
    _join_islands(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert [each.name for each in model.graph.output] == list(outputs)
    # ONNX's own evaluator: ONNX Runtime's CPU provider computes in FP32 between two casts.
    wide, narrow = ReferenceEvaluator(model).run(None, {"x": np.array([[1.0, 2.0, 3.0, 100.0]], np.float32)})
    # 100,000 is beyond FP16, which the other reader gets.
    assert wide.tolist() == [[1000.0, 2000.0, 3000.0, 100_000.0]]
    assert narrow.tolist() == [[1000.0, 2000.0, 3000.0, np.inf]]
