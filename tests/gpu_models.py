"""Models for checks on a GPU machine that has no torch: the network written in ONNX straight from its plan."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import load_recipe
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.export.export import ExportOptions, export_model
from alexdeploy.export.quantize.quantize import Budget
from alexdeploy.graphs.files import Source, serialize, write_graph
from alexdeploy.graphs.runner import run_graph
from alexdeploy.images.sample import write_photographs
from alexdeploy.network.layers import Layer, plan_layers


def make_random_model(
    path: Path, overrides: tuple[str, ...] = (), num_classes: int = 1000, seed: int = 0
) -> ModelFolder:
    """A folder with `alexnet` in FP32, FP16 and INT8, of random weights whose answers differ from image to image.

    It is like an imported model: graphs without weights.safetensors. Ranges are measured on rendered photographs.
    """
    architecture = load_recipe("alexnet", overrides).architecture
    preprocessing = Preprocessing(mean=(120.0, 115.0, 105.0), std=(60.0, 60.0, 60.0), crop=architecture.input)
    spec = ModelSpec(
        name=path.name,
        classes=tuple(f"class-{index}" for index in range(num_classes)),
        preprocessing=preprocessing,
        architecture=architecture,
        recipe="alexnet",
    )
    model = _network(plan_layers(architecture, num_classes), architecture.input, seed)
    _spread_answers(model, architecture.input)
    folder = ModelFolder(path)
    folder.write_spec(spec)
    write_graph(folder, "fp32", serialize(model, spec, Source(name="random", sha256="0" * 64)))
    photographs = write_photographs(path / "photographs", num=64)
    before = Path.cwd()
    # Ranges are written to the working folder.
    os.chdir(path)
    try:
        options = ExportOptions(
            fp16=True, int8=True, calibrate=str(photographs.resolve()), budget=Budget(max_drop=100.0)
        )
        export_model(ModelFolder(Path.cwd()), options)
    finally:
        os.chdir(before)
    return folder


def _network(plan: tuple[Layer, ...], size: int, seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    nodes, weights, name, shape = [], [], "images", (3, size, size)

    def add(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(key: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value, key))
        return key

    def folded(source: str, output: str, towers: int, maps: tuple[int, ...]) -> str:
        channels, height, width = maps
        return add(
            "Reshape", [source, constant(f"{output}.shape", np.array([-1, channels // towers, height, width]))], output
        )

    for layer in plan:
        last = layer is plan[-1]
        output = "logits" if last else layer.name
        if layer.weight_shape is not None:
            fan_in = int(np.prod(layer.weight_shape[1:]))
            weight = rng.normal(0, (2 / fan_in) ** 0.5, layer.weight_shape).astype(np.float32)
            bias = rng.uniform(-0.1, 0.1, layer.outputs).astype(np.float32)
            inputs = [name, constant(f"{layer.name}.weight", weight), constant(f"{layer.name}.bias", bias)]
            if layer.kind == "conv":
                square = {
                    "kernel_shape": [layer.kernel] * 2,
                    "strides": [layer.stride] * 2,
                    "pads": [layer.padding] * 4,
                }
                name = add("Conv", inputs, output, group=layer.groups, **square)
            else:
                name = add("Gemm", inputs, output, transB=1)
        elif layer.kind == "activation":
            name = add("Relu", [name], output)
        elif layer.kind == "pool":
            name = add("MaxPool", [name], output, kernel_shape=[layer.kernel] * 2, strides=[layer.stride] * 2)
        elif layer.kind == "lrn" and layer.lrn is not None:
            lrn = layer.lrn
            if layer.groups > 1:
                name = folded(name, f"{layer.name}_split", layer.groups, shape)
            name = add("LRN", [name], output, size=lrn.size, alpha=lrn.alpha, beta=lrn.beta, bias=lrn.k)
            if layer.groups > 1:
                name = folded(name, f"{layer.name}_merge", 1, shape)
        elif layer.kind == "flatten":
            name = add("Flatten", [name], output, axis=1)
        shape = layer.output_shape
    graph = helper.make_graph(
        nodes,
        "alexnet",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", plan[-1].outputs])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _spread_answers(model: onnx.ModelProto, size: int) -> None:
    """Scale and shift the last layer so that its logits have mean 0 and deviation 2 over pictures of blocks."""
    coarse = np.random.default_rng(1).integers(0, 256, (16, 3, 8, 8)).repeat(32, axis=2).repeat(32, axis=3)
    inputs = ((coarse[:, :, :size, :size] - 115.0) / 60.0).astype(np.float32)
    (logits,) = run_graph(model, inputs)
    last = model.graph.node[-1]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(tensors[name]) for name in last.input[1:])
    factor = 2.0 / np.maximum(logits.std(axis=0), 1e-6)
    changed = (weight * factor[:, None], (bias - logits.mean(axis=0)) * factor)
    for name, value in zip(last.input[1:], changed, strict=True):
        tensors[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
