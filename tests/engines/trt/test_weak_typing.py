"""Before TensorRT 10.12 types are hints: which layers of an FP16 network are pinned to FP32, and what was built.

The layers are named and typed as the parser of 8.6 does it (its registerLayer, registerTensor, and its importers of
Gemm and Softmax, which add a second layer that has no name): every floating-point output is called FLOAT.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from gpu_here import why_no_tensorrt_rtx
from imagined_tensorrt import imagined

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.engines.trt.inspector import check_half, is_half, layer_types
from alexdeploy.engines.trt.library import load_library
from alexdeploy.engines.trt.network import _pin_float32, allow_precision, read_network
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.tensorrt import engine_graph, float32_nodes, opset_for

KINDS = {
    "ArgMax": "TOPK",
    "Cast": "CAST",
    "Conv": "CONVOLUTION",
    "Div": "ELEMENTWISE",
    "Gemm": "MATRIX_MULTIPLY",
    "LRN": "LRN",
    "MaxPool": "POOLING",
    "Mul": "ELEMENTWISE",
    "ReduceMean": "REDUCE",
    "Relu": "ACTIVATION",
    "Softmax": "SOFTMAX",
    "Sub": "ELEMENTWISE",
}


LIBRARY = imagined("8.6.0")


@dataclass
class Layer:
    name: str
    type: str
    output: str
    precision: str = ""
    output_types: dict[int, str] = field(default_factory=dict)

    def get_output(self, index: int) -> SimpleNamespace:
        assert index == 0
        return SimpleNamespace(name=self.output, dtype="DataType.FLOAT")

    def set_output_type(self, index: int, dtype: str) -> None:
        self.output_types[index] = dtype


class Network:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.layers = [layer for node in model.graph.node for layer in _parsed(node)]
        self.num_layers = len(self.layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def pinned(self) -> set[str]:
        for layer in self.layers:
            assert (layer.precision, layer.output_types) in [("", {}), ("DataType.FLOAT", {0: "DataType.FLOAT"})]
        return {layer.name for layer in self.layers if layer.precision}


def _parsed(node: onnx.NodeProto) -> list[Layer]:
    kind = f"LayerType.{KINDS.get(node.op_type, 'SHUFFLE')}"
    if node.op_type == "Gemm":
        bias = Layer("(Unnamed Layer* 7) [ElementWise]", "LayerType.ELEMENTWISE", node.output[0])
        return [Layer(node.name, kind, "(Unnamed Layer* 6) [Matrix Multiply]_output"), bias]
    if node.op_type == "Softmax":
        reshape = Layer("(Unnamed Layer* 9) [Shuffle]", "LayerType.SHUFFLE", node.output[0])
        return [Layer(node.name, kind, "(Unnamed Layer* 8) [SoftMax]_output"), reshape]
    return [Layer(node.name, kind, node.output[0])]


def _graph(folder: ModelFolder, num_views: int = 10) -> onnx.ModelProto:
    spec = folder.spec()
    graph = load_graph(folder, "fp16", spec).model
    return engine_graph(graph, spec, num_views, folder.mean_image(spec), opset_for(8))


def _allow(model: onnx.ModelProto, precision: str) -> tuple[Network, list[str]]:
    network, flags = Network(model), []
    config = SimpleNamespace(set_flag=flags.append)
    allow_precision(LIBRARY, network, config, precision, model.SerializeToString())
    return network, flags


AROUND = {"deploy/centered", "deploy/softmax", "probabilities", "deploy/answers"}
"""What the deployment graph computes in FP32 around the network: the mean image, and probabilities and answers."""


def test_what_is_fp32_in_the_graph_is_pinned_and_nothing_else(tiny_model: ModelFolder) -> None:
    model = _graph(tiny_model)
    network, flags = _allow(model, "fp16")
    lrn = {node.name for node in model.graph.node if node.op_type == "LRN"}
    assert len(lrn) == 2
    assert network.pinned() == AROUND | lrn
    assert flags == ["BuilderFlag.FP16", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"]


def test_a_product_that_fp16_cannot_hold_is_pinned_with_its_bias(tiny_model: ModelFolder) -> None:
    model = _graph(tiny_model, 1)
    product = next(node for node in model.graph.node if node.op_type == "Gemm")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in product.input[1:]:
        values = onnx.numpy_helper.to_array(tensors[name]).astype("float32")
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
    to_fp32 = onnx.helper.make_node("Cast", [product.input[0]], ["wide"], "to_fp32", to=onnx.TensorProto.FLOAT)
    to_fp16 = onnx.helper.make_node("Cast", ["sums"], [product.output[0]], "to_fp16", to=onnx.TensorProto.FLOAT16)
    product.input[0], product.output[0] = "wide", "sums"
    place = list(model.graph.node).index(product)
    model.graph.node.insert(place + 1, to_fp16)
    model.graph.node.insert(place, to_fp32)
    onnx.checker.check_model(model, full_check=True)
    network, _ = _allow(model, "fp16")
    pinned = [(layer.name, layer.output) for layer in network.layers if layer.precision]
    assert (product.name, "(Unnamed Layer* 6) [Matrix Multiply]_output") in pinned
    assert ("(Unnamed Layer* 7) [ElementWise]", "sums") in pinned
    assert len([name for name, _ in pinned if name.startswith("(Unnamed")]) == 1


def test_a_node_without_a_name_is_found_by_the_name_that_the_parser_gives_its_layer(tiny_model: ModelFolder) -> None:
    model = _graph(tiny_model, 1)
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.name = ""
    network = Network(model)
    (layer,) = (layer for layer in network.layers if layer.type == "LayerType.SOFTMAX")
    layer.name = f"node_of_{softmax.output[0]}"
    config = SimpleNamespace(set_flag=lambda flag: None)
    allow_precision(LIBRARY, network, config, "fp16", model.SerializeToString())
    assert layer.name in network.pinned()


class UntypedLayer:
    """A layer of a real network whose output is called FLOAT, and which may be pinned."""

    def __init__(self, layer: Any, floating: object) -> None:
        self.name, self.type, self.precision = layer.name, layer.type, None
        output = layer.get_output(0)
        self.own_type = output.dtype
        self._output = SimpleNamespace(name=output.name, dtype=floating if self.is_floating else output.dtype)

    @property
    def is_floating(self) -> bool:
        return self.own_type.name in ("FLOAT", "HALF")

    def get_output(self, index: int) -> SimpleNamespace:
        return self._output

    def set_output_type(self, index: int, dtype: object) -> None:
        assert (index, dtype) == (0, self.precision)


@pytest.mark.skipif(why_no_tensorrt_rtx() is not None, reason=str(why_no_tensorrt_rtx()))
def test_the_real_parser_gives_the_pinned_layers_fp32_and_the_others_fp16(tiny_model: ModelFolder) -> None:
    library = load_library("tensorrt-rtx")
    model = _graph(tiny_model)
    parsed = read_network(library, library.api.Builder(library.log), model.SerializeToString())
    layers = [UntypedLayer(parsed.get_layer(index), library.api.DataType.FLOAT) for index in range(parsed.num_layers)]
    network = SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)
    _pin_float32(library, network, float32_nodes(model))
    kinds = set(KINDS.values()) - {"CAST"}
    computing = [layer for layer in layers if layer.is_floating and layer.type.name in kinds]
    # In a strongly typed network, as this one is, every layer knows its type.
    assert {layer.own_type.name for layer in computing} == {"FLOAT", "HALF"}
    for layer in computing:
        assert (layer.precision is not None) == (layer.own_type.name == "FLOAT"), layer.name
    assert {layer.name for layer in layers if layer.precision is not None} <= {layer.name for layer in computing}


def test_in_int8_no_layer_is_pinned_because_fp16_is_not_allowed(tiny_model: ModelFolder) -> None:
    network, flags = _allow(_graph(tiny_model), "int8")
    assert (network.pinned(), flags) == (set(), ["BuilderFlag.INT8"])


def _inspected(*types: str, batch: str = "N/A due to dynamic shapes", weights: bool = True) -> str:
    """The inspector's JSON of a convolution for each type, between layers of other kinds."""
    layers: list[object] = [{"Name": "pool1", "LayerType": "CaskPooling", "Outputs": [{"Format/Datatype": "Half"}]}]
    for number, each in enumerate(types, 1):
        tensor = {"Name": "x", "Dimensions": [-1, 96, 55, 55], "Format/Datatype": batch}
        layer = {"Name": f"conv{number} + relu{number}", "LayerType": "CaskConvolution", "Inputs": [tensor]}
        layers.append({**layer, "Outputs": [tensor], "ParameterType": "Convolution"})
        if weights:
            layers[-1]["Weights"] = {"Type": each, "Count": 34848}  # type: ignore[index]
    return json.dumps({"Layers": [*layers, "a layer that only has a name"], "Bindings": ["images"]})


def test_an_fp16_engine_whose_convolutions_are_all_fp32_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"made none of the 5 convolutions of x\.engine FP16") as caught:
        check_half(_inspected(*["Float"] * 5), Path("models/x.engine"))
    assert "10.12" in caught.value.hint
    check_half(_inspected("Float", "Half"), Path("x.engine"))


@pytest.mark.parametrize("said", ["Half", "Channel major FP16 format where channel % 8 == 0"])
def test_where_the_weights_have_no_type_that_of_the_output_counts(said: str) -> None:
    for each, half in ((said, True), ("Row major linear FP32", False)):
        (found,) = layer_types(_inspected("", batch=each, weights=False), "Convolution").values()
        assert (found, is_half(found)) == (each, half)


def test_without_a_layer_that_is_called_a_convolution_nothing_is_said() -> None:
    check_half(
        json.dumps({"Layers": ["conv1", {"Name": "{ForeignNode[conv1...fc8]}", "LayerType": "Myelin"}]}), Path("x")
    )
