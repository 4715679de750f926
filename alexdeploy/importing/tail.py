"""The operators between the last layers with weights and an output, and those that rule it out as class scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto

from alexdeploy.graphs.edit import WEIGHTED_OPS, all_nodes, computed_from, producers, reads

KEEP_ORDER = ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
"""Operators that pass on the same scores in the same order."""

_LAYERS = {
    *WEIGHTED_OPS,
    *("ConvTranspose", "DeformConv", "Einsum", "LSTM", "GRU", "RNN", "LinearClassifier", "LinearRegressor"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "FusedConv", "FusedGemm", "FusedMatMul"),
}
"""Operators with weights in third-party graphs, including those with integer arithmetic."""

_SHAPES = ("Shape", "Size")
"""Their output depends on the size of an image, not on its pixels."""

_ROUNDING = ("Floor", "Ceil", "Round")


@dataclass(frozen=True, kw_only=True, slots=True)
class Objection:
    """Why an output cannot be imported. `has_better`: whether an earlier output can be used instead."""

    why: str
    hint: str
    has_better: bool = False


def loses_classes(graph: GraphProto, output: str) -> str:
    """Why the elements of `output` are not classes; empty if the operators do not contradict that."""
    ops = [node.op_type for node in _tail(graph, output)]
    if "TopK" in ops:
        return "values of a TopK, which are not in the order of the classes"
    found = next((op for op in ops if op in ("ArgMax", "ArgMin")), None)
    return f"computed from an {found}, which keeps the best class and no scores" if found else ""


def objection(graph: GraphProto, output: str, num_scores: int, total: float | None) -> Objection | None:
    """Why `output` [N, num_scores] cannot be imported; None if it can.

    `total` is the sum of its values for each image, None if that is not constant. A single score is never refused: the
    user names the classes of a low and a high value. Nor are 1 - p and p of a binary model.
    """
    if num_scores == 1 or (num_scores == 2 and total == 1 and _are_both_of_one(graph, output)):
        return None
    negated = next((node for node in _tail(graph, output) if _negates(graph, node)), None)
    if negated is not None:
        return Objection(
            why=f"is computed from scores that {_named(negated)} negates: the worst class would get the highest score",
            hint="Export scores that are highest for the best class.",
        )
    # A softmax makes class probabilities of any values; a Sigmoid before it is an activation like others.
    sigmoid = _first(_tail(graph, output, ("Softmax", "LogSoftmax")), ("Sigmoid", "HardSigmoid"))
    if sigmoid is not None:
        return Objection(
            why=f"ends in a {sigmoid.op_type}: a score for each label by itself, not one class out of {num_scores}",
            hint="Models of several labels for one image are not supported.",
        )
    # Logarithms of probabilities are valid logits whatever the sum.
    shares = _tail(graph, output, ("Log",))
    softmax, rounding = _first(shares, ("Softmax",)), _first(shares, _ROUNDING)
    if softmax is None or (total is not None and rounding is None):
        return None
    what = "have no constant sum" if rounding is None else f"are rounded by {_named(rounding)}"
    return Objection(
        why=f"is computed from {_named(softmax)}, but its values {what}: they are neither probabilities nor logits",
        hint="Export the logits, which that Softmax reads, or its probabilities as they are.",
        has_better=True,
    )


def _tail(graph: GraphProto, output: str, last: Sequence[str] = ()) -> list[NodeProto]:
    """All nodes on the paths from the last layers with weights to `output`, from `output` back, without those layers.

    A path also ends at an operator in `last`. Nodes inside branches come after their If.
    """
    made_by, depends = producers(graph), computed_from(graph, graph.input[0].name)
    nodes: list[NodeProto] = []
    seen: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop(0)
        node = made_by.get(name)
        if node is None or name not in depends or seen.intersection(node.output):
            continue
        seen.update(filter(None, node.output))
        inner = list(all_nodes([node]))
        if node.op_type in _SHAPES or any(each.op_type in _LAYERS for each in inner):
            continue
        nodes.extend(inner)
        if node.op_type not in last:
            waiting.extend(reads(node))
    return nodes


def _negates(graph: GraphProto, node: NodeProto) -> bool:
    """Whether a node reverses the order of scores: Neg, or Sub from a constant or from their largest."""
    if node.op_type != "Sub":
        return node.op_type == "Neg"
    first, second = node.input
    depends = computed_from(graph, graph.input[0].name)
    maker = producers(graph).get(first)
    is_scalar = first not in depends or (maker is not None and maker.op_type.startswith("Reduce"))
    return second in depends and is_scalar


def _are_both_of_one(graph: GraphProto, output: str) -> bool:
    """Whether `output` is 1 - p and p of the same p."""
    made_by = producers(graph)

    def source(name: str) -> str:
        while (maker := made_by.get(name)) is not None and maker.op_type in KEEP_ORDER:
            name = maker.input[0]
        return name

    concat = made_by.get(source(output))
    if concat is None or concat.op_type != "Concat":
        return False
    halves = [source(name) for name in concat.input]
    makers = [made_by.get(half) for half in halves]
    return any(maker is not None and maker.op_type == "Sub" and source(maker.input[1]) in halves for maker in makers)


def _first(nodes: Sequence[NodeProto], ops: Sequence[str]) -> NodeProto | None:
    return next((node for node in nodes if node.op_type in ops), None)


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"
