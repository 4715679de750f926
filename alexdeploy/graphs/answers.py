"""The end of every deployment graph: from the probabilities of each view to the two outputs."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

PREFIX = "deploy/"
"""Prefix of every tensor that a deployment graph adds, so that no name collides with the network's own."""

BY_VIEW = PREFIX + "by_view_probabilities"
"""The probabilities of each view inside a deployment graph: float32 [V, N, C]."""


def mean(by_view: str, name: str, opset: int) -> tuple[NodeProto, list[TensorProto]]:
    """The node from `by_view` to the mean over its first axis, `name`, and its constants."""
    if opset >= 18:
        axis = numpy_helper.from_array(np.array([0]), PREFIX + "first_axis")
        return helper.make_node("ReduceMean", [by_view, axis.name], [name], name, keepdims=0), [axis]
    return helper.make_node("ReduceMean", [by_view], [name], name, axes=[0], keepdims=0), []


def answers(opset: int) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes from BY_VIEW to the mean over an image's views and the top class of each view, and their constants."""
    probabilities, constants = mean(BY_VIEW, "probabilities", opset)
    best, by_image = PREFIX + "answers", PREFIX + "answers_by_image"
    nodes = [
        probabilities,
        helper.make_node("ArgMax", [BY_VIEW], [best], best, axis=2, keepdims=0),
        helper.make_node("Transpose", [best], [by_image], by_image, perm=[1, 0]),
        helper.make_node("Cast", [by_image], ["view_classes"], "view_classes", to=TensorProto.INT32),
    ]
    return nodes, constants
