"""Convert a deployment graph to a TensorRT network, and set its types. Needs tensorrt and pycuda.

Precision is a property of the graph. From TensorRT 10.12 on the network is strongly typed: every node computes in the
type that it has in the graph. Before 10.12, types are hints: flags allow FP16 or INT8, and nodes that are FP32 in the
graph, such as each LRN, are pinned to FP32. TF32 is always off.
"""

from __future__ import annotations

import onnx

from alexdeploy.core.errors import ModelError, first_line

# Import this before the package: its error has the install instructions.
from alexdeploy.engines.trt.context import LOG
from alexdeploy.graphs.tensorrt import Float32Nodes, float32_nodes

import tensorrt as trt  # isort: skip

VERSION = tuple(int(part) for part in trt.__version__.split(".")[:2])

_STRONGLY_TYPED_FROM = (10, 12)
"""In earlier versions, strongly typed networks lacked layers."""


def is_strongly_typed() -> bool:
    return VERSION >= _STRONGLY_TYPED_FROM


def read_network(builder: trt.Builder, content: bytes) -> trt.INetworkDefinition:
    """The network of a serialized graph. Raises ModelError if TensorRT cannot read it."""
    flags = 0
    if VERSION[0] < 10:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    elif is_strongly_typed():
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(flags)
    parser: trt.OnnxParser = trt.OnnxParser(network, LOG)
    if not parser.parse(content):
        raise _parse_error(parser)
    return network


def _parse_error(parser: trt.OnnxParser) -> ModelError:
    """The error with the parser's messages, by node. Names operators that TensorRT does not support."""
    told = []
    is_unsupported = False
    for index in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(index)
        is_unsupported = is_unsupported or error.code() == trt.ErrorCode.UNSUPPORTED_NODE
        told.append(f"node {error.node()}: {first_line(Exception(error.desc()))}")
    LOG.take()
    what = "has an operator that it does not support" if is_unsupported else "cannot be read"
    return ModelError(
        f"TensorRT {trt.__version__}: the graph {what}: {'; '.join(told[:3]) or 'no reason given'}",
        hint="Run the model with --backend onnxruntime, or build with a later TensorRT.",
    )


def allow_precision(
    network: trt.INetworkDefinition, config: trt.IBuilderConfig, precision: str, content: bytes
) -> None:
    """Weak typing, before TensorRT 10.12: allow the types of the graph `content`, and keep its FP32 nodes in FP32."""
    if precision == "int8":
        # Q/DQ mark the INT8 layers; all others stay FP32, because FP16 is not allowed.
        config.set_flag(trt.BuilderFlag.INT8)
    elif precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        _pin_float32(network, float32_nodes(onnx.load_from_string(content)))


def _pin_float32(network: trt.INetworkDefinition, wanted: Float32Nodes) -> None:
    """Pin FP32 layers: casts to FP32 around an LRN, or near FP16's limit, are hints that a tactic may ignore.

    The graph decides, not the type of a layer's output: in a weakly typed network every floating-point tensor may be
    called FLOAT until the engine is built. The parser names the main layer of a node after the node, and the last
    one's output after the node's output.
    """
    computing = (
        trt.LayerType.ACTIVATION,
        trt.LayerType.CONVOLUTION,
        trt.LayerType.ELEMENTWISE,
        trt.LayerType.LRN,
        trt.LayerType.MATRIX_MULTIPLY,
        trt.LayerType.POOLING,
        trt.LayerType.REDUCE,
        trt.LayerType.SOFTMAX,
        trt.LayerType.TOPK,
        trt.LayerType.UNARY,
    )
    for index in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(index)
        output: trt.ITensor = layer.get_output(0)
        is_float = output.dtype in (trt.DataType.FLOAT, trt.DataType.HALF)
        if layer.type in computing and is_float and (layer.name in wanted.nodes or output.name in wanted.tensors):
            layer.precision = trt.DataType.FLOAT
            layer.set_output_type(0, trt.DataType.FLOAT)
