"""Graphs that take NHWC, uint8 or float16, as exports of Keras and TensorFlow do, and those that cannot be taken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from their_graphs import CLASSES, SIZE, STEPS, Import, classifier, head, node_types, refused, tail, weights

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Preprocessing
from alexdeploy.export.export import ExportOptions, export_model

PIXELS = Preprocessing(channels="bgr", crop=SIZE)
"""Pixels of 0 to 255 as they are."""

NHWC = (SIZE, SIZE, 3)

HALF_TOLERANCE = 5e-3
"""Three layers round logits of up to 8 to FP16's 11 bits, 2**-9 each; a probability changes by a quarter of that."""


def constant(name: str, *values: float, kind: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(values if len(values) != 1 else values[0], kind), name)


def to_planes(source: str, result: str) -> NodeProto:
    return helper.make_node("Transpose", [source], [result], perm=[0, 3, 1, 2])


def normalized(source: str) -> tuple[list[NodeProto], list[TensorProto]]:
    """From pixels to what the weights are for, as a Rescaling layer does it inside the graph."""
    nodes = [
        helper.make_node("Mul", [source, "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["x"]),
    ]
    return nodes, [constant("scale", 1 / 127.5), constant("one", 1.0)]


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_channels_last_are_taken_and_the_transpose_at_the_start_is_left_out(imported: Import, batch: int | str) -> None:
    model = classifier([to_planes("input_1", "x"), *head(), *tail()], image="input_1", shape=NHWC, batch=batch)
    assert "Transpose" not in node_types(imported(model))


def test_channels_last_that_are_computed_with_before_they_are_transposed_get_a_transpose(imported: Import) -> None:
    nodes = [helper.make_node("Mul", ["input_1", "by_channel"], ["weighted"]), to_planes("weighted", "x")]
    model = classifier(
        [*nodes, *head(), *tail()], image="input_1", shape=NHWC, constants=[constant("by_channel", 0.5, 1.0, 1.5)]
    )
    assert node_types(imported(model)).count("Transpose") == 2


def test_an_image_of_three_pixels_is_taken_as_channels_first(imported: Import) -> None:
    resize = helper.make_node("Resize", ["tiny", "", "factors"], ["x"], mode="nearest")
    factors = constant("factors", 1, 1, 12, 12)
    steps = dataclasses.replace(STEPS, crop=3)
    folder = imported(
        classifier([resize, *head(), *tail()], image="tiny", shape=(3, 3, 3), constants=[factors]), preprocessing=steps
    )
    assert "Transpose" not in node_types(folder)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_uint8_that_is_cast_at_once_is_taken_as_float(imported: Import, channels_last: bool, batch: int | str) -> None:
    first = [to_planes("pixels", "planes")] if channels_last else [helper.make_node("Identity", ["pixels"], ["planes"])]
    first.append(helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT))
    scaled, constants = normalized("float")
    model = classifier(
        [*first, *scaled, *head(), *tail()],
        image="pixels",
        shape=NHWC if channels_last else (3, SIZE, SIZE),
        batch=batch,
        constants=constants,
        image_type=TensorProto.UINT8,
    )
    folder = imported(model, preprocessing=PIXELS)
    casts = [node for node in node_types(folder) if node == "Cast"]
    assert casts == ["Cast"], "their own"


def test_uint8_that_is_computed_with_gets_a_cast(imported: Import) -> None:
    dequantize = helper.make_node("DequantizeLinear", ["pixels", "scale", "zero"], ["x"])
    constants = [constant("scale", 1 / 127.5), constant("zero", 128, kind=np.uint8)]
    model = classifier(
        [dequantize, *head(), *tail()], image="pixels", constants=constants, image_type=TensorProto.UINT8
    )
    assert node_types(imported(model, preprocessing=PIXELS))[:2] == ["Cast", "DequantizeLinear"]


@pytest.mark.parametrize(
    "steps",
    [
        STEPS,
        Preprocessing(scale=1 / 255, crop=SIZE),
        Preprocessing(mean=(104.0, 117.0, 123.0), crop=SIZE),
        Preprocessing(std=(2.0, 2.0, 2.0), crop=SIZE),
    ],
)
def test_uint8_with_a_preprocessing_that_makes_fractions_is_refused(tmp_path: Path, steps: Preprocessing) -> None:
    cast = helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT)
    model = classifier([cast, *head(), *tail()], image="pixels", image_type=TensorProto.UINT8)
    message = refused(model, tmp_path, UsageError, preprocessing=steps)
    assert "uint8" in message
    assert "Give --scale 1" in message


def half(channels_last: bool = False, *, softmax: bool = False) -> ModelProto:
    """The whole network in float16, from its input to its output."""
    nodes = [*head(), *tail("logits" if softmax else "scores")]
    if channels_last:
        nodes.insert(0, to_planes("input_1", "x"))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    model = classifier(
        nodes,
        image="input_1" if channels_last else "x",
        shape=NHWC if channels_last else (3, SIZE, SIZE),
        image_type=TensorProto.FLOAT16,
    )
    halves = [numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name) for t in weights()]
    del model.graph.initializer[:], model.graph.output[:]
    model.graph.initializer.extend(halves)
    model.graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT16, ["N", CLASSES]))
    return model


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_network_in_float16_becomes_one_in_float32(imported: Import, channels_last: bool) -> None:
    told = ["theirs.onnx computes in float16; the imported network computes in float32"]
    folder = imported(half(channels_last), tolerance=HALF_TOLERANCE, warnings=told)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(folder.onnx_path()).graph.initializer}
    for tensor in weights():
        expected = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found[tensor.name], expected, strict=True)


def test_a_softmax_in_float16_is_left_to_the_deployment_graph(imported: Import) -> None:
    folder = imported(half(softmax=True), "scores", gives_probabilities=True, tolerance=HALF_TOLERANCE)
    assert not {"Softmax", "Log"} & set(node_types(folder))


def test_a_network_in_float16_between_casts_keeps_its_arithmetic(imported: Import) -> None:
    """As ONNX Runtime's converter makes them, with the input and output in float32."""
    model = half()
    cast_in = helper.make_node("Cast", ["data"], ["x"], to=TensorProto.FLOAT16)
    cast_out = helper.make_node("Cast", ["scores"], ["out"], to=TensorProto.FLOAT)
    nodes = [cast_in, *model.graph.node, cast_out]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, SIZE, SIZE]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", CLASSES]))
    folder = imported(model, "out", tolerance=HALF_TOLERANCE)
    kinds = {tensor.data_type for tensor in onnx.load(folder.onnx_path()).graph.initializer}
    assert kinds == {TensorProto.FLOAT16}


def test_what_was_taken_from_channels_last_and_uint8_is_exported_to_fp16(imported: Import) -> None:
    cast = helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT)
    scaled, constants = normalized("float")
    scaled[-1].output[0] = "last"
    model = classifier(
        [cast, *scaled, to_planes("last", "x"), *head(), *tail()],
        image="pixels",
        shape=NHWC,
        constants=constants,
        image_type=TensorProto.UINT8,
    )
    folder: ModelFolder = imported(model, preprocessing=PIXELS)
    _, fp16 = export_model(folder, ExportOptions(fp16=True))
    assert fp16.parity is not None
    assert fp16.parity.worst_error < 2e-2


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.INT8, TensorProto.INT32])
def test_an_input_of_another_type_is_refused(tmp_path: Path, kind: int) -> None:
    cast = helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT)
    message = refused(classifier([cast, *head(), *tail()], image="pixels", image_type=kind), tmp_path, ModelError)
    assert "expected float32 [N, 3, H, H]" in message
    assert "Export it with a float32 input." in message


@pytest.mark.parametrize("size", [-3, 0, 2, 4, 6])
def test_an_lrn_with_a_window_that_is_not_odd_is_refused_by_name(tmp_path: Path, size: int) -> None:
    conv, relu, pool = head()
    pool.input[0] = "normed"
    norm = helper.make_node("LRN", ["relu"], ["normed"], name="norm1", size=size)
    message = refused(classifier([conv, relu, norm, pool, *tail()]), tmp_path, ModelError)
    assert f"theirs.onnx: LRN norm1 has size {size}; it must be odd and at least 1 (TensorRT" in message


def test_what_onnx_runtime_refuses_is_said_without_the_place_in_its_source(tmp_path: Path) -> None:
    conv, relu, pool = head()
    pool.input[0] = "padded"
    wide = helper.make_node("MaxPool", ["relu"], ["padded"], kernel_shape=[3, 3], pads=[3, 3, 3, 3])
    message = refused(classifier([conv, relu, wide, pool, *tail()]), tmp_path, ModelError)
    assert "cannot be run by ONNX Runtime: Exception during initialization: pads" in message
    assert "Pad should be smaller than kernel." in message
    assert "/" not in message.partition("cannot be run")[2]


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    model = classifier()
    sparse = helper.make_sparse_tensor(constant("values", 1.0, 2.0), constant("places", 0, 3, kind=np.int64), [5])
    model.graph.sparse_initializer.append(sparse)
    assert "Export it with dense weights." in refused(model, tmp_path, ModelError)


def test_a_graph_without_an_image_is_refused_with_its_inputs(tmp_path: Path) -> None:
    model = classifier([helper.make_node("Flatten", ["row"], ["flat"]), *tail()[1:]], image="row", shape=(12,))
    assert "the inputs of " in (message := refused(model, tmp_path, ModelError))
    assert "are row float32 [N, 12]; expected one image input" in message


def test_a_graph_whose_answers_do_not_depend_on_the_image_is_refused(tmp_path: Path) -> None:
    fixed = helper.make_node("Identity", ["always"], ["scores"])
    model = classifier([*head(), fixed], constants=[constant("always", *range(CLASSES))], outputs={"scores": [CLASSES]})
    assert "no output depends on the image x" in refused(model, tmp_path, ModelError)
