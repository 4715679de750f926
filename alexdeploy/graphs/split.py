"""A deployment graph cut into stages for two devices: by towers, as on the two GPUs of 2012, or as a pipeline.

By towers, each device has half of every layer's maps or units. A layer that sees only its own tower (conv2, conv4,
conv5) uses the maps of its device. Before one that sees both (conv3, the fully connected layers) the devices
exchange their halves; then each computes half of the outputs from all of the inputs (Krizhevsky et al. 2012, section
3.2 and figure 2). The last layer and the average over views are on the first device alone: the paper draws one layer
of 1000 after both halves and does not say where it ran, and it is 7 % of the fully connected multiplications.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from alexdeploy.core.errors import UsageError
from alexdeploy.core.spec import Placement
from alexdeploy.graphs.edit import WEIGHTED_OPS, attribute, needed_tensors, producers, reads
from alexdeploy.graphs.unroll_towers import half_names, half_of, halve, tower_folds

DeviceNumber = Literal[0, 1]

_BOTH: tuple[DeviceNumber, ...] = (0, 1)
_FIRST: tuple[DeviceNumber, ...] = (0,)
_PIPELINE = "Use --placement pipeline, which cuts before the fully connected layers."
_POOLS = ("AveragePool", "MaxPool")
_ARITHMETIC = ("Add", "Cast", "Clip", "Div", "Dropout", "Erf", "Greater", "Identity", "Mul", "Sub", "Where")
_ACTIVATIONS = ("Elu", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh")
_FULLY_CONNECTED = ("Gemm", "MatMul")
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
_MOST_SHAPE_VALUES = 64
"""Largest number of elements of a constant that shape inference may need; weights have more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What one device computes in one step: `model` maps `inputs` to `outputs`, names of tensors of the whole graph.

    A tower's half of a tensor is called `pool2/tower0`.
    """

    device: DeviceNumber
    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """Consecutive steps. The stages of one step are independent of each other and run at the same time."""

    placement: Placement
    steps: tuple[tuple[Stage, ...], ...]

    @property
    def exchanges(self) -> tuple[tuple[str, ...], ...]:
        """For each step after the first: the tensors copied from one device to the other before it."""
        made: tuple[set[str], set[str]] = (set(), set())
        exchanges = []
        for step in self.steps:
            crossing = {
                name for stage in step for name in stage.inputs if name in made[1 - stage.device] - made[stage.device]
            }
            exchanges.append(tuple(sorted(crossing)))
            for stage in step:
                made[stage.device].update(stage.outputs)
        return tuple(exchanges[1:])


def split_graph(model: onnx.ModelProto, placement: Placement) -> StagePlan:
    """Cut a deployment graph for two devices; `model` is not changed.

    Raises UsageError if the network cannot be cut that way: by towers, it must have two towers, be FP32 or FP16, and
    have each LRN within a tower; a pipeline needs convolutions before fully connected layers.
    """
    stages = _Stages(model)
    if placement == "towers":
        _Towers(model, stages).run()
    else:
        _place_pipeline(model, stages)
    return StagePlan(placement=placement, steps=stages.build())


class _Stages:
    """Collects nodes by step and device, and makes a model for each step and device."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values = _known_values(model)
        self._nodes: dict[tuple[int, DeviceNumber], list[NodeProto]] = {}

    def add(self, step: int, device: DeviceNumber, node: NodeProto) -> None:
        self._nodes.setdefault((step, device), []).append(node)

    def name_half(self, half: str, whole: str) -> None:
        """Give `half` the type of `whole`, with an unknown number of maps or units."""
        value = deepcopy(self._values[whole])
        value.name = half
        if len(value.type.tensor_type.shape.dim) > 1:
            value.type.tensor_type.shape.dim[1].Clear()
        self._values[half] = value

    def build(self) -> tuple[tuple[Stage, ...], ...]:
        read = {key: self._reads(nodes) for key, nodes in self._nodes.items()}
        steps: dict[int, list[Stage]] = {}
        for key in sorted(self._nodes):
            step, device = key
            made = [name for node in self._nodes[key] for name in node.output if name]
            wanted = {value.name for value in self._model.graph.output}
            wanted.update(name for (later, _), names in read.items() if later > step for name in names)
            outputs = tuple(name for name in made if name in wanted)
            if outputs:
                steps.setdefault(step, []).append(self._stage(step, device, read[key], outputs))
        return tuple(tuple(steps[step]) for step in sorted(steps))

    def _reads(self, nodes: list[NodeProto]) -> tuple[str, ...]:
        """The tensors that nodes read and do not produce, without weights."""
        made = {name for node in nodes for name in node.output}
        names = dict.fromkeys(name for node in nodes for name in reads(node))
        return tuple(name for name in names if name not in made and name not in self.weights)

    def _stage(self, step: int, device: DeviceNumber, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Stage:
        nodes = self._nodes[step, device]
        weights = dict.fromkeys(name for node in nodes for name in reads(node) if name in self.weights)
        graph = helper.make_graph(
            nodes,
            f"{self._model.graph.name}-step{step}-device{device}",
            [self._values[name] for name in inputs],
            [self._values[name] for name in outputs],
            [self.weights[name] for name in weights],
        )
        model = helper.make_model(
            graph,
            opset_imports=self._model.opset_import,
            ir_version=self._model.ir_version,
            producer_name=self._model.producer_name,
        )
        return Stage(device=device, model=model, inputs=inputs, outputs=outputs)


class _Towers:
    """Walks the graph once. A tensor is either whole, on the devices that need it, or in halves, one on each.

    `_step` is the step in which a tensor becomes available; halves are joined one step later.
    """

    def __init__(self, model: onnx.ModelProto, stages: _Stages) -> None:
        self._stages = stages
        self._nodes = _without_constants(model.graph.node, stages.weights)
        self._halves: dict[str, tuple[str, str]] = {}
        self._joined: dict[str, str] = {}
        self._step: dict[str, int] = {}
        self._folds = tower_folds(self._nodes, stages.weights)
        self._check(model)

    def _check(self, model: onnx.ModelProto) -> None:
        if any(node.op_type in _QUANTIZING for node in self._nodes):
            raise UsageError(
                "INT8 graphs are not split into towers: each tensor has one scale for both",
                hint="Use --placement pipeline, or --precision fp32 or fp16.",
            )
        if not self._folds and not any(attribute(node, "group", 1) == 2 for node in self._nodes):
            raise UsageError(
                "the network does not have two towers: each convolution reads all maps, so two devices would "
                "exchange all of them before every layer",
                hint=_PIPELINE,
            )

    def run(self) -> None:
        layers = [index for index, node in enumerate(self._nodes) if node.op_type in WEIGHTED_OPS]
        devices = _BOTH
        for index, node in enumerate(self._nodes):
            if index == layers[-1]:
                devices = _FIRST
            if devices == _BOTH and node.op_type in WEIGHTED_OPS:
                self._place_weighted(node)
            elif not any(name in self._halves for name in node.input):
                self._place_whole(node, devices)
            elif node.op_type == "Reshape" and node.output[0] in self._folds:
                # Each device has one tower, so nothing is folded into the batch.
                self._halves[node.output[0]] = self._halves[node.input[0]]
                self._step[node.output[0]] = self._step[node.input[0]]
            elif devices == _FIRST or node.op_type in ("Reshape", "Flatten"):
                # Flattening: only the whole tensor has its features in the order of the weights.
                self._place_whole(node, devices)
            else:
                self._check_by_tower(node)
                self._place_halves(node, {})

    def _check_by_tower(self, node: NodeProto) -> None:
        """Raise UsageError unless each output map or unit depends only on the same input one, or on its tower."""
        if node.op_type == "LRN":
            if node.output[0] not in self._folds:
                raise UsageError(
                    f"{node.name or node.output[0]} normalizes across both towers (lrn.per_tower is false); the "
                    "devices would have to exchange maps there",
                    hint=_PIPELINE,
                )
            return
        others = [name for name in node.input if name and name not in self._halves]
        is_pointwise = node.op_type in (*_ARITHMETIC, *_ACTIVATIONS) and all(
            name in self._stages.weights and np.prod(self._stages.weights[name].dims, dtype=int) == 1 for name in others
        )
        if not is_pointwise and node.op_type not in _POOLS:
            raise UsageError(
                f"{node.name or node.output[0]} ({node.op_type}) cannot be computed on one tower's maps alone",
                hint=_PIPELINE,
            )

    def _place_weighted(self, node: NodeProto) -> None:
        """A convolution or fully connected layer: half of its outputs on each device."""
        groups, weights = attribute(node, "group", 1), [name for name in node.input[1:] if name]
        is_own_tower = node.op_type == "Conv" and groups == 2 and node.input[0] in self._halves
        if (groups != 1 and not is_own_tower) or any(name not in self._stages.weights for name in weights):
            raise UsageError(
                f"{node.name or node.output[0]} cannot be halved: it has {groups} groups, or weights that are computed",
                hint=_PIPELINE,
            )
        if not is_own_tower:
            node = deepcopy(node)
            node.input[0] = self._whole(node.input[0], _BOTH)
        # The axis of the outputs in a weight; a bias has only that axis.
        axis = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
        all_weights = self._stages.weights
        halves = {name: halve(all_weights, name, axis if place == 0 else -1) for place, name in enumerate(weights)}
        self._place_halves(node, halves)

    def _place_halves(self, node: NodeProto, weights: dict[str, tuple[str, str]]) -> None:
        output = node.output[0]
        halves = {**{name: self._halves[name] for name in node.input if name in self._halves}, **weights}
        step = max(self._step.get(name, 0) for name in node.input)
        self._halves[output] = half_names(output)
        self._step[output] = step
        for device in _BOTH:
            half = half_of(node, device, [halves[name][device] if name in halves else name for name in node.input])
            self._stages.name_half(half.output[0], output)
            self._stages.add(step, device, half)

    def _place_whole(self, node: NodeProto, devices: Iterable[DeviceNumber]) -> None:
        node = deepcopy(node)
        node.input[:] = [self._whole(name, devices) for name in node.input]
        step = max((self._step.get(name, 0) for name in node.input), default=0)
        for name in node.output:
            self._step[name] = step
        for device in devices:
            self._stages.add(step, device, node)

    def _whole(self, name: str, devices: Iterable[DeviceNumber]) -> str:
        """The tensor itself, or both halves joined on `devices` one step after they were computed."""
        if name not in self._halves:
            return name
        if name not in self._joined:
            joined = self._joined[name] = f"{name}/joined"
            self._step[joined] = self._step[name] + 1
            node = helper.make_node("Concat", self._halves[name], [joined], name=joined, axis=1)
            for device in devices:
                self._stages.add(self._step[joined], device, node)
        return self._joined[name]


def _place_pipeline(model: onnx.ModelProto, stages: _Stages) -> None:
    """Everything up to the input of the first fully connected layer on the first device, the rest on the second."""
    nodes = list(model.graph.node)
    convolutions = [index for index, node in enumerate(nodes) if node.op_type == "Conv"]
    layers = [node for node in nodes[max(convolutions, default=0) :] if node.op_type in _FULLY_CONNECTED]
    if not convolutions or not layers:
        raise UsageError(
            "the network has no fully connected layers after its convolutions, where the pipeline would be cut",
            hint="Leave --placement out.",
        )
    cut, makers = layers[0].input[0], producers(model.graph)
    # INT8 kernels fuse the Q after a layer and the DQ before the next: cut between them, at the INT8 tensor.
    while cut in makers and makers[cut].op_type == "DequantizeLinear":
        cut = makers[cut].input[0]
    before = needed_tensors(model.graph, cut)
    for node in nodes:
        number: DeviceNumber = 0 if before.intersection(node.output) else 1
        stages.add(number, number, node)


def _known_values(model: onnx.ModelProto) -> dict[str, ValueInfoProto]:
    """Types of all tensors, and the shapes that can be inferred without the weights' values."""
    graph = model.graph
    small = [tensor for tensor in graph.initializer if np.prod(tensor.dims, dtype=int) <= _MOST_SHAPE_VALUES]
    large = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if np.prod(tensor.dims, dtype=int) > _MOST_SHAPE_VALUES
    ]
    light = helper.make_graph(graph.node, graph.name, [*graph.input, *large], graph.output, small)
    bare = helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    return {value.name: value for value in (*inferred.input, *inferred.value_info, *inferred.output)}


def _without_constants(nodes: Iterable[NodeProto], weights: dict[str, TensorProto]) -> list[NodeProto]:
    """The nodes without Constant nodes, whose values become weights: a constant belongs to no device."""
    kept = []
    for node in nodes:
        if node.op_type != "Constant":
            kept.append(node)
            continue
        value = helper.get_attribute_value(node.attribute[0])
        if isinstance(value, TensorProto):
            value = numpy_helper.to_array(value)
        elif node.attribute[0].name.startswith("value_float"):
            value = np.asarray(value, np.float32)
        weights[node.output[0]] = numpy_helper.from_array(np.asarray(value), node.output[0])
    return kept
