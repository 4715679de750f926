"""The image input of an imported graph: its selection, and the nodes that let it take float32 [N, 3, H, H]."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper

from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.spec import IMAGE_SIZE, Preprocessing
from alexdeploy.graphs.deployment import describe_value
from alexdeploy.graphs.edit import all_nodes, attribute, needed_tensors, prune, reads

PREFIX = "import/"
"""Prefix of the names of tensors that the import adds."""

_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Transpose permutations from NCHW to NHWC and back."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

_TAKEN = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """An input [N, 3, H, H], or [N, H, H, 3] if `channels_last`, with H = `size`.

    `element_type` is TensorProto's FLOAT, FLOAT16 or UINT8; `batch` is the graph's batch size, 1 if dynamic.
    """

    name: str
    element_type: int
    size: int
    batch: int
    channels_last: bool

    def original(self, inputs: NDArray[np.float32]) -> NDArray[np.generic]:
        """Convert float32 [N, 3, H, H] to the layout and type of the file's input."""
        moved = inputs.transpose(_TO_LAST) if self.channels_last else inputs
        return np.ascontiguousarray(moved, helper.tensor_dtype_to_np_dtype(self.element_type))

    def check_steps(self, steps: Preprocessing, path: Path) -> None:
        """Raise UsageError if preprocessing would normalize pixels that the graph takes as uint8."""
        plain = Preprocessing(resize=steps.resize, channels=steps.channels, crop=steps.crop)
        if self.element_type == TensorProto.UINT8 and steps != plain:
            raise UsageError(
                f"{path} normalizes its uint8 input itself: scale, mean and std cannot be applied before it",
                hint="Give --scale 1 and no --recipe, --mean, --mean-image or --std.",
            )


def one_input(model: ModelProto, path: Path) -> tuple[ModelProto, ImageInput]:
    """A copy whose only input is the image, with the outputs that depend only on it.

    Raises ModelError if no input is a square colour image of a fixed size.
    """
    copy = deepcopy(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    graph = copy.graph
    if graph.sparse_initializer:
        raise ModelError(f"{path} has sparse weights, which are not supported", hint="Export it with dense weights.")
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    images = [value for value in inputs if len(value.type.tensor_type.shape.dim) == 4]
    found = ", ".join(f"{value.name} {describe_value(value)}" for value in inputs) or "nothing"
    if not images:
        raise ModelError(f"the inputs of {path} are {found}; expected one image input, float32 [N, 3, H, W]")
    image = next(filter(None, map(_image_input, images)), None)
    if image is None:
        raise ModelError(
            f"the input of {path} is {found}; expected float32 [N, 3, H, H] with a fixed H of at most {IMAGE_SIZE} "
            "(or [N, H, H, 3], or float16 or uint8)",
            hint=_cure(images[0]),
        )
    others = {value.name for value in inputs} - {image.name}
    needed = {value.name: needed_tensors(graph, value.name) for value in graph.output}
    alone = [value for value in graph.output if not others.intersection(needed[value.name])]
    if not alone:
        raise ModelError(
            f"inputs of {path}: {found}; expected one image input", hint="Export it with the others as constants."
        )
    outputs = [value for value in alone if image.name in needed[value.name]]
    if not outputs:
        raise ModelError(f"{path}: no output depends on the image {image.name}")
    kept = [value for value in inputs if value.name == image.name]
    del graph.input[:], graph.output[:]
    graph.input.extend(kept)
    graph.output.extend(outputs)
    prune(graph)
    _check_lrn(graph, path)
    # Since IR version 4, weights need not be inputs.
    copy.ir_version = max(copy.ir_version, 7)
    return copy, image


def take_float_planes(graph: GraphProto, image: ImageInput) -> None:
    """Let the graph take float32 [N, 3, H, H], in place, by adding a Cast to uint8 and a Transpose before its input.

    Neither is added if the graph begins with its inverse: a Transpose from NHWC becomes an Identity, and a uint8 input
    that is only cast to float becomes float.
    """
    nodes, first = [], f"{PREFIX}images"
    readers = [node for node in graph.node if image.name in reads(node)]
    if image.element_type == TensorProto.UINT8 and not _is_cast_at_once(graph, image):
        nodes.append(helper.make_node("Cast", [first], [f"{PREFIX}cast"], to=TensorProto.UINT8))
    if image.channels_last and all(
        node.op_type == "Transpose" and attribute(node, "perm", [0]) == _TO_FIRST for node in readers
    ):
        for node in readers:
            node.op_type = "Identity"
            del node.attribute[:]
    elif image.channels_last:
        source = nodes[-1].output[0] if nodes else first
        nodes.append(helper.make_node("Transpose", [source], [f"{PREFIX}channels_last"], perm=_TO_LAST))
    if nodes:
        nodes[-1].output[0] = image.name
    for node in nodes:
        node.name = node.output[0]
    name = first if nodes else image.name
    shape = ["N" if image.batch == 1 else image.batch, 3, image.size, image.size]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _is_cast_at_once(graph: GraphProto, image: ImageInput) -> bool:
    """Whether the integer pixels are cast to a float type before any computation.

    Casting them to uint8 and back would change nothing, and TensorRT does not support uint8 inside a graph.
    """
    waiting = [image.name]
    for name in waiting:
        for node in graph.node:
            if name not in reads(node):
                continue
            if node.op_type in ("Transpose", "Identity"):
                waiting.append(node.output[0])
            elif node.op_type != "Cast" or attribute(node, "to", TensorProto.UNDEFINED) not in _FLOATS:
                return False
    return True


def _image_input(value: onnx.ValueInfoProto) -> ImageInput | None:
    tensor = value.type.tensor_type
    batch, *shape = (dim.dim_value for dim in tensor.shape.dim)
    size = shape[1]
    is_first, is_last = shape == [3, size, size], shape == [size, size, 3]
    if tensor.elem_type not in _TAKEN or not (is_first or is_last) or not 1 <= size <= IMAGE_SIZE:
        return None
    return ImageInput(
        name=value.name,
        element_type=tensor.elem_type,
        size=size,
        batch=batch or 1,
        channels_last=not is_first,
    )


def _cure(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    for channels, sides, shape in ((dims[1], dims[2:], "1,3,224,224"), (dims[3], dims[1:3], "1,224,224,3")):
        if channels == 3 and 0 in sides:
            return (
                "Fix its size: python -m onnxruntime.tools.make_dynamic_shape_fixed "
                f"--input_name {value.name} --input_shape {shape} FILE.onnx NEW.onnx"
            )
    if tensor.elem_type not in _TAKEN:
        return "Export it with a float32 input."
    return f"Views are squares cut from {IMAGE_SIZE}x{IMAGE_SIZE} colour photographs; export the model for that input."


def _check_lrn(graph: GraphProto, path: Path) -> None:
    for node in all_nodes(graph.node):
        size = attribute(node, "size", 1) if node.op_type == "LRN" else 1
        if size % 2 == 0 or size < 1:
            raise ModelError(
                f"{path}: LRN {node.name or node.output[0]} has size {size}; it must be odd and at least 1 "
                "(TensorRT and ONNX Runtime do not accept other sizes)"
            )
