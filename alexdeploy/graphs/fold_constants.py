"""Constant folding of weights: only weights that are initializers can be quantized."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from alexdeploy.graphs.edit import prune, set_nodes

_FOLDED = ("Transpose", "Identity", "Reshape", "Cast")
"""Operators that exporters put between a weight and its layer."""


def fold_constants(graph: GraphProto) -> None:
    """Turn every Constant, and the operators above whose inputs are all constant, into initializers, in place.

    Constants inside branches stay, as do types that NumPy lacks: text, sparse tensors, bfloat16. The graph must be of
    opset 13 or later, with its nodes sorted.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes, folded = [], []
    for node in graph.node:
        tensor = _folded(node, constants)
        if tensor is None:
            nodes.append(node)
        else:
            constants[tensor.name] = tensor
            folded.append(tensor)
    set_nodes(graph, nodes)
    graph.initializer.extend(folded)
    prune(graph)


def _folded(node: NodeProto, constants: dict[str, TensorProto]) -> TensorProto | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Constant", *_FOLDED):
        return None
    # The evaluator fails on a sparse constant.
    if not all(name in constants for name in node.input) or any(each.name == "sparse_value" for each in node.attribute):
        return None
    inputs = {name: numpy_helper.to_array(constants[name]) for name in node.input}
    (result,) = ReferenceEvaluator(node).run(None, inputs)
    value = np.asarray(result)
    return numpy_helper.from_array(value, node.output[0]) if value.dtype.kind in "biuf" else None
