"""From PyTorch weights to the plain network in ONNX: LRN as one native node, nodes named after the layers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir
import onnx_ir.passes.common as passes
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from alexdeploy.core.errors import ParityError
from alexdeploy.core.spec import Architecture
from alexdeploy.graphs.files import OPSET
from alexdeploy.network.alexnet import AlexNet
from alexdeploy.network.layers import Layer
from alexdeploy.network.weights import Weights

_IR_VERSION = 8
"""The IR version that goes with opset 17; older readers refuse a newer one."""

_OP_TYPES = {"conv": "Conv", "lrn": "LRN", "fc": "Gemm", "flatten": "Reshape"}
_POOLS = {"max": "MaxPool", "average": "AveragePool"}


def export_network(
    architecture: Architecture, num_classes: int, weights: Weights, images: NDArray[np.float32]
) -> tuple[ModelProto, tuple[Layer, ...], Mapping[str, NDArray[np.floating]]]:
    """Build the network with `weights` and export it; also returns PyTorch's activations on `images`, for the check."""
    network = AlexNet(architecture, num_classes)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    activations = network.eval().activations(torch.from_numpy(images))
    return (
        network_to_onnx(network),
        network.plan,
        {name: value.numpy() for name, value in activations.items()},
    )


def network_to_onnx(network: AlexNet) -> ModelProto:
    """Export with `torch.onnx.export`: `images` float32 [N, 3, input, input] -> `logits` float32 [N, classes].

    Each layer is one node that carries the layer's name; an LRN per tower has a Reshape before and after it.
    Raises ParityError if the graph does not contain exactly the layers of the plan.
    """
    size = network.architecture.input
    with _quiet_exporter(), torch.inference_mode():
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            # Its optimizer would merge equal biases into one tensor and drop those that are zero.
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model = _tidied(program.model)
    _name_after_plan(model, network.plan)
    onnx.checker.check_model(model, full_check=True)
    return model


def _tidied(model: onnx_ir.Model) -> ModelProto:
    """Fold constants, drop what inference does not need, and strip the exporter's metadata."""
    import onnxscript.optimizer

    onnxscript.optimizer.fold_constants(model)
    for tidy in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    ):
        tidy(model)
    passes.RemoveUnusedNodesPass()(model)
    proto = onnx_ir.serde.serialize_model(model)
    proto.ir_version = _IR_VERSION
    del proto.graph.value_info[:]
    for item in (
        proto,
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
    ):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    for entry in [entry for entry in proto.opset_import if entry.domain]:
        proto.opset_import.remove(entry)
    return proto


def _name_after_plan(model: ModelProto, plan: tuple[Layer, ...]) -> None:
    """Name each node and its output after the layer that it came from. The weights already have their names."""
    nodes = list(model.graph.node)
    position = 0
    for layer in plan:
        names = _node_names(layer, nodes[position:])
        for name, op_types in names:
            if position == len(nodes) or (op_types and nodes[position].op_type not in op_types):
                found = nodes[position].op_type if position < len(nodes) else "the end of the graph"
                raise ParityError(f"layer {layer.name}: the exported graph has {found} where {name} belongs")
            nodes[position].name = name
            position += 1
    if position != len(nodes):
        raise ParityError(f"the exported graph continues after its last layer with {nodes[position].op_type}")
    _rename_tensors(model)


def _node_names(layer: Layer, rest: list[NodeProto]) -> Sequence[tuple[str, tuple[str, ...]]]:
    """The nodes of a layer: (name, allowed operators; empty means any)."""
    if layer.kind == "dropout":
        return []
    if layer.kind == "activation":
        # SiLU, ELU and the like are several nodes at opset 17: all nodes up to the next layer's.
        ends = (*_OP_TYPES.values(), *_POOLS.values())
        length = next((i for i, node in enumerate(rest) if node.op_type in ends), len(rest))
        return [(f"{layer.name}_{i}", ()) for i in range(1, length)] + [(layer.name, ())]
    if layer.kind == "lrn" and layer.groups > 1:
        return [
            (f"{layer.name}_split", ("Reshape",)),
            (layer.name, ("LRN",)),
            (f"{layer.name}_merge", ("Reshape",)),
        ]
    return [(layer.name, (_POOLS[layer.pooling] if layer.kind == "pool" else _OP_TYPES[layer.kind],))]


def _rename_tensors(model: ModelProto) -> None:
    graph = model.graph
    names = {node.output[0]: node.name for node in graph.node} | {graph.output[0].name: graph.output[0].name}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name not in names and not name.endswith((".weight", ".bias")) and name != graph.input[0].name:
                names[name] = f"{node.name}.{'shape' if node.op_type == 'Reshape' else f'constant{index}'}"
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about torchvision, its own deprecations and a fallback that is intended here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
