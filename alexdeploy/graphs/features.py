"""Where a network is cut to give the features of a layer, by the layer's name.

With a `Cut`, `deployment_graph` ends at that layer: uint8 [N, 256, 256, 3] -> `features` float32 [N, D], the mean over
the views. Every engine opens such a graph for `EngineOptions(layer=...)`; `Predictions.probabilities` is then the
features. To see the maps of a photograph:

    with open_engine(folder, "onnxruntime", EngineOptions(layer="conv5")) as engine:
        maps = engine.run(image[None]).probabilities.reshape(-1, *engine.info.feature_shape)
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from alexdeploy.core.errors import UsageError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.network.feature_names import feature_layer, refuse_ensemble
from alexdeploy.network.layers import Layer, plan_layers

FEATURES = "features"
"""The output of a deployment graph that is cut."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """The tensor of a network that is its output, and the shape of one view's part of it: (C, H, W) or (features,)."""

    tensor: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Values of one image."""
        return math.prod(self.shape)


def find_cut(network: onnx.ModelProto, spec: ModelSpec, name: str) -> Cut:
    """The cut of a network (`images` float32 [N, 3, H, W] -> `logits`) after the layer that `feature_name` names.

    Raises UsageError if there is no such layer, or if it does not give floating-point values for each image.
    """
    refuse_ensemble(spec)
    if spec.architecture is not None:
        layer = feature_layer(spec, name)
        plan = plan_layers(spec.architecture, spec.num_classes)
        return Cut(tensor=layer_tensors(network, plan)[layer.name], shape=layer.output_shape)
    return _inferred_cut(network, name)


def layer_tensors(model: onnx.ModelProto, plan: tuple[Layer, ...]) -> dict[str, str]:
    """The name of each layer's output tensor, by layer name, in order, without dropout."""
    return {layer.name: _tensor_of(layer, plan, model) for layer in plan if layer.kind != "dropout"}


def _tensor_of(layer: Layer, plan: tuple[Layer, ...], model: onnx.ModelProto) -> str:
    if layer is plan[-1]:
        return str(model.graph.output[0].name)
    merged = f"{layer.name}_merge"
    return merged if any(node.name == merged for node in model.graph.node) else layer.name


def _inferred_cut(network: onnx.ModelProto, name: str) -> Cut:
    """A tensor of a network without a plan, whose shape for one image is inferred."""
    single = deepcopy(network)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    single.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    values = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    made = [output for node in network.graph.node for output in node.output if output in values]
    if name not in made:
        known = [each for each in made if values[each].elem_type in _FLOATS]
        raise UsageError(f"no tensor is called {name!r}", hint=f"The last of them: {', '.join(known[-12:])}")
    sizes = [dim.dim_value for dim in values[name].shape.dim]
    if values[name].elem_type not in _FLOATS or len(sizes) < 2 or sizes[0] != 1 or not all(sizes):
        raise UsageError(
            f"{name} does not give floating-point values of a known number for each image: its shape is "
            f"{sizes}, of type {TensorProto.DataType.Name(values[name].elem_type)}",
            hint="Choose another layer.",
        )
    return Cut(tensor=name, shape=tuple(sizes[1:]))
