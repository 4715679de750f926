"""The deployment graph: uint8 [N, 256, 256, 3] -> probabilities float32 [N, classes], derived in memory.

It contains mean subtraction, the one, five or ten views, the network, softmax and the average over the views.
Every backend gets the same image, and none has its own preprocessing.
"""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec
from alexdeploy.graphs.answers import BY_VIEW, answers, mean
from alexdeploy.graphs.answers import PREFIX as PREFIX
from alexdeploy.graphs.edit import needed_tensors, opset_of, prune
from alexdeploy.graphs.ensemble import ensemble_graph
from alexdeploy.graphs.features import FEATURES, Cut
from alexdeploy.images.crops import view_boxes

VIEWS = PREFIX + "views"
"""The network's input inside the deployment graph: [V * N, 3, crop, crop], the first view of all images first.

float32, or int8 if the network begins with QuantizeLinear; views cut with channels last are dequantized before this
tensor. `openvino_graph` may fold it to [V * N, 3 * stride, crop, width / stride].
"""

CUT = PREFIX + "cut"
"""With channels last: the views before they are transposed, [V * N, crop, crop, 3]."""

LOGITS = PREFIX + "logits"
"""The network's output inside the deployment graph: float32 [V * N, C]."""

PIXELS = PREFIX + "whole_pixels"
"""A tensor inside an INT8 network that undoes the preprocessing: pixel - 128."""


def deployment_graph(
    network: onnx.ModelProto,
    spec: ModelSpec,
    num_views: int,
    mean_image: NDArray[np.float32] | None = None,
    *,
    channels_last: bool = False,
    cut: Cut | None = None,
) -> onnx.ModelProto:
    """Add preprocessing and averaging to a plain network (`images` float32 [N, 3, H, W] -> `logits` [N, C]).

    Of an ensemble: the graph of each member, and the mean over the members (`ensemble_graph`). Outputs are
    `probabilities` float32 [N, C] and `view_classes` int32 [N, V], the top class of each view.
    `mean_image` is what `ModelFolder.mean_image` returns. `channels_last` cuts the views in the input's layout and
    transposes at the end, for runtimes whose convolutions read channels last. With a `cut`, the graph ends there, and
    its one output is `features` float32 [N, cut.size], the mean over the views. Raises UsageError for an unknown number
    of views, ModelError if the network's input and output do not match the spec.
    """
    if spec.members:
        derive = partial(deployment_graph, channels_last=channels_last)
        return ensemble_graph(network, spec, num_views, mean_image, derive)
    check_network(network, spec)
    graph = _Graph(channels_last=channels_last)
    inside = list(network.graph.node)
    names = {network.graph.input[0].name: VIEWS, network.graph.output[0].name: LOGITS}
    if any(PIXELS in node.output for node in inside):
        # The network undoes the normalization, which leaves the same whole numbers: skip both.
        undone = needed_tensors(network.graph, PIXELS)
        inside = [node for node in inside if not undone.intersection(node.output)]
        names[PIXELS] = VIEWS
        pixels = graph.shifted(graph.pixels(spec))
    else:
        pixels = graph.normalized(graph.pixels(spec), spec, mean_image)
    # Quantizing and cutting commute: quantize each pixel once, not once per view.
    quantize = _first(inside, names, "QuantizeLinear", network.graph)
    if quantize is not None:
        pixels = graph.node("QuantizeLinear", [pixels, *quantize.input[1:]], PREFIX + "quantized")
    views = graph.views(pixels, spec.preprocessing.crop, num_views)
    if channels_last:
        # OpenVINO 2026.4 does not run a convolution in INT8 if a Transpose is between it and its DequantizeLinear.
        dequantize = _first(inside, names, "DequantizeLinear", network.graph)
        if dequantize is not None:
            views = graph.node("DequantizeLinear", [views, *dequantize.input[1:]], PREFIX + "dequantized")
        views = graph.node("Transpose", [views], VIEWS, perm=[0, 3, 1, 2])
    assert views == VIEWS
    for original in inside:
        node = deepcopy(original)
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        graph.nodes.append(node)
    opset = opset_of(network)
    if cut is None:
        graph.probabilities(LOGITS, num_views, spec.num_classes, opset)
        outputs = [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", spec.num_classes]),
            helper.make_tensor_value_info("view_classes", TensorProto.INT32, ["N", num_views]),
        ]
    else:
        graph.features(names.get(cut.tensor, cut.tensor), num_views, cut.size, opset)
        outputs = [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", cut.size])]
    deployed = helper.make_graph(
        graph.nodes,
        f"{spec.name}-{num_views}-views",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", IMAGE_SIZE, IMAGE_SIZE, 3])],
        outputs,
    )
    model = helper.make_model(
        deployed,
        opset_imports=network.opset_import,
        ir_version=network.ir_version,
        producer_name="alexdeploy",
    )
    # Last, because each step before would copy the weights.
    model.graph.initializer.extend([*network.graph.initializer, *graph.constants])
    prune(model.graph)
    return model


def _first(inside: list[NodeProto], names: dict[str, str], op: str, network: onnx.GraphProto) -> NodeProto | None:
    """Remove the only reader of the views from `inside` if it is an `op` of one scale; its output becomes the views.

    A node with scales along an axis, or with a type in an attribute, stays where it is: axes differ where the node
    moves to, and its attributes are not copied.
    """
    readers = [node for node in inside if VIEWS in (names.get(name) for name in node.input)]
    if [node.op_type for node in readers] != [op]:
        return None
    scales = [tensor for tensor in network.initializer if tensor.name == readers[0].input[1]]
    if not scales or math.prod(scales[0].dims) != 1 or not all(readers[0].input) or len(readers[0].input) != 3:
        return None
    inside.remove(readers[0])
    names[readers[0].output[0]] = VIEWS
    return readers[0]


def check_network(network: onnx.ModelProto, spec: ModelSpec) -> None:
    """Raise ModelError unless the graph is float32 [N, 3, crop, crop] -> [N, classes] with one input and one output."""
    initializers = {tensor.name for tensor in network.graph.initializer}
    inputs = [value for value in network.graph.input if value.name not in initializers]
    if len(inputs) != 1 or len(network.graph.output) != 1:
        raise ModelError(
            f"the graph has {len(inputs)} inputs and {len(network.graph.output)} outputs, expected one of each"
        )
    crop = spec.preprocessing.crop
    for value, expected in ((inputs[0], [3, crop, crop]), (network.graph.output[0], [spec.num_classes])):
        tensor = value.type.tensor_type
        found = [dim.dim_value or None for dim in tensor.shape.dim]
        if tensor.elem_type != TensorProto.FLOAT or len(found) != len(expected) + 1 or found[0] is not None:
            raise ModelError(
                f"{value.name} is {describe_value(value)}, expected float32 [N, {', '.join(map(str, expected))}]"
            )
        if any(have not in (None, want) for have, want in zip(found[1:], expected, strict=True)):
            raise ModelError(
                f"{value.name} is {describe_value(value)}, spec expects float32 [N, {', '.join(map(str, expected))}]"
            )


def describe_value(value: onnx.ValueInfoProto) -> str:
    """Element type and shape of an input or output: "float32 [N, 3, 227, 227]"; an unknown size is "?"."""
    if value.type.WhichOneof("value") != "tensor_type":
        return str(value.type.WhichOneof("value"))
    tensor = value.type.tensor_type
    kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return f"{kind} [{', '.join(str(dim.dim_value or dim.dim_param or '?') for dim in tensor.shape.dim)}]"


class _Graph:
    """Collects the nodes and constants of the deployment graph; each method returns the name of its last tensor.

    Before the views are cut, images are [N, 3, 256, 256], or [N, 256, 256, 3] with `channels_last`.
    """

    def __init__(self, *, channels_last: bool) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._channels_last = channels_last
        self._channel_axis, self._row_axis, self._column_axis = (3, 1, 2) if channels_last else (1, 2, 3)

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), PREFIX + name))
        return PREFIX + name

    def pixels(self, spec: ModelSpec) -> str:
        """The pixels in the network's channel order, float32."""
        # TensorRT accepts uint8 only for a network input that is cast immediately.
        name = self.node("Cast", ["images"], PREFIX + "pixels", to=TensorProto.FLOAT)
        if not self._channels_last:
            name = self.node("Transpose", [name], PREFIX + "planes", perm=[0, 3, 1, 2])
        if spec.preprocessing.channels == "bgr":
            bgr = self.constant("bgr", np.array([2, 1, 0]))
            name = self.node("Gather", [name, bgr], PREFIX + "reversed", axis=self._channel_axis)
        return name

    def _by_channel(self, name: str, value: NDArray[np.float32]) -> str:
        """A constant [3, 256, 256] or [3, 1, 1]."""
        return self.constant(name, (value.transpose(1, 2, 0) if self._channels_last else value)[None])

    def shifted(self, name: str) -> str:
        """pixel - 128."""
        return self.node("Sub", [name, self.constant("middle", np.array(128, np.float32))], PREFIX + "shifted")

    def normalized(self, name: str, spec: ModelSpec, mean_image: NDArray[np.float32] | None) -> str:
        """(pixel * scale - mean) / std."""
        steps = spec.preprocessing
        if (steps.mean_image is not None) != (mean_image is not None):
            raise UsageError("a mean image must be given exactly where the spec has one")
        if steps.scale != 1.0:
            scale = self.constant("scale", np.array(steps.scale, np.float32))
            name = self.node("Mul", [name, scale], PREFIX + "scaled")
        mean = mean_image if mean_image is not None else np.array(steps.mean, np.float32).reshape(3, 1, 1)
        if mean.any():
            name = self.node("Sub", [name, self._by_channel("mean", mean)], PREFIX + "centered")
        if steps.std != (1.0, 1.0, 1.0):
            std = self._by_channel("std", np.array(steps.std, np.float32).reshape(3, 1, 1))
            name = self.node("Div", [name, std], PREFIX + "normalized")
        return name

    def views(self, name: str, size: int, num_views: int) -> str:
        """Cut views of size `size`, the first view of all images first; named VIEWS unless transposed later."""
        sources = {False: name}
        boxes = view_boxes(num_views, size)
        if any(box.mirror for box in boxes):
            # A mirrored crop is the mirrored image cropped at the opposite offset: one reversal serves five views.
            sources[True] = self.mirrored(name)
        axes = self.constant("axes", np.array([self._row_axis, self._column_axis]))
        crops = []
        for index, box in enumerate(boxes):
            left = IMAGE_SIZE - size - box.left if box.mirror else box.left
            starts = self.constant(f"starts{index}", np.array([box.top, left]))
            ends = self.constant(f"ends{index}", np.array([box.top + size, left + size]))
            crops.append(self.node("Slice", [sources[box.mirror], starts, ends, axes], f"{PREFIX}view{index}"))
        return self.node("Concat", crops, CUT if self._channels_last else VIEWS, axis=0)

    def mirrored(self, name: str) -> str:
        """The images flipped left to right."""
        # Gather, because OpenVINO runs a Slice of step -1 in its slow reference kernel.
        backwards = np.arange(IMAGE_SIZE - 1, -1, -1)
        if not self._channels_last:
            return self.node("Gather", [name, self.constant("backwards", backwards)], PREFIX + "mirrored", axis=3)
        # Gather single values: gathering pixels takes three times as long.
        rows = self.constant("rows", np.array([0, IMAGE_SIZE, 3 * IMAGE_SIZE]))
        pixels = self.constant("rows_of_pixels", np.array([0, IMAGE_SIZE, IMAGE_SIZE, 3]))
        values = self.constant("backwards", (3 * backwards[:, None] + np.arange(3)).ravel())
        name = self.node("Reshape", [name, rows], PREFIX + "values")
        name = self.node("Gather", [name, values], PREFIX + "mirrored_values", axis=2)
        return self.node("Reshape", [name, pixels], PREFIX + "mirrored")

    def features(self, layer: str, num_views: int, size: int, opset: int) -> None:
        """The mean over an image's views of a layer's output, flattened."""
        # In an FP16 graph the layer is FP16; the mean is float32 as well.
        values = self.node("Cast", [layer], PREFIX + "layer", to=TensorProto.FLOAT)
        by_view = self.constant("by_view", np.array([num_views, -1, size]))
        self.mean(self.node("Reshape", [values, by_view], PREFIX + "layer_by_view"), FEATURES, opset)

    def probabilities(self, logits: str, num_views: int, num_classes: int, opset: int) -> None:
        """Softmax of each view, then the mean over an image's views; and the top class of each view."""
        softmax = self.node("Softmax", [logits], PREFIX + "softmax", axis=1)
        shape = self.constant("by_view", np.array([num_views, -1, num_classes]))
        self.node("Reshape", [softmax, shape], BY_VIEW)
        nodes, constants = answers(opset)
        self.nodes += nodes
        self.constants += constants

    def mean(self, by_view: str, name: str, opset: int) -> None:
        """The mean over the first axis."""
        node, constants = mean(by_view, name, opset)
        self.nodes.append(node)
        self.constants += constants
