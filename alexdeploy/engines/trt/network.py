"""Convert a deployment graph to the network of a library, and set its types.

Precision is a property of the graph. From TensorRT 10.12 on the network is strongly typed: every node computes in the
type that it has in the graph. Before 10.12, types are hints: flags allow FP16 or INT8, and nodes that are FP32 in the
graph, such as each LRN, are pinned to FP32. TF32 is always off.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx

from alexdeploy.core.errors import ModelError
from alexdeploy.engines.trt.library import Library
from alexdeploy.graphs.tensorrt import Float32Nodes, float32_nodes

if TYPE_CHECKING:
    import tensorrt as trt

_NO_OPERATOR = "there is no such operator in it"


def read_network(library: Library, builder: trt.Builder, content: bytes) -> trt.INetworkDefinition:
    """The network of a serialized graph. Raises ModelError if the library cannot read it."""
    flags = 0
    if library.interface < (10, 0):
        flags = 1 << int(library.api.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    elif library.is_strongly_typed:
        flags = 1 << int(library.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(flags)
    parser: trt.OnnxParser = library.api.OnnxParser(network, library.log)
    if not parser.parse(content):
        raise _parse_error(library, parser)
    return network


def _parse_error(library: Library, parser: trt.OnnxParser) -> ModelError:
    """The error with the parser's reasons, by node. Names operators that the library does not support."""
    told: dict[str, None] = {}
    is_unsupported = False
    for index in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(index)
        reason = _reason(error.desc())
        is_unsupported = is_unsupported or reason == _NO_OPERATOR or error.code().name.startswith("UNSUPPORTED")
        told[f"{_node(library, error)}: {reason}"] = None
    library.take_log()
    what = "has a node that it does not support" if is_unsupported else "cannot be read"
    return ModelError(
        f"{library}: the graph {what}: {'; '.join(list(told)[:3]) or 'no reason given'}",
        hint="Run the model with --backend onnxruntime, or build with a later TensorRT.",
    )


def _node(library: Library, error: trt.ParserError) -> str:
    if error.node() < 0:
        return "the file"
    place = f"node {error.node()}"
    if library.interface < (10, 0):
        return place
    return f"{error.node_name() or place} ({error.node_operator()})"


def _reason(said: str) -> str:
    """What a parser said without its source code. It may be a condition, a text, or several lines."""
    if said == "false" or "Plugin not found" in said:
        return _NO_OPERATOR
    lines = [line for line in said.splitlines() if line and not line.startswith("Invalid Node - ")]
    text = lines[0] if lines else "no reason given"
    for pattern in (r'&& "(.+)"$', r"^Assertion failed: .*?: (.+)$", r"Error \((.+?)(?: +In \w+ at \S+)?\)$"):
        if match := re.search(pattern, text):
            return match[1]
    return text


def allow_precision(
    library: Library, network: trt.INetworkDefinition, config: trt.IBuilderConfig, precision: str, content: bytes
) -> None:
    """Weak typing, before TensorRT 10.12: allow the types of the graph `content`, and keep its FP32 nodes in FP32."""
    if precision == "int8":
        # Q/DQ mark the INT8 layers; all others stay FP32, because FP16 is not allowed.
        config.set_flag(library.api.BuilderFlag.INT8)
    elif precision == "fp16":
        config.set_flag(library.api.BuilderFlag.FP16)
        config.set_flag(library.api.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        _pin_float32(library, network, float32_nodes(onnx.load_from_string(content)))


def _pin_float32(library: Library, network: trt.INetworkDefinition, wanted: Float32Nodes) -> None:
    """Pin FP32 layers: casts to FP32 around an LRN, or near FP16's limit, are hints that a tactic may ignore.

    The graph decides, not the type of a layer's output: in a weakly typed network every floating-point tensor may be
    called FLOAT until the engine is built. The parser names the main layer of a node after the node, and the last
    one's output after the node's output.
    """
    computing = (
        library.api.LayerType.ACTIVATION,
        library.api.LayerType.CONVOLUTION,
        library.api.LayerType.ELEMENTWISE,
        library.api.LayerType.LRN,
        library.api.LayerType.MATRIX_MULTIPLY,
        library.api.LayerType.POOLING,
        library.api.LayerType.REDUCE,
        library.api.LayerType.SOFTMAX,
        library.api.LayerType.TOPK,
        library.api.LayerType.UNARY,
    )
    for index in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(index)
        output: trt.ITensor = layer.get_output(0)
        is_float = output.dtype in (library.api.DataType.FLOAT, library.api.DataType.HALF)
        if layer.type in computing and is_float and (layer.name in wanted.nodes or output.name in wanted.tensors):
            layer.precision = library.api.DataType.FLOAT
            layer.set_output_type(0, library.api.DataType.FLOAT)
