from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import smooth_images
from onnx import TensorProto, helper, numpy_helper
from patience import slow_but_for

from alexdeploy.core.errors import UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.split import Placement, StagePlan, split_graph


def _deployed(folder: ModelFolder, precision: str = "fp32") -> onnx.ModelProto:
    spec = folder.spec()
    return deployment_graph(onnx.load(folder.onnx_path(precision)), spec, 5, folder.mean_image(spec))


def _run(model: onnx.ModelProto, outputs: tuple[str, ...], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))


def _run_in_turn(plan: StagePlan, images: np.ndarray) -> dict[str, np.ndarray]:
    """Each device keeps what it made and is given, at each step, only what the plan says is exchanged."""
    kept = [{"images": images}, {"images": images}]
    for number, step in enumerate(plan.steps):
        for name in plan.exchanges[number - 1] if number else ():
            value = next(tensors[name] for tensors in kept if name in tensors)
            for tensors in kept:
                tensors[name] = value
        for stage in step:
            found = _run(stage.model, stage.outputs, {name: kept[stage.device][name] for name in stage.inputs})
            kept[stage.device].update(found)
    return {**kept[1], **kept[0]}


def _weights(plan: StagePlan, device: int) -> dict[str, np.ndarray]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for step in plan.steps
        for stage in step
        if stage.device == device
        for tensor in stage.model.graph.initializer
    }


def test_towers_exchange_before_conv3_and_before_each_fully_connected_layer(tiny_model: ModelFolder) -> None:
    plan = split_graph(_deployed(tiny_model), "towers")
    assert plan.exchanges == (
        ("pool2/tower0", "pool2/tower1"),
        ("pool5/tower0", "pool5/tower1"),
        ("relu6/tower0", "relu6/tower1"),
        ("relu7/tower1",),
    )
    assert [tuple(stage.device for stage in step) for step in plan.steps] == [(0, 1), (0, 1), (0, 1), (0, 1), (0,)]
    assert all(stage.inputs == ("images",) for stage in plan.steps[0])


def test_each_device_has_half_of_the_weights(tiny_model: ModelFolder) -> None:
    model = _deployed(tiny_model)
    plan = split_graph(model, "towers")
    whole = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    halves = [_weights(plan, device) for device in (0, 1)]
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        for kind in ("weight", "bias"):
            name = f"{layer}.{kind}"
            parts = [halves[device][f"{name}/tower{device}"] for device in (0, 1)]
            assert [part.nbytes for part in parts] == [whole[name].nbytes // 2] * 2
            np.testing.assert_array_equal(np.concatenate(parts), whole[name])
    num_bytes = [sum(part.nbytes for part in half.values() if part.ndim == 4) for half in halves]
    # The mean image, which both need, is 4-D as well.
    convolutions = sum(whole[f"conv{index}.weight"].nbytes for index in range(1, 6)) // 2
    assert num_bytes == [convolutions + whole["deploy/mean"].nbytes] * 2
    shared = {name for half in halves for name in half if name in whole and name.endswith(("weight", "bias"))}
    assert shared == {"fc8.weight", "fc8.bias"}
    assert "fc8.weight" not in halves[1]


def test_a_pipeline_has_the_convolutions_on_one_device_and_the_other_layers_on_the_other(
    tiny_model: ModelFolder,
) -> None:
    plan = split_graph(_deployed(tiny_model), "pipeline")
    assert plan.exchanges == (("flatten",),)
    layers = [{name.split(".")[0] for name in _weights(plan, device) if name.endswith("weight")} for device in (0, 1)]
    assert layers == [{"conv1", "conv2", "conv3", "conv4", "conv5"}, {"fc6", "fc7", "fc8"}]


VARIANTS = {
    ("architecture.order=pool-lrn",): "norm2 pool5 relu6 relu7",
    ("architecture.activation=silu",): "pool2 pool5 relu6 relu7",
    ("architecture.activation=gelu",): "pool2 pool5 relu6 relu7",
    ("architecture.activation=softplus",): "pool2 pool5 relu6 relu7",
    ("architecture.activation=elu",): "pool2 pool5 relu6 relu7",
    ("architecture.pooling.kind=average",): "pool2 pool5 relu6 relu7",
    ("architecture.remove=['conv3']",): "pool5 relu6 relu7",
    ("architecture.remove=['conv4', 'conv5']",): "pool2 pool5 relu6 relu7",
    ("architecture.remove=['conv2', 'conv4', 'conv5']",): "pool2 pool5 relu6 relu7",
    ("architecture.hidden=[504]",): "pool2 pool5 relu6",
    ("architecture.hidden=[]",): "pool2 pool5",
}
"""Overrides: the layers before which towers exchange."""

# Others are exported by PyTorch for this test alone, or differ in an activation.
_QUICK = [each for each in VARIANTS if each[0].endswith(("pool-lrn", "silu", "average", "['conv3']", "[504]"))]


@pytest.mark.parametrize(
    "overrides", slow_but_for(_QUICK, VARIANTS), ids=lambda overrides: overrides[0].split(".", 1)[1]
)
def test_every_variant_with_towers_gives_the_answers_of_the_whole(
    exported: Callable[..., ModelFolder], overrides: tuple[str, ...]
) -> None:
    model, images = _deployed(exported("alexnet", *overrides)), smooth_images(3)
    expected = _run(model, ("probabilities", "view_classes"), {"images": images})
    towers, pipeline = split_graph(model, "towers"), split_graph(model, "pipeline")
    assert [names[-1] for names in towers.exchanges] == [f"{name}/tower1" for name in VARIANTS[overrides].split()]
    for plan in (towers, pipeline):
        found = _run_in_turn(plan, images)
        np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-6)
        np.testing.assert_array_equal(found["view_classes"], expected["view_classes"])


@pytest.mark.parametrize("placement", ["towers", "pipeline"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_each_stage_is_a_valid_graph_and_the_original_stays(
    tiny_model: ModelFolder, placement: Placement, precision: str
) -> None:
    model = _deployed(tiny_model, precision)
    before = model.SerializeToString(deterministic=True)
    plan = split_graph(model, placement)
    assert model.SerializeToString(deterministic=True) == before
    for stage in (stage for step in plan.steps for stage in step):
        onnx.checker.check_model(stage.model, full_check=True)
        assert tuple(value.name for value in stage.model.graph.input) == stage.inputs
        assert tuple(value.name for value in stage.model.graph.output) == stage.outputs


def test_fp16_halves_are_exchanged_in_fp16(tiny_model: ModelFolder) -> None:
    plan = split_graph(_deployed(tiny_model, "fp16"), "towers")
    kinds = {value.type.tensor_type.elem_type for stage in plan.steps[1] for value in stage.model.graph.input}
    assert kinds == {TensorProto.FLOAT16}


def test_a_network_of_one_tower_is_refused_with_the_cure(exported: Callable[..., ModelFolder]) -> None:
    with pytest.raises(UsageError, match="two towers") as caught:
        split_graph(_deployed(exported("one-tower")), "towers")
    assert "--placement pipeline" in caught.value.text


def test_an_lrn_over_both_towers_is_refused_with_the_reason(exported: Callable[..., ModelFolder]) -> None:
    with pytest.raises(UsageError, match=r"norm1 normalizes across both towers") as caught:
        split_graph(_deployed(exported("caffe-alexnet")), "towers")
    assert "--placement pipeline" in caught.value.text


def test_towers_without_lrn_can_be_split(exported: Callable[..., ModelFolder]) -> None:
    model, images = _deployed(exported("alexnet", "architecture.lrn=none")), smooth_images(2)
    found = _run_in_turn(split_graph(model, "towers"), images)
    expected = _run(model, ("probabilities",), {"images": images})
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-6)


def test_int8_is_refused_by_towers(int8_model: ModelFolder) -> None:
    with pytest.raises(UsageError, match="INT8 graphs are not split") as caught:
        split_graph(_deployed(int8_model, "int8"), "towers")
    assert "--precision fp32" in caught.value.text


def test_int8_in_a_pipeline_gives_the_answers_of_the_whole(int8_model: ModelFolder) -> None:
    model, images = _deployed(int8_model, "int8"), smooth_images(4)
    plan = split_graph(model, "pipeline")
    expected, found = _run(model, ("probabilities", "view_classes"), {"images": images}), _run_in_turn(plan, images)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-5)
    (crossing,) = plan.steps[1][0].model.graph.input
    assert crossing.type.tensor_type.elem_type == TensorProto.INT8


def _grouped(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """A convolution of 4 maps, one in two groups, and whatever comes after `c`."""
    first = helper.make_node("Conv", ["images", "w1"], ["a"], name="a")
    second = helper.make_node("Conv", ["a", "w2"], ["c"], name="c", group=2)
    known = {"w1": np.ones((4, 3, 3, 3)), "w2": np.ones((4, 2, 1, 1)), **weights}
    graph = helper.make_graph(
        [first, second, *nodes],
        "grouped",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(value), name) for name, value in known.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_needs_both_towers_without_being_a_layer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"s \(Softmax\) cannot be computed on one tower's maps alone"):
        split_graph(
            _grouped(
                helper.make_node("Softmax", ["c"], ["s"], name="s", axis=1),
                helper.make_node("Flatten", ["s"], ["f"]),
                helper.make_node("MatMul", ["f", "w3"], ["y"]),
                w3=np.ones((4, 2)),
            ),
            "towers",
        )


def test_a_convolution_of_other_groups_than_two_is_refused() -> None:
    with pytest.raises(UsageError, match="d cannot be halved: it has 4 groups"):
        split_graph(
            _grouped(
                helper.make_node("Conv", ["c", "w3"], ["d"], name="d", group=4),
                helper.make_node("Flatten", ["d"], ["f"]),
                helper.make_node("MatMul", ["f", "w4"], ["y"]),
                w3=np.ones((4, 1, 1, 1)),
                w4=np.ones((4, 2)),
            ),
            "towers",
        )


def test_a_hidden_layer_without_transposed_weights_is_halved_by_its_outputs() -> None:
    rng = np.random.default_rng(0)
    model = _grouped(
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w4"], ["y"]),
        w1=rng.normal(size=(4, 3, 3, 3)),
        w2=rng.normal(size=(4, 2, 1, 1)),
        w3=rng.normal(size=(4, 6)),
        w4=rng.normal(size=(6, 2)),
    )
    plan = split_graph(model, "towers")
    assert _weights(plan, 1)["w3/tower1"].shape == (4, 3)
    images = rng.normal(size=(2, 3, 3, 3)).astype(np.float32)
    expected = _run(model, ("y",), {"images": images})["y"]
    np.testing.assert_allclose(_run_in_turn(plan, images)["y"], expected, atol=1e-5)


def test_a_network_without_fully_connected_layers_has_no_pipeline() -> None:
    with pytest.raises(UsageError, match="no fully connected layers after its convolutions"):
        split_graph(_grouped(helper.make_node("Relu", ["c"], ["y"])), "pipeline")


@pytest.mark.parametrize("placement", ["towers", "pipeline"])
def test_weights_that_nodes_hold_belong_to_no_device(tiny_model: ModelFolder, placement: Placement) -> None:
    """Exporters write constants as weights or as Constant nodes, in one of five forms."""
    images = smooth_images(2)
    model = _deployed(tiny_model)
    expected = _run(model, ("probabilities",), {"images": images})
    nodes = []
    for tensor in list(model.graph.initializer):
        value = numpy_helper.to_array(tensor)
        forms = {(np.float32, 0): "value_float", (np.float32, 1): "value_floats"}
        forms |= {(np.int64, 0): "value_int", (np.int64, 1): "value_ints"}
        name = forms.get((value.dtype.type, value.ndim), "value")
        held = tensor if name == "value" else value.tolist()
        nodes.append(helper.make_node("Constant", [], [tensor.name], **{name: held}))
        model.graph.initializer.remove(tensor)
    assert {node.attribute[0].name for node in nodes} >= {"value", "value_floats", "value_ints"}
    model.graph.node.extend(nodes)
    # Constants come first.
    ordered = [*nodes, *[node for node in model.graph.node if node.op_type != "Constant" or node not in nodes]]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    found = _run_in_turn(split_graph(model, placement), images)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=1e-6)
