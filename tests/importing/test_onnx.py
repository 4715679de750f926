"""Other people's classifiers, made with onnx.helper: whatever their form, the engines give the original's answers."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from their_graphs import (
    CLASSES,
    FEATURES,
    SIZE,
    STEPS,
    TOLERANCE,
    Import,
    classifier,
    head,
    ints,
    node_types,
    original_scores,
    probabilities,
    refused,
    save,
    smooth_images,
    softmax,
    tail,
    weights,
    with_softmax,
)

import alexdeploy
from alexdeploy.core.errors import ModelError, ParityError, UsageError
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.spec import Preprocessing
from alexdeploy.export import export as export_module
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.graphs.files import read_graph
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.onnx import OnnxOptions, import_onnx


def test_a_graph_with_a_dynamic_batch_gives_its_own_answers(imported: Import) -> None:
    imported(classifier())


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_with_a_constant_reshape_becomes_dynamic(imported: Import, batch: int) -> None:
    reshape = helper.make_node("Reshape", ["features", "shape"], ["flat"])
    constants = [ints("shape", batch, FEATURES)]
    imported(classifier([*head(), reshape, tail()[1]], batch=batch, constants=constants))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("attribute", ["value", "value_ints"])
def test_a_fixed_batch_with_a_reshape_to_a_constant_node_becomes_dynamic(
    imported: Import, batch: int, attribute: str
) -> None:
    values = ints("", batch, FEATURES) if attribute == "value" else [batch, FEATURES]
    shape = helper.make_node("Constant", [], ["shape"], **{attribute: values})
    reshape = helper.make_node("Reshape", ["features", "shape"], ["flat"])
    imported(classifier([shape, *head(), reshape, tail()[1]], batch=batch))


def test_a_batch_folded_into_the_towers_of_an_lrn_becomes_dynamic(imported: Import) -> None:
    conv, relu, pool = head()
    pool.input[0] = "whole"
    nodes = [
        conv,
        relu,
        helper.make_node("Reshape", ["relu", "by_tower"], ["towers"]),
        helper.make_node("LRN", ["towers"], ["normed"], size=3, alpha=0.1),
        helper.make_node("Reshape", ["normed", "together"], ["whole"]),
        pool,
        *tail(),
    ]
    side = (SIZE - 5) // 3 + 1
    constants = [ints("by_tower", 2, FEATURES // 2, side, side), ints("together", 1, FEATURES, side, side)]
    imported(classifier(nodes, batch=1, constants=constants))


def test_a_reshape_of_a_weight_that_begins_with_the_batch_stays(imported: Import) -> None:
    conv, relu, pool = head()
    conv.input[:] = ["x", "conv.w"]
    conv.output[0] = "unbiased"
    bias = [
        helper.make_node("Reshape", ["conv.b", "bias_shape"], ["bias"]),
        helper.make_node("Add", ["unbiased", "bias"], ["conv"]),
    ]
    nodes = [conv, *bias, relu, pool, *tail()]
    imported(classifier(nodes, batch=1, constants=[ints("bias_shape", 1, FEATURES, 1, 1)]))


def test_a_dynamic_batch_over_a_reshape_that_is_fixed_to_one_is_mended(imported: Import) -> None:
    reshape = helper.make_node("Reshape", ["features", "shape"], ["flat"])
    imported(classifier([*head(), reshape, tail()[1]], constants=[ints("shape", 1, FEATURES)]))


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    nodes = [*head(), helper.make_node("Expand", ["row", "shape"], ["rows"]), *tail("fc")]
    nodes.append(helper.make_node("Concat", ["fc", "rows"], ["scores"], axis=1))
    row = numpy_helper.from_array(np.ones((1, 2), np.float32), "row")
    model = classifier(nodes, batch=4, constants=[row, ints("shape", 4, 2)], outputs={"scores": [4, CLASSES + 2]})
    message = refused(model, tmp_path, ModelError)
    assert "built for a batch of 4, cannot be rewritten to run one of 1" in message
    assert "Export it with a dynamic batch." in message


def test_answers_that_depend_on_the_rest_of_the_batch_are_refused(tmp_path: Path) -> None:
    nodes = [*head(), *tail("fc"), helper.make_node("ReduceMean", ["fc"], ["mean"], axes=[0], keepdims=1)]
    nodes.append(helper.make_node("Sub", ["fc", "mean"], ["scores"]))
    assert "differs from the original" in refused(classifier(nodes), tmp_path, ParityError)


def test_weights_may_be_listed_as_inputs_before_the_image(tmp_path: Path) -> None:
    path = save(classifier(listed_inputs=True, batch=1, opset=9), tmp_path / "old.onnx")
    folder = ModelFolder(tmp_path / "models" / "old")
    import_onnx(path, folder, OnnxOptions(preprocessing=STEPS))
    images = smooth_images(2)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = [session.run(None, {"x": network_input(image, STEPS, 1)})[0] for image in images]
    expected = softmax(np.concatenate(scores))
    np.testing.assert_allclose(probabilities(folder, images, "onnxruntime"), expected, rtol=0, atol=TOLERANCE)
    assert [value.name for value in onnx.load(folder.onnx_path()).graph.input] == ["images"]


@pytest.mark.parametrize("opset", [9, 12, 13, 17, 21])
def test_every_opset_gives_its_own_answers(imported: Import, opset: int) -> None:
    folder = imported(with_softmax(last="p", opset=opset), "p", gives_probabilities=True)
    assert onnx.load(folder.onnx_path()).opset_import[0].version == (opset if opset >= 13 else 17)


@pytest.mark.parametrize("opset", [9, 12])
def test_a_softmax_over_four_dimensions_at_an_old_opset_keeps_its_meaning(imported: Import, opset: int) -> None:
    nodes = [*head(), *tail("fc"), helper.make_node("Reshape", ["fc", "shape"], ["square"])]
    nodes.append(helper.make_node("Softmax", ["square"], ["p"], axis=1))
    model = classifier(
        nodes, constants=[ints("shape", -1, CLASSES, 1, 1)], outputs={"p": ["N", CLASSES, 1, 1]}, opset=opset
    )
    imported(model, "p", gives_probabilities=True)


def test_a_softmax_at_the_end_is_left_to_the_deployment_graph(imported: Import) -> None:
    folder = imported(with_softmax(last="p"), "p", gives_probabilities=True)
    assert "Softmax" not in node_types(folder)


AFTER_SOFTMAX: dict[str, tuple[list[NodeProto], list[TensorProto]]] = {
    "Identity": ([helper.make_node("Identity", ["p"], ["out"])], []),
    "Dropout": ([helper.make_node("Dropout", ["p"], ["out"])], []),
    "Flatten": ([helper.make_node("Flatten", ["p"], ["out"])], []),
    "Reshape": ([helper.make_node("Reshape", ["p", "shape"], ["out"])], [ints("shape", -1, CLASSES)]),
    "two of them": (
        [
            helper.make_node("Unsqueeze", ["p", "axes"], ["wide"]),
            helper.make_node("Flatten", ["wide"], ["flattened"]),
            helper.make_node("Identity", ["flattened"], ["out"]),
        ],
        [ints("axes", 2)],
    ),
}


@pytest.mark.parametrize("case", AFTER_SOFTMAX)
def test_a_softmax_with_something_harmless_after_it_is_not_applied_twice(imported: Import, case: str) -> None:
    after, constants = AFTER_SOFTMAX[case]
    folder = imported(with_softmax(*after, last="out", constants=constants), "out", gives_probabilities=True)
    assert not {"Softmax", "Log"} & set(node_types(folder))


def test_probabilities_that_no_softmax_ends_in_stay_what_they_are(imported: Import) -> None:
    even = numpy_helper.from_array(np.full(CLASSES, 1 / CLASSES, np.float32), "even")
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    smoothed = [
        helper.make_node("Add", ["p", "even"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["out"]),
    ]
    folder = imported(with_softmax(*smoothed, last="out", constants=[even, half]), "out", gives_probabilities=True)
    assert {"Softmax", "Log"} <= set(node_types(folder))


def three_of_five() -> ModelProto:
    """The softmax over the first three of five classes; the probability of the others is zero."""
    mask = numpy_helper.from_array(np.array([1, 1, 1, 0, 0], np.float32), "mask")
    only_three = [
        helper.make_node("Mul", ["p", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sum"], keepdims=1),
        helper.make_node("Div", ["masked", "sum"], ["out"]),
    ]
    return with_softmax(*only_three, last="out", constants=[mask, ints("axis", 1)])


def test_a_probability_of_zero_does_not_become_nan(imported: Import) -> None:
    imported(three_of_five(), "out", gives_probabilities=True)


def test_a_softmax_in_the_middle_stays(imported: Import) -> None:
    nodes = [*head(), helper.make_node("Softmax", ["features"], ["attention"], axis=1)]
    nodes += [helper.make_node("Mul", ["features", "attention"], ["weighted"])]
    flatten, gemm = tail()
    flatten.input[0] = "weighted"
    folder = imported(classifier([*nodes, flatten, gemm]))
    assert node_types(folder).count("Softmax") == 1


def test_a_log_softmax_is_taken_as_logits(imported: Import) -> None:
    nodes = [*head(), *tail("fc"), helper.make_node("LogSoftmax", ["fc"], ["scores"], axis=1)]
    imported(classifier(nodes))


def test_a_sigmoid_over_labels_is_refused(tmp_path: Path) -> None:
    nodes = [*head(), *tail("fc"), helper.make_node("Sigmoid", ["fc"], ["scores"])]
    assert "ends in a Sigmoid: a score for each label by itself" in refused(classifier(nodes), tmp_path, ModelError)


def two_outputs() -> ModelProto:
    other = helper.make_node("Elu", ["scores"], ["rectified"])
    outputs = {"features": ["N", FEATURES, 3, 3], "scores": ["N", CLASSES], "rectified": ["N", CLASSES]}
    conv, relu, pool = head()
    pool.output[0] = "pooled"
    grid = helper.make_node("AveragePool", ["relu"], ["features"], kernel_shape=[3, 3], strides=[3, 3])
    flatten, gemm = tail()
    flatten.input[0] = "pooled"
    return classifier([conv, relu, grid, pool, flatten, gemm, other], outputs=outputs)


def test_of_several_outputs_the_first_that_holds_class_scores_is_taken(imported: Import) -> None:
    folder = imported(two_outputs(), "scores")
    assert not {"AveragePool", "Elu"} & set(node_types(folder))


def test_the_output_that_is_asked_for_is_taken(imported: Import) -> None:
    imported(two_outputs(), "rectified", output_name="rectified")


def test_an_output_that_holds_no_class_scores_is_refused_when_asked_for(tmp_path: Path) -> None:
    message = refused(two_outputs(), tmp_path, ModelError, output_name="features")
    assert "features [1, 6, 3, 3] for a batch of 1; expected class scores" in message


def test_an_unknown_output_is_refused_with_those_there_are(tmp_path: Path) -> None:
    message = refused(two_outputs(), tmp_path, ModelError, output_name="prob")
    assert "has no output 'prob'\nIts outputs: features, scores, rectified" in message


def test_a_graph_without_class_scores_is_refused(tmp_path: Path) -> None:
    model = classifier(head()[:2], outputs={"relu": ["N", FEATURES, 10, 10]})
    assert "relu [1, 6, 10, 10] for a batch of 1; expected class scores" in refused(model, tmp_path, ModelError)


def test_one_score_alone_is_no_classifier(tmp_path: Path) -> None:
    nodes = [*head(), *tail("fc"), helper.make_node("ReduceMax", ["fc"], ["scores"], axes=[1], keepdims=1)]
    assert "scores [1, 1]" in refused(classifier(nodes, outputs={"scores": ["N", 1]}), tmp_path, ModelError)


def test_an_output_whose_sizes_nobody_declared_is_found(imported: Import) -> None:
    imported(classifier(outputs={"scores": ["some", "sizes"]}))


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    nan = numpy_helper.from_array(np.array(np.nan, np.float32), "nan")
    nodes = [*head(), *tail("fc"), helper.make_node("Mul", ["fc", "nan"], ["scores"])]
    assert "contains NaN or infinity" in refused(classifier(nodes, constants=[nan]), tmp_path, ModelError)


def test_scores_of_one_pixel_are_flattened(imported: Import) -> None:
    kernel = numpy_helper.from_array(
        np.random.default_rng(1).normal(0, 0.5, (CLASSES, FEATURES, 1, 1)).astype(np.float32), "fc.conv"
    )
    nodes = [*head(), helper.make_node("Conv", ["features", "fc.conv"], ["scores"])]
    imported(classifier(nodes, constants=[kernel], outputs={"scores": ["N", CLASSES, 1, 1]}))


@pytest.mark.parametrize(
    "name", ["images", "logits", "probabilities", "view_classes", "deploy/views", "deploy/softmax"]
)
def test_a_tensor_inside_may_be_called_as_one_of_ours(imported: Import, name: str) -> None:
    conv, relu, pool = head()
    relu.output[0] = pool.input[0] = name
    relu.name = name
    imported(classifier([conv, relu, pool, *tail()]))


@pytest.mark.parametrize("name", ["images", "logits", "probabilities", "conv 1:0/Ω", "0"])
def test_the_input_may_have_any_name(imported: Import, name: str) -> None:
    imported(classifier(image=name))


def test_input_and_output_may_have_each_others_names(imported: Import) -> None:
    model = classifier([*head(image="logits"), *tail("images")], image="logits", outputs={"images": ["N", CLASSES]})
    imported(model, "images")


def test_a_weight_may_be_called_as_one_of_ours(imported: Import) -> None:
    images = numpy_helper.from_array(np.array(2, np.float32), "images")
    nodes = [*head(), *tail("fc"), helper.make_node("Mul", ["fc", "images"], ["scores"])]
    imported(classifier(nodes, constants=[images]))


def test_a_tensor_with_the_name_that_ours_would_get_is_kept_apart(imported: Import) -> None:
    conv, relu, pool = head()
    conv.output[0] = relu.input[0] = "original/logits"
    relu.output[0] = pool.input[0] = "logits"
    imported(classifier([conv, relu, pool, *tail()]))


def test_local_functions_are_inlined(imported: Import) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("theirs", 1)]
    function = helper.make_function(
        "theirs", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets[:1]
    )
    model = classifier([*head(), *tail("fc"), helper.make_node("Twice", ["fc"], ["scores"], domain="theirs")])
    model.functions.append(function)
    model.opset_import.append(opsets[1])
    assert "Twice" not in node_types(imported(model))


def test_branches_read_tensors_from_outside(imported: Import) -> None:
    def branch(op: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(f"{op}_result", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["logits"], [f"{op}_result"])], op, [], [result])

    true = numpy_helper.from_array(np.array(True), "true")
    branches = {"then_branch": branch("Relu"), "else_branch": branch("Identity")}
    nodes = [*head(), *tail("logits"), helper.make_node("If", ["true"], ["scores"], **branches)]
    imported(classifier(nodes, constants=[true]))


def test_an_input_that_the_scores_do_not_need_is_left_out(imported: Import, tmp_path: Path) -> None:
    other = helper.make_node("Mul", ["scores", "temperature"], ["scaled"])
    model = classifier([*head(), *tail(), other], outputs={"scaled": ["N", CLASSES], "scores": ["N", CLASSES]})
    model.graph.input.append(helper.make_tensor_value_info("temperature", TensorProto.FLOAT, []))
    path = save(model, tmp_path / "theirs.onnx")
    folder = ModelFolder(tmp_path / "models" / "theirs")
    import_onnx(path, folder, OnnxOptions(preprocessing=STEPS))
    assert "Mul" not in node_types(folder)


def test_a_second_input_that_the_scores_need_is_refused(tmp_path: Path) -> None:
    model = classifier([*head(), *tail("fc"), helper.make_node("Mul", ["fc", "temperature"], ["scores"])])
    model.graph.input.append(helper.make_tensor_value_info("temperature", TensorProto.FLOAT, []))
    message = refused(model, tmp_path, ModelError)
    assert "x float32 [N, 3, 32, 32], temperature float32 []; expected one image input" in message


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        (("height", "width", 3), "--input_name x --input_shape 1,224,224,3"),
        ((3, SIZE, SIZE + 1), "Views are squares"),
        ((1, SIZE, SIZE), "colour"),
        ((3, 300, 300), "cut from 256x256"),
        ((3, "height", "width"), "Fix its size: python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name x"),
    ],
)
def test_an_input_that_is_no_square_photograph_is_refused_with_its_cure(
    tmp_path: Path, shape: tuple[int | str, ...], hint: str
) -> None:
    message = refused(classifier(shape=shape), tmp_path, ModelError)
    assert f"x float32 [N, {', '.join(map(str, shape))}]; expected float32 [N, 3, H, H]" in message
    assert hint in message


def test_a_side_of_256_pixels_is_accepted(imported: Import) -> None:
    folder = imported(classifier(shape=(3, 256, 256)))
    assert folder.spec().preprocessing.crop == 256


@pytest.mark.parametrize("labels", [(), ("a",), tuple("abcdef")])
def test_labels_of_another_number_are_refused(tmp_path: Path, labels: tuple[str, ...]) -> None:
    message = refused(classifier(), tmp_path, ModelError, classes=labels)
    assert f"has 5 classes; found {len(labels)}" in message


def test_an_operator_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    model = classifier([*head(), *tail("fc"), helper.make_node("Magic", ["fc"], ["scores"], domain="theirs")])
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    assert "cannot be run by ONNX Runtime" in refused(model, tmp_path, ModelError)


def test_weights_outside_the_file_are_refused(tmp_path: Path) -> None:
    model = classifier()
    onnx.save_model(
        model,
        tmp_path / "outside.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    content = (tmp_path / "outside.onnx").read_bytes()
    assert "stores conv.w in an external file" in refused(content, tmp_path, ModelError)


def _outside(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def _in_a_function(model: ModelProto) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], value=_outside("far")), helper.make_node("Add", ["a", "c"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("theirs", "Shifted", ["a"], ["b"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("theirs", 1))


def _in_a_functions_default(model: ModelProto) -> None:
    _in_a_function(model)
    del model.functions[0].node[:]
    model.functions[0].attribute_proto.append(helper.make_attribute("constant", _outside("far")))


def _in_training(model: ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(_outside("far"))


def _in_a_branch(model: ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [], [_outside("far")])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))


def _in_a_sparse_attribute(model: ModelProto) -> None:
    sparse = onnx.SparseTensorProto(values=_outside("far"), dims=[1])
    model.graph.node.append(helper.make_node("Constant", [], ["d"], sparse_value=sparse))


@pytest.mark.parametrize(
    "hide", [_in_a_function, _in_a_functions_default, _in_training, _in_a_branch, _in_a_sparse_attribute]
)
def test_tensors_outside_the_file_are_refused_wherever_they_are_named(
    tmp_path: Path, hide: Callable[[ModelProto], None]
) -> None:
    (tmp_path / "secret.bin").write_bytes(np.ones(1, np.float32).tobytes())
    model = classifier()
    hide(model)
    assert "stores far in an external file" in refused(model, tmp_path, ModelError)


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    content = classifier().SerializeToString()
    for length in range(0, len(content), len(content) // 25):
        told = refused(content[:length], tmp_path, ModelError)
        assert "truncated" not in told or told.endswith("\nDownload, copy or export the file again.")
    assert told.endswith("\nDownload, copy or export the file again.")


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"weights": [1, 2, 3]}), b"", b"\x00" * 100, os.urandom(1000)],
    ids=["pickle", "empty", "zeros", "random"],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    assert str(tmp_path / "theirs.onnx") in refused(content, tmp_path, ModelError)


@pytest.mark.parametrize("attribute", ["value", "value_floats"])
def test_constant_nodes_become_weights(imported: Import, attribute: str) -> None:
    tensors = [tensor for tensor in weights() if attribute == "value" or len(tensor.dims) == 1]
    values = [tensor if attribute == "value" else numpy_helper.to_array(tensor).tolist() for tensor in tensors]
    constants = [
        helper.make_node("Constant", [], [tensor.name], **{attribute: value})
        for tensor, value in zip(tensors, values, strict=True)
    ]
    model = classifier([*constants, *head(), *tail()])
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for tensor in weights() if tensor not in tensors)
    folder = imported(model)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(folder.onnx_path()).graph.initializer}
    assert "Constant" not in node_types(folder)
    for tensor in weights():
        np.testing.assert_array_equal(found[tensor.name], numpy_helper.to_array(tensor), strict=True)


def test_weights_computed_from_constants_become_weights(imported: Import) -> None:
    conv = numpy_helper.to_array(weights()[0])
    halves = numpy_helper.from_array(conv.astype(np.float16).reshape(FEATURES, -1).T, "halves")
    before = [
        helper.make_node("Constant", [], ["shape"], value_ints=[0, 3, 5, -1]),
        helper.make_node("Transpose", ["halves"], ["rows"]),
        helper.make_node("Reshape", ["rows", "shape"], ["kernels"]),
        helper.make_node("Identity", ["kernels"], ["same"]),
        helper.make_node("Cast", ["same"], ["conv.w"], to=TensorProto.FLOAT),
    ]
    model = classifier([*before, *head(), *tail()], constants=[halves])
    del model.graph.initializer[0]
    folder = imported(model)
    graph = onnx.load(folder.onnx_path()).graph
    assert node_types(folder) == ["Conv", "Relu", "GlobalMaxPool", "Flatten", "Gemm", "Flatten"]
    assert {tensor.name for tensor in graph.initializer} == {"conv.w", "conv.b", "fc.w", "fc.b"}
    found = next(numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "conv.w")
    np.testing.assert_array_equal(found, conv.astype(np.float16).astype(np.float32), strict=True)


def test_a_weight_that_is_read_both_as_it_is_and_transposed_is_kept_both_ways(imported: Import) -> None:
    square = numpy_helper.from_array(np.random.default_rng(1).normal(0, 0.5, (6, 6)).astype(np.float32), "square")
    nodes = [
        *head(),
        helper.make_node("Flatten", ["features"], ["start"]),
        helper.make_node("MatMul", ["start", "square"], ["middle"]),
        helper.make_node("Transpose", ["square"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["middle", "turned"], ["flat"]),
        tail()[1],
    ]
    folder = imported(classifier(nodes, constants=[square]))
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(folder.onnx_path()).graph.initializer}
    np.testing.assert_array_equal(found["turned"], found["square"].T)


def test_a_sparse_constant_stays_a_node(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([0.5], np.float32), "values")
    sparse = onnx.SparseTensorProto(values=values, indices=ints("indices", 2), dims=[CLASSES])
    constant = helper.make_node("Constant", [], ["shift"], sparse_value=sparse)
    nodes = [constant, *head(), *tail("fc"), helper.make_node("Add", ["fc", "shift"], ["scores"])]
    folder = ModelFolder(tmp_path / "models" / "theirs")
    path = save(classifier(nodes), tmp_path / "theirs.onnx")
    import_onnx(path, folder, OnnxOptions(preprocessing=STEPS))
    images = smooth_images(2)
    expected = softmax(original_scores(path, images, "scores", STEPS))
    np.testing.assert_allclose(probabilities(folder, images, "onnxruntime"), expected, rtol=0, atol=TOLERANCE)
    assert "Constant" in node_types(folder)


def test_an_existing_model_is_not_replaced_unasked(tiny_model: ModelFolder, tmp_path: Path) -> None:
    path = save(classifier(), tmp_path / "theirs.onnx")
    before = {file.name: file.read_bytes() for file in tiny_model.path.iterdir()}
    with pytest.raises(UsageError, match="already holds a model"):
        import_onnx(path, tiny_model, OnnxOptions(preprocessing=STEPS))
    assert {file.name: file.read_bytes() for file in tiny_model.path.iterdir()} == before


def test_overwriting_removes_what_belonged_to_the_old_model_and_nothing_else(
    tiny_model: ModelFolder, tmp_path: Path
) -> None:
    for name in ("mean.npy", "model.int8.onnx", "checkpoints/last.pt", "engines/gpu.engine", "notes.txt"):
        (tiny_model.path / name).parent.mkdir(exist_ok=True)
        (tiny_model.path / name).write_text("old")
    assert tiny_model.weights_path.is_file()
    path = save(classifier(), tmp_path / "theirs.onnx")
    import_onnx(path, tiny_model, OnnxOptions(preprocessing=STEPS, overwrite=True))
    left = {file.name for file in tiny_model.path.iterdir()}
    assert left == {"model.onnx", "model.onnx.sha256", "spec.json", "backends.json", "notes.txt"}
    images = smooth_images(1)
    expected = softmax(original_scores(path, images, "scores", STEPS))
    np.testing.assert_allclose(probabilities(tiny_model, images, "onnxruntime"), expected, rtol=0, atol=TOLERANCE)


def test_an_import_that_fails_leaves_the_old_model_as_it_was(tiny_model: ModelFolder, tmp_path: Path) -> None:
    path = save(classifier(shape=(1, SIZE, SIZE)), tmp_path / "theirs.onnx")
    before = {file.name: file.read_bytes() for file in tiny_model.path.iterdir()}
    with pytest.raises(ModelError):
        import_onnx(path, tiny_model, OnnxOptions(preprocessing=STEPS, overwrite=True))
    assert {file.name: file.read_bytes() for file in tiny_model.path.iterdir()} == before


def test_an_import_stopped_between_its_files_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelFolder, "write_spec", stop)
    path = save(classifier(), tmp_path / "theirs.onnx")
    with pytest.raises(KeyboardInterrupt):
        import_onnx(path, ModelFolder(tmp_path / "models" / "theirs"), OnnxOptions(preprocessing=STEPS))
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "spec.json"])
def test_the_file_may_be_called_as_one_of_a_model_folder(tmp_path: Path, name: str) -> None:
    path = save(classifier(), tmp_path / name)
    folder = ModelFolder(tmp_path / "models" / "theirs")
    import_onnx(path, folder, OnnxOptions(preprocessing=STEPS))
    export_model(folder, ExportOptions(fp16=True))
    assert load_graph(folder, "fp16", folder.spec()).sha256


def test_where_it_came_from_is_written_down(imported: Import, tmp_path: Path) -> None:
    spec = imported(classifier(), classes=tuple("abcde"), recipe="torchvision").spec()
    assert spec.classes == tuple("abcde")
    assert spec.recipe == "torchvision"
    assert spec.provenance["imported_from"] == "theirs.onnx"
    # By the name that training has for it.
    assert spec.provenance["alexdeploy_version"] == alexdeploy.__version__
    assert spec.provenance["imported_sha256"] == read_graph(tmp_path / "theirs.onnx").sha256


def test_an_imported_model_is_found_and_exported_to_fp16_with_no_weights_and_no_torch(
    imported: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, relu, pool = head()
    # Nodes without names: the FP16 converter makes names of its casts from those of the nodes.
    pool.input[0] = "second"
    norms = [helper.make_node("LRN", [a], [b], size=3) for a, b in (("relu", "first"), ("first", "second"))]
    folder = imported(classifier([conv, relu, *norms, pool, *tail()]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "alexdeploy.export.onnx_export", None)
    _, fp16 = export_module.export_model(find_model("theirs"), ExportOptions(fp16=True))
    assert fp16.written
    assert not folder.weights_path.exists()
    images = smooth_images(3)
    expected = probabilities(folder, images, "onnxruntime")
    actual = probabilities(folder, images, "onnxruntime", precision="fp16")
    # FP16 keeps 11 bits; logits here are below 16.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-2)
    assert (actual != expected).any()


def test_probabilities_without_a_softmax_are_exported_to_fp16(imported: Import) -> None:
    folder = imported(three_of_five(), "out", gives_probabilities=True)
    _, fp16 = export_model(folder, ExportOptions(fp16=True))
    assert fp16.parity is not None
    assert fp16.parity.worst_error < 2e-2


def test_a_model_of_this_project_can_be_imported_again(imported: Import, tiny_model: ModelFolder) -> None:
    steps = Preprocessing(mean=(110.0, 110.0, 110.0), crop=227)
    folder = imported(onnx.load(tiny_model.onnx_path()), "logits", preprocessing=steps)
    assert folder.spec().preprocessing.crop == 227
