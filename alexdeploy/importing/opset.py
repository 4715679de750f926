"""Converting graphs of old opsets for current ONNX Runtime and for the deployment graph."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper, version_converter

from alexdeploy.core.errors import ModelError, first_line
from alexdeploy.graphs.edit import attribute, opset_of, producers

_OLDEST_RUN = 7
"""The oldest opset that ONNX Runtime has kernels for."""

_OLDEST_MEANT = 13
"""The first opset in which Softmax and the shape operators behave as the deployment graph expects."""

_OPSET = 17

_SAME_BUT_FOR_ATTRIBUTES = {
    "AveragePool": (),
    "Conv": (),
    "Dropout": ("is_test", "consumed_inputs"),
    "Flatten": (),
    "Gemm": ("broadcast",),
    "GlobalAveragePool": (),
    "LRN": (),
    "MaxPool": (),
    "Relu": ("consumed_inputs",),
    "Reshape": ("shape", "consumed_inputs"),
    "Softmax": (),
}
"""Operators of classifiers that mean the same before opset 7 and at it, and the attributes that opset 7 removed."""

_KEEP_RANK = ("Dropout", "Relu")


def runnable(model: ModelProto, path: Path) -> ModelProto:
    """The model itself if ONNX Runtime can run it, else the model converted to opset 7 or later."""
    if opset_of(model) >= _OLDEST_RUN:
        return model
    if all(node.op_type in _SAME_BUT_FOR_ATTRIBUTES for node in model.graph.node):
        return _at_seven(model)
    return _converted(model, path)


def modern(model: ModelProto, path: Path) -> ModelProto:
    """The model, converted to opset 13 if it is older."""
    return model if opset_of(model) >= _OLDEST_MEANT else _converted(model, path)


def _at_seven(model: ModelProto) -> ModelProto:
    """Convert to opset 7. ONNX's own converter needs shapes that it cannot infer from the old Reshape and Dropout."""
    copy = deepcopy(model)
    graph = copy.graph
    made_by = producers(model.graph)
    del graph.node[:]
    for index, original in enumerate(model.graph.node):
        node = deepcopy(original)
        if node.op_type == "Reshape" and len(node.input) == 1:
            name, shape = f"import/old_shape{index}", attribute(original, "shape", [])
            graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
            node.input.append(name)
        if node.op_type == "Gemm" and _has_pixels(node.input[0], made_by):
            # Caffe2 flattened the left operand implicitly, and ONNX's model zoo has files that rely on it.
            flat = f"import/old_flat{index}"
            graph.node.append(helper.make_node("Flatten", [node.input[0]], [flat], axis=1))
            node.input[0] = flat
        del node.attribute[:]
        lost = _SAME_BUT_FOR_ATTRIBUTES[node.op_type]
        node.attribute.extend(each for each in original.attribute if each.name not in lost)
        graph.node.append(node)
    del copy.opset_import[:]
    copy.opset_import.append(helper.make_opsetid("", _OLDEST_RUN))
    return copy


def _has_pixels(name: str, made_by: dict[str, NodeProto]) -> bool:
    """Whether a tensor is the output of a convolution or pooling, and so has four dimensions."""
    node = made_by.get(name)
    while node is not None and node.op_type in _KEEP_RANK:
        node = made_by.get(node.input[0])
    return node is not None and node.op_type in ("AveragePool", "Conv", "GlobalAveragePool", "LRN", "MaxPool")


def _converted(model: ModelProto, path: Path) -> ModelProto:
    try:
        return version_converter.convert_version(model, _OPSET)
    except (RuntimeError, IndexError, version_converter.ConvertError) as exc:
        raise ModelError(
            f"{path} is opset {opset_of(model)} and cannot be converted to {_OPSET}: {first_line(exc)}",
            hint="Export it again at opset 13 or later.",
        ) from exc
