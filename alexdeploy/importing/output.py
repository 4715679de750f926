"""Selecting the output of an imported graph with the class scores, and adding the nodes from it to logits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.export.parity import TOLERANCES
from alexdeploy.graphs.edit import WEIGHTED_OPS, computed_from, holds_only_float32, needed_tensors, producers
from alexdeploy.importing.input import PREFIX
from alexdeploy.importing.tail import KEEP_ORDER, Objection, loses_classes, objection

LOGITS = f"{PREFIX}logits"

_ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")

_AFTER_SCORES = (*KEEP_ORDER, *_ACTIVATIONS, "Add", "Sub", "Mul", "Div", "Exp", "Log", "Clip", "Max", "Min")
"""Operators allowed between the last layer and the scores."""

_SCORE_NAME = re.compile("prob|score|logit|softmax", re.IGNORECASE)

_SMALLEST_PROBABILITY = 1e-7
"""Lower bound of a probability before its logarithm is taken: about the smallest number in FP16."""

_SUM_TOLERANCES = {"fp32": TOLERANCES["fp32"], "fp16": 1e-3}
"""Of the sum of probabilities. FP32: the tolerance of the comparison with the original; FP16 keeps 11 bits of each."""

_UNIT_TOLERANCE = 1e-3
"""Of the length of an embedding."""

_EXACT_SUM_TOLERANCE = 1e-5
"""Of a sum that is neither 1 nor 100. Two unrelated float32 sums are unlikely to be this close by chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The output with the class scores.

    `values` is float32 [2, C]: the scores of the probe images as probabilities that sum to 1, or as logits. In the file
    probabilities sum to `total`. For a binary model, whose output is one probability or one logit, `values` are those
    of both classes.
    """

    name: str
    values: NDArray[np.float32]
    total: float | None
    is_binary: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Output:
    """One output of the graph. `values` is float32 [2, C]; None if it has no scores, for the reason `why_not`.

    `chain` is the nodes from the output back to the last layer, or to its other origin; `layer` is the output of that
    layer. `total` is the sum of the values of each image, see `_total`.
    """

    name: str
    shape: str
    values: NDArray[np.float32] | None
    total: float | None
    why_not: str
    chain: Sequence[NodeProto]
    layer: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.shape, self.why_not and f"({self.why_not})")))

    @property
    def ends_in_a_classifier(self) -> bool:
        ops = [node.op_type for node in self.chain]
        return bool(ops) and (ops[-1] in WEIGHTED_OPS or any(op in _ACTIVATIONS for op in ops))


def choose_output(
    model: ModelProto,
    run: Callable[[Sequence[str]], list[list[NDArray[np.generic]]]],
    batch: int,
    *,
    wanted: str | None,
    labels: tuple[str, ...] | None,
    path: Path,
    on_warning: Callable[[str], None],
) -> Scores:
    """Choose the class scores among the outputs of `model`; `run` computes named outputs for the probe images, in
    parts of `batch` images.

    They are recognized by shape, number of labels, the operators before them, and last by their names. Raises
    ModelError if no output or more than one can be the scores, UsageError for one score without two labels.
    """
    outputs = _outputs(model, run, batch)
    names = [output.name for output in outputs]
    if wanted is not None and wanted not in names:
        raise ModelError(f"{path} has no output {wanted!r}", hint=f"Its outputs: {', '.join(names)}")
    found = [output for output in outputs if output.values is not None and wanted in (None, output.name)]
    if not found:
        _refuse([output for output in outputs if wanted in (None, output.name)], batch, path)
    if wanted is None:
        found = _narrowed(found, outputs, model.graph, None if labels is None else len(labels))
    if not found:
        features = "features that another output is computed from"
        _refuse([each if each.values is None else replace(each, why_not=features) for each in outputs], batch, path)
    if len(found) > 1:
        raise ModelError(
            f"{path} has {len(found)} outputs that could be the class scores: {', '.join(map(str, found))}",
            hint=f"Choose one: --output-name {found[0].name}",
        )
    (chosen,) = found
    others = [str(output) for output in outputs if output is not chosen]
    if others and wanted is None:
        on_warning(
            f"class scores are taken from output {chosen}; other outputs: {', '.join(others)} "
            "(choose with --output-name)"
        )
    _check_tail(chosen, outputs, model.graph, path)
    return _scores(chosen, labels, path, on_warning)


def append_logits(graph: GraphProto, source: str, scores: Scores, *, are_logits: bool, is_float32: bool) -> None:
    """Add the nodes from `source` [N, C], or [N, 1] for a binary model, to LOGITS, float32 [N, C].

    If `source` has probabilities, the logits are their logarithms: softmax maps these back to the probabilities.
    """

    current = _append(graph, "Flatten", source, "flat", axis=1)
    if not is_float32:
        current = _append(graph, "Cast", current, "float", to=TensorProto.FLOAT)
    if scores.is_binary and are_logits:
        current = _append(graph, "Mul", current, "both", [[0, 1]])
    elif scores.is_binary:
        current = _append(graph, "Mul", current, "signed", [[-1, 1]])
        current = _append(graph, "Add", current, "both", [[1, 0]])
    if not are_logits:
        current = _append(graph, "Max", current, "clipped", _SMALLEST_PROBABILITY * (scores.total or 1))
        _append(graph, "Log", current, "logarithm")
    graph.node[-1].name = graph.node[-1].output[0] = LOGITS


def _append(
    graph: GraphProto, op: str, source: str, name: str, constant: ArrayLike | None = None, **attributes: Any
) -> str:
    """Add a node that reads `source` and, if given, a float32 constant; returns its output tensor."""
    inputs, result = [source], f"{PREFIX}{name}"
    if constant is not None:
        inputs.append(f"{result}_constant")
        graph.initializer.append(numpy_helper.from_array(np.array(constant, np.float32), inputs[1]))
    graph.node.append(helper.make_node(op, inputs, [result], name=result, **attributes))
    return result


def before_activation(graph: GraphProto, scores: Scores) -> str | None:
    """The input of the final softmax, or of a binary model's final sigmoid: the logits. None without such a node."""
    made_by = producers(graph)
    depends = computed_from(graph, graph.input[0].name)
    skipped = KEEP_ORDER if scores.total in (None, 1.0) else (*KEEP_ORDER, "Mul", "Div")
    name, node = scores.name, made_by.get(scores.name)
    while node is not None and node.op_type in skipped:
        name = _data_input(node, depends)
        node = made_by.get(name)
    activation = "Sigmoid" if scores.is_binary else "Softmax"
    return node.input[0] if node is not None and node.op_type == activation and scores.total is not None else None


def _outputs(
    model: ModelProto, run: Callable[[Sequence[str]], list[list[NDArray[np.generic]]]], batch: int
) -> list[_Output]:
    graph = model.graph
    made_by, depends = producers(graph), computed_from(graph, graph.input[0].name)
    tensors = [value.name for value in graph.output if value.type.WhichOneof("value") in ("tensor_type", None)]
    parts = run(tensors) if tensors else []
    tolerance = _SUM_TOLERANCES["fp32" if holds_only_float32(graph) else "fp16"]
    outputs = []
    for value in graph.output:
        chain = _chain(value.name, made_by, depends, _AFTER_SCORES)
        layer = _chain(value.name, made_by, depends, None)
        values, total, shape, why_not = (
            None,
            None,
            "",
            f"not a tensor: {value.type.WhichOneof('value')}".removesuffix("_type"),
        )
        if value.name in tensors:
            answers = [part[tensors.index(value.name)] for part in parts]
            shape, why_not = str(list(answers[0].shape)), ""
            if answers[0].dtype.kind != "f":
                why_not = "strings" if answers[0].dtype.kind in "OSU" else str(answers[0].dtype)
            elif _holds_scores(answers[0].shape, batch):
                values = np.concatenate(answers)[:2].reshape(2, -1).astype(np.float32)
                total = _total(values, tolerance)
                why_not = loses_classes(graph, value.name) or _why_no_scores(values, total, chain)
        outputs.append(
            _Output(
                name=value.name,
                shape=shape,
                values=None if why_not else values,
                total=total,
                why_not=why_not,
                chain=chain,
                layer=layer[-1].output[0] if layer else value.name,
            )
        )
    return outputs


def _holds_scores(shape: tuple[int, ...], batch: int) -> bool:
    """Whether the shape is [N, C] or [N], possibly with further axes of 1: [N, C, 1, 1]."""
    return shape[:1] == (batch,) and 0 not in shape and sum(size != 1 for size in shape[1:]) <= 1


def _why_no_scores(values: NDArray[np.float32], total: float | None, chain: Sequence[NodeProto]) -> str:
    """Why an output with a shape of scores cannot be class scores; empty if it can."""
    ops = [node.op_type for node in chain]
    if values.shape[1] > 1:
        is_unit = np.allclose(np.linalg.norm(values, axis=1), 1, rtol=0, atol=_UNIT_TOLERANCE)
        return "L2-normalized, an embedding" if is_unit and total is None else ""
    if "Softmax" in ops or "LogSoftmax" in ops:
        return "a softmax over one value, which is the same for all images"
    if "Sigmoid" in ops:
        is_probability = bool(((values >= 0) & (values <= 1)).all()) or not np.isfinite(values).all()
        return "" if is_probability else "one value after a Sigmoid, but not from 0 to 1"
    return "" if ops and ops[-1] in WEIGHTED_OPS else "one value, neither a sigmoid nor the logit of a layer"


def _total(values: NDArray[np.float32], tolerance: float) -> float | None:
    """The sum of an image's probabilities: 1, 100 for percentages, or another constant; None for logits."""
    if not (values >= 0).all() or values.shape[1] == 1:
        return None
    sums = values.sum(axis=1, dtype=np.float64)
    for usual in (1.0, 100.0):
        if np.allclose(sums, usual, rtol=tolerance, atol=0):
            return usual
    difference, total = float(np.ptp(sums)), float(sums.mean())
    # Where the scores themselves hardly differ, equal sums mean nothing.
    is_constant = difference <= _EXACT_SUM_TOLERANCE * total < 0.1 * float(np.abs(values[0] - values[1]).sum())
    return total if is_constant else None


def _narrowed(found: list[_Output], outputs: list[_Output], graph: GraphProto, num_labels: int | None) -> list[_Output]:
    """Filter `found` by each rule in turn; a rule that would leave none is skipped.

    Empty if all outputs in `found` are features that another output is computed from.
    """
    for num_classes in (num_labels, 1 if num_labels == 2 else None):
        by_labels = [each for each in found if each.values is not None and each.values.shape[1] == num_classes]
        if len(by_labels) == 1:
            return by_labels
        if by_labels:
            found = by_labels
            break
    found = [each for each in found if each.ends_in_a_classifier] or found
    layers = {output.layer for output in outputs}
    needed = {layer: needed_tensors(graph, layer) - {layer} for layer in layers}
    found = [each for each in found if not any(each.layer in needed[layer] for layer in layers)]
    if len({each.layer for each in found}) == 1 and len({each.shape for each in found}) == 1:
        # One layer, before and after its activation.
        read = set[str]().union(*(needed_tensors(graph, each.name) - {each.name} for each in found))
        last = [each for each in found if each.name not in read]
        found = ([each for each in found if each.total is not None] or last)[:1]
    return [each for each in found if _SCORE_NAME.search(each.name)] or found


def _refuse(outputs: Sequence[_Output], batch: int, path: Path) -> NoReturn:
    found = ", ".join(map(str, outputs))
    is_map = any(node.op_type == "ZipMap" for output in outputs for node in output.chain)
    raise ModelError(
        f"the outputs of {path} are {found} for a batch of {batch}; expected class scores, float32 [N, C]",
        hint="Convert it without ZipMap: skl2onnx.to_onnx(..., options={'zipmap': False})" if is_map else None,
    )


def _check_tail(chosen: _Output, outputs: list[_Output], graph: GraphProto, path: Path) -> None:
    """Raise ModelError if the operators after the last layer rule the output out as scores of exclusive classes."""

    def refusal(output: _Output) -> Objection | None:
        return None if output.values is None else objection(graph, output.name, output.values.shape[1], output.total)

    found = refusal(chosen)
    if found is None:
        return
    before = needed_tensors(graph, chosen.name) - {chosen.name}
    better = [each for each in outputs if each.name in before and each.layer == chosen.layer and refusal(each) is None]
    names = [each.name for each in better if found.has_better and each.values is not None]
    raise ModelError(
        f"{path}: output {chosen} {found.why}",
        hint=f"Use the output before it: --output-name {names[0]}" if names else found.hint,
    )


def _scores(output: _Output, labels: tuple[str, ...] | None, path: Path, on_warning: Callable[[str], None]) -> Scores:
    values, total = output.values, output.total
    assert values is not None
    if not np.isfinite(values).all():
        raise ModelError(f"output {output.name} of {path} contains NaN or infinity")
    ops = [node.op_type for node in output.chain]
    if values.shape[1] == 1:
        is_sigmoid = "Sigmoid" in ops
        if labels is None:
            raise UsageError(
                f"{path} is binary: its output {output} is one {'sigmoid' if is_sigmoid else 'logit'}",
                hint="Give both classes, the one for a low value first: --labels negative,positive",
            )
        what = "the probability" if is_sigmoid else "the logit, as there is no sigmoid,"
        on_warning(f"binary: output {output} is interpreted as {what} of {labels[-1]!r}")
        both = np.concatenate([1 - values if is_sigmoid else np.zeros_like(values), values], axis=1)
        return Scores(name=output.name, values=both, total=1.0 if is_sigmoid else None, is_binary=True)
    if total is None:
        return Scores(name=output.name, values=values, total=None, is_binary=False)
    if total != 1:
        what = "percentages" if total == 100 else "probabilities times a constant"
        on_warning(f"output {output} sums to {total:g} for each image: interpreted as {what}")
    return Scores(name=output.name, values=values / np.float32(total), total=total, is_binary=False)


def _chain(
    name: str, made_by: dict[str, NodeProto], depends: set[str], passed: Sequence[str] | None
) -> list[NodeProto]:
    """The nodes from a tensor back along inputs that depend on the image, to the first operator not in `passed`.

    Without `passed`, to the first node with weights.
    """
    nodes: list[NodeProto] = []
    while (node := made_by.get(name)) is not None and name in depends:
        nodes.append(node)
        is_last = node.op_type in WEIGHTED_OPS if passed is None else node.op_type not in passed
        # A sum of two branches is not a bias.
        joins = sum(each in depends for each in node.input) > 1 and node.op_type != "Div"
        if is_last or (joins and passed is not None):
            break
        name = _data_input(node, depends)
    return nodes


def _data_input(node: NodeProto, depends: set[str]) -> str:
    """The first input that depends on the image; an empty string if none does."""
    return next((name for name in node.input if name in depends), "")
