from __future__ import annotations

import pytest
from onnx import AttributeProto, helper

from alexdeploy.graphs.edit import attribute, has_padding, opset_of


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
