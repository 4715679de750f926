"""The machine's ceiling: a network of large matrix products only, run like any other model.

1x1 convolutions are matrix products of [positions, channels] and [channels, channels]. As a model folder they run
through the same engines, in each precision, as the measured network. Everything else (pixels, the first layer and the
last ones) is included in the time, but small beside so many products.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from alexdeploy.core.errors import DeviceError
from alexdeploy.core.files import sha256_bytes, sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Architecture, Conv, ModelSpec, Pooling, Precision, Preprocessing
from alexdeploy.export.fp16 import to_fp16
from alexdeploy.export.quantize.int8 import to_int8
from alexdeploy.graphs.files import Source, serialize, write_graph
from alexdeploy.network.layers import Layer, plan_layers

_CHANNELS = 1024
_NUM_PRODUCTS = 11
_POOL = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class CeilingSize:
    """The work of one call of an engine: `batch_size` images, each with `side` x `side` positions."""

    side: int
    batch_size: int


CPU_SIZE = CeilingSize(side=32, batch_size=2)
"""2.1 GFLOP per product and image, 47 per call. Everything else takes 1 % of it in FP32 and 1.5 % in INT8."""

GPU_SIZE = CeilingSize(side=128, batch_size=4)
"""1.5 TFLOP a call, milliseconds on the fastest GPUs: with less work, launches and pixel copies would count."""

_LARGEST = 16.0
"""|x| that maps to 127: activations are sums of 1,024 random products, scaled to a deviation of about 1."""


def make_ceiling(path: Path, precisions: tuple[Precision, ...], size: CeilingSize = CPU_SIZE) -> ModelFolder:
    """Write the model folder, with a graph for each precision that uses one.

    FP16 and INT8 graphs are made from FP32 with onnxruntime; they are omitted if it is not installed.
    """
    spec = _spec(size)
    assert spec.architecture is not None
    plan = plan_layers(spec.architecture, spec.num_classes)
    rng = np.random.default_rng(0)
    weights: dict[str, NDArray[np.float32]] = {}
    for layer in plan:
        if layer.weight_shape is not None:
            # Relu halves the mean square: a variance of 2 / inputs preserves it (He et al. 2015).
            deviation = np.float32((2 / np.prod(layer.weight_shape[1:])) ** 0.5)
            weights[f"{layer.name}.weight"] = deviation * rng.standard_normal(layer.weight_shape, np.float32)
            weights[f"{layer.name}.bias"] = np.zeros(layer.outputs, np.float32)
    folder = ModelFolder(path)
    path.mkdir(parents=True)
    save_file(weights, folder.weights_path)
    folder.write_spec(spec)
    weights_sha256 = sha256_file(folder.weights_path)
    network = _graph(plan, weights, size.side)
    content = serialize(
        network, spec, Source(name=folder.weights_path.name, sha256=weights_sha256, weights_sha256=weights_sha256)
    )
    write_graph(folder, "fp32", content)
    source = Source(name=folder.onnx_path().name, sha256=sha256_bytes(content), weights_sha256=weights_sha256)
    with suppress(DeviceError):
        if "fp16" in precisions:
            write_graph(folder, "fp16", serialize(to_fp16(network), spec, source))
        if "int8" in precisions:
            thresholds = {name: _LARGEST for node in network.graph.node for name in node.input[:1]}
            quantized = to_int8(network, thresholds, spec.preprocessing)
            write_graph(folder, "int8", serialize(quantized, spec, source))
    return folder


def num_flops(spec: ModelSpec, num_views: int) -> int | None:
    """Floating-point operations per image, two for each multiply-accumulate; None for an unknown architecture.

    Counts convolutions and fully connected layers, the operations comparable with a matrix product. Products with the
    zeros around an image, a tenth of those in a 3x3 convolution of 13 x 13 positions, are not counted: libraries skip
    them, and counting them would make such a layer look faster than any matrix product.
    """
    if spec.members:
        members = [num_flops(each, num_views) for each in spec.networks]
        return None if None in members else sum(each or 0 for each in members)
    if spec.architecture is None:
        return None
    macs, side = 0, spec.architecture.input
    for layer in plan_layers(spec.architecture, spec.num_classes):
        if layer.kind == "conv":
            macs += layer.outputs * layer.inputs // layer.groups * _num_taps(layer, side) ** 2
        else:
            macs += layer.macs
        if len(layer.output_shape) == 3:
            side = layer.output_shape[-1]
    return 2 * num_views * macs


def _num_taps(layer: Layer, side: int) -> int:
    """Number of inputs inside an image of `side`, summed over all positions along one side."""
    starts = range(-layer.padding, -layer.padding + layer.stride * layer.output_shape[-1], layer.stride)
    return sum(0 <= start + offset < side for start in starts for offset in range(layer.kernel))


def ceiling_flops(size: CeilingSize) -> int:
    """`num_flops` of an image of this network, which has one view."""
    flops = num_flops(_spec(size), 1)
    assert flops is not None
    return flops


def ceiling_size(device: str) -> CeilingSize:
    """The size large enough for an engine on `device`, as EngineInfo names it."""
    return GPU_SIZE if "cuda" in device else CPU_SIZE


def _spec(size: CeilingSize) -> ModelSpec:
    convs = [Conv(channels=_CHANNELS, kernel=1) for _ in range(_NUM_PRODUCTS)]
    architecture = Architecture(
        input=size.side,
        pooling=Pooling(kernel=_POOL, stride=_POOL),
        # The first layer makes channels of colours; pooling leaves few features, so the last layer is small.
        convs=(*convs, Conv(channels=_CHANNELS, kernel=1, pool=True)),
        hidden=(),
    )
    return ModelSpec(
        name="ceiling",
        classes=("a", "b"),
        preprocessing=Preprocessing(mean=(128.0,) * 3, std=(64.0,) * 3, crop=size.side),
        architecture=architecture,
    )


def _graph(plan: tuple[Layer, ...], weights: dict[str, NDArray[np.float32]], side: int) -> onnx.ModelProto:
    nodes, name = [], "images"
    for layer in plan:
        parameters = [f"{layer.name}.weight", f"{layer.name}.bias"]
        output = "logits" if layer is plan[-1] else layer.name
        if layer.kind == "conv":
            node = helper.make_node("Conv", [name, *parameters], [output], kernel_shape=[1, 1])
        elif layer.kind == "activation":
            node = helper.make_node("Relu", [name], [output])
        elif layer.kind == "pool":
            sides = [layer.kernel] * 2
            node = helper.make_node("MaxPool", [name], [output], kernel_shape=sides, strides=[layer.stride] * 2)
        elif layer.kind == "fc":
            node = helper.make_node("Gemm", [name, *parameters], [output], transB=1)
        else:
            assert layer.kind == "flatten", layer.kind
            node = helper.make_node("Flatten", [name], [output])
        node.name = layer.name
        nodes.append(node)
        name = output
    graph = helper.make_graph(
        nodes,
        "ceiling",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
