from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from alexdeploy.graphs.edit import (
    all_nodes,
    attribute,
    computed_from,
    float_layers,
    has_padding,
    holds_only_float32,
    inner_graphs,
    needed_tensors,
    node_macs,
    opset_of,
    prune,
    rename,
    weight_bits,
)
from alexdeploy.graphs.runner import run_graph


def test_an_attribute_is_that_of_the_node_or_else_the_default() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[4, 3], auto_pad="VALID")
    assert attribute(node, "group", 1) == 2
    assert attribute(node, "strides", [1, 1]) == [4, 3]
    assert attribute(node, "auto_pad", b"NOTSET") == b"VALID"
    assert attribute(node, "dilations", [1, 1]) == [1, 1]


def test_attributes_of_the_oldest_files_do_not_tell_their_type() -> None:
    node = helper.make_node("Reshape", ["x"], ["y"])
    node.attribute.append(AttributeProto(name="shape", ints=[0, -1]))
    assert attribute(node, "shape", []) == [0, -1]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, False),
        ({"pads": [0, 0, 0, 0], "auto_pad": "NOTSET"}, False),
        ({"pads": [0, 0, 0, 1]}, True),
        ({"auto_pad": "SAME_UPPER"}, True),
    ],
)
def test_padding_is_seen_in_either_of_its_attributes(attributes: dict[str, object], expected: bool) -> None:
    assert has_padding(helper.make_node("Conv", ["x", "w"], ["y"], **attributes)) is expected


@pytest.mark.parametrize(
    ("domains", "expected"),
    [({"": 17}, 17), ({"ai.onnx.ml": 3, "ai.onnx": 12}, 12), ({"ai.onnx.ml": 3}, 1), ({}, 1)],
)
def test_the_opset_is_that_of_onnx_itself(domains: dict[str, int], expected: int) -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in domains.items())
    assert opset_of(model) == expected


def branching() -> onnx.ModelProto:
    """y = 2 x + w if the sum of x is positive, else x - v; the branches read x, w and v of the graph around them."""

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
        return helper.make_graph(list(nodes), name, [], [result])

    inner = helper.make_node(
        "If",
        ["always"],
        ["sum_or_not"],
        "inner",
        then_branch=branch("deep", helper.make_node("Add", ["doubled", "w"], ["deep_sum"], "deep_add")),
        else_branch=branch("never", helper.make_node("Neg", ["doubled"], ["negative"], "neg")),
    )
    then = branch("then", helper.make_node("Add", ["x", "x"], ["doubled"], "double"), inner)
    other = branch("else", helper.make_node("Sub", ["x", "v"], ["difference"], "sub"))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], "total", keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["is_positive"], "greater"),
        helper.make_node("If", ["is_positive"], ["y"], "if", then_branch=then, else_branch=other),
        helper.make_node("Mul", ["x", "unused"], ["dead"], "dead"),
    ]
    constants = {
        "zero": np.float32(0),
        "w": np.float32([1, 2]),
        "v": np.float32([10, 20]),
        "always": np.array(True),
        "unused": np.float32([3, 3]),
    }
    graph = helper.make_graph(
        nodes,
        "branching",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def assert_computes_as_before(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    for x in ([3, 4], [-3, -4]):
        (found,) = run_graph(model, np.float32(x))
        np.testing.assert_array_equal(found, 2 * np.float32(x) + [1, 2] if sum(x) > 0 else np.float32(x) - [10, 20])


def test_branches_of_branches_are_walked() -> None:
    model = branching()
    # The helper sorts attributes: else comes before then.
    assert [node.name for node in all_nodes(model.graph.node)] == [
        *("total", "greater", "if", "sub", "double", "inner", "neg", "deep_add", "dead")
    ]
    assert [graph.name for graph in inner_graphs(model.graph.node)] == ["else", "then", "never", "deep"]


def test_what_only_a_branch_reads_is_needed_and_what_nothing_reads_is_not() -> None:
    model = branching()
    needed = needed_tensors(model.graph, "y")
    assert {"x", "w", "v", "always", "zero", "is_positive", "total"} <= needed
    assert not needed & {"unused", "dead"}
    prune(model.graph)
    assert [node.name for node in model.graph.node] == ["total", "greater", "if"]
    assert {tensor.name for tensor in model.graph.initializer} == {"zero", "w", "v", "always"}
    assert_computes_as_before(model)


def test_what_depends_on_a_weight_that_a_branch_reads() -> None:
    graph = branching().graph
    assert computed_from(graph, "w") == {"w", "y"}
    assert computed_from(graph, "total") == {"total", "is_positive", "y"}
    assert computed_from(graph, "unused") == {"unused", "dead"}


def test_a_graph_computes_the_same_under_other_names_and_keeps_none_of_the_old_ones() -> None:
    model = branching()
    names = {name for node in all_nodes(model.graph.node) for name in (node.name, *node.input, *node.output)}
    rename(model.graph, lambda name: f"member1/{name}")
    now = {name for node in all_nodes(model.graph.node) for name in (node.name, *node.input, *node.output)}
    assert now == {f"member1/{name}" for name in names}
    assert_computes_as_before(model)


@pytest.mark.parametrize(
    ("op", "weights", "output", "macs"),
    [
        # 8 maps of 5 x 6 from 3 of kernels 4 x 4; a batch whose size is not known.
        ("Conv", (8, 3, 4, 4), ("N", 8, 5, 6), 8 * 3 * 4 * 4 * 5 * 6),
        ("Gemm", (10, 20), ("N", 20), 200),
        ("MatMul", (10, 20), ("N", 7, 20), 1400),
        ("MatMul", (10, 20), (1, "rows", 20), 200),
    ],
)
def test_multiply_accumulates_are_those_of_one_view(
    op: str, weights: tuple[int, ...], output: tuple[int | str, ...], macs: int
) -> None:
    assert node_macs(helper.make_node(op, ["x", "w"], ["y"]), weights, output) == macs


def test_a_cast_or_a_weight_of_another_float_is_seen() -> None:
    assert holds_only_float32(branching().graph)
    for kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        graph = branching().graph
        graph.node.append(helper.make_node("Cast", ["x"], ["cast"], to=kind))
        assert not holds_only_float32(graph)
        graph = branching().graph
        graph.initializer.append(TensorProto(name="other", data_type=kind))
        assert not holds_only_float32(graph)
    graph = branching().graph
    graph.node.append(helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64))
    assert holds_only_float32(graph)


@pytest.mark.parametrize(
    ("least", "most", "bits"), [(-64, 63, 7), (-63, 63, 7), (-65, 0, 8), (0, 64, 8), (-127, 127, 8)]
)
def test_weights_have_the_bits_that_hold_all_of_them(least: int, most: int, bits: int) -> None:
    constants = {
        "stored": np.array([[least], [most]], np.int8),
        "scale": np.float32(0.1),
        "small": np.array([[1, -1]], np.int8),
        "x_scale": np.float32(1),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "x_scale"], ["dx"], "dx"),
        helper.make_node("DequantizeLinear", ["stored", "scale"], ["w1"], "dw1"),
        helper.make_node("DequantizeLinear", ["small", "scale"], ["w2"], "dw2"),
        helper.make_node("MatMul", ["dx", "w1"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], "weights alone"),
        helper.make_node("MatMul", ["y", "small"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes, "int8", [], [], [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    )
    model = helper.make_model(graph)
    assert weight_bits(model) == bits
    assert float_layers(model) == ("weights alone", "z")
    assert weight_bits(branching()) is None
