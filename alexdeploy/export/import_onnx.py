"""From somebody else's ONNX classifier to a model folder: `images` [N, 3, H, W] -> `logits` [N, C], batch dynamic."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

import alexdeploy
from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import ModelError, ParityError
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.export import graphs
from alexdeploy.export.parity import TOLERANCES, run_graph

_OLDEST_OPSET = 13
_OPSET = 17


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """What an ONNX file does not say of itself. The crop is taken from the graph."""

    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    output: str | None = None
    recipe: str | None = None


def import_onnx(path: Path, folder: ModelFolder, options: ImportOptions) -> ModelSpec:
    """Write `model.onnx` and `spec.json` into `folder`; returns the spec.

    The graph may name its input and output as it likes, fix its batch, list its initializers as inputs, have more
    than one output, and end in a softmax. Raises ModelError if it is no NCHW classifier of square RGB images, and
    ParityError if the rewritten graph does not give the answers of the original.
    """
    original = graphs.read_graph(path)
    model = _modern(original.model, path)
    input_name, batch, size = _image_input(model, path)
    output_name = _class_output(model, options.output, path)
    rewritten = _rewritten(model, input_name, batch, size, output_name)
    num_classes = _check_same_answers(original.model, rewritten, output_name, batch or 1, size)
    classes = options.classes or tuple(f"class-{index}" for index in range(num_classes))
    if len(classes) != num_classes:
        raise ModelError(
            f"{path} has {num_classes} classes, the labels are {len(classes)}",
            cure="Give one label per line.",
        )
    spec = ModelSpec(
        name=folder.path.name,
        classes=classes,
        preprocessing=dataclasses.replace(options.preprocessing, crop=size),
        recipe=options.recipe,
        provenance={
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "alexdeploy": alexdeploy.__version__,
            "imported_from": path.name,
            "imported_sha256": original.sha256,
        },
    )
    rewritten.graph.output[0].type.tensor_type.shape.dim[1].dim_value = num_classes
    graphs.write_graph(folder.onnx_path(), rewritten, spec, source=path)
    folder.write_spec(spec)
    return spec


def _modern(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A copy at opset 13 or later, where Softmax and the shapes mean what the deployment graph expects."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if opset >= _OLDEST_OPSET:
        return copy
    try:
        return version_converter.convert_version(copy, _OPSET)
    except (RuntimeError, version_converter.ConvertError) as exc:
        raise ModelError(
            f"{path} is opset {opset} and cannot be converted to {_OPSET}: {exc}",
            cure="Export it again at opset 13 or later.",
        ) from exc


def _image_input(model: onnx.ModelProto, path: Path) -> tuple[str, int | None, int]:
    """Name, fixed batch (None if dynamic) and side in pixels of the one image input."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    found = ", ".join(_shape_text(value) for value in inputs)
    images = [value for value in inputs if len(value.type.tensor_type.shape.dim) == 4]
    if len(inputs) != 1 or not images:
        raise ModelError(f"{path} takes {found or 'nothing'}; expected one image input [N, 3, H, W]")
    tensor = images[0].type.tensor_type
    batch, channels, height, width = (dim.dim_value for dim in tensor.shape.dim)
    if tensor.elem_type != TensorProto.FLOAT or channels != 3 or height != width or not 1 <= height <= 256:
        raise ModelError(f"{path} takes {found}; expected float32 [N, 3, H, H] with H of at most 256, in NCHW")
    return images[0].name, batch or None, height


def _class_output(model: onnx.ModelProto, wanted: str | None, path: Path) -> str:
    names = [value.name for value in model.graph.output]
    if wanted is not None:
        if wanted not in names:
            raise ModelError(f"{path} has no output {wanted!r}", cure=f"Its outputs: {', '.join(names)}")
        return wanted
    inferred = onnx.shape_inference.infer_shapes(model)
    for value in inferred.graph.output:
        tensor = value.type.tensor_type
        dims = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.elem_type == TensorProto.FLOAT and len(dims) >= 2 and all(dim == 1 for dim in dims[2:]):
            return str(value.name)
    raise ModelError(f"{path} has no output of class scores [N, C]; its outputs: {', '.join(names)}")


def _rewritten(
    model: onnx.ModelProto, input_name: str, batch: int | None, size: int, output_name: str
) -> onnx.ModelProto:
    """One input `images`, one output `logits` [N, C], initializers no longer inputs, the batch dynamic."""
    graph = model.graph
    if batch is not None:
        _free_batch(graph, batch)
    producers = {name: node for node in graph.node for name in node.output}
    # A softmax at the end is the deployment graph's affair; what goes into it are the logits.
    ends_in_softmax = producers[output_name].op_type == "Softmax"
    scores = producers[output_name].input[0] if ends_in_softmax else output_name
    nodes = _needed_nodes(graph, producers, scores)
    nodes.append(helper.make_node("Flatten", [scores], ["alexdeploy/logits"], name="alexdeploy/logits", axis=1))
    names = {taken: f"{taken}_original" for taken in ("images", "logits")}
    names |= {input_name: "images", "alexdeploy/logits": "logits"}
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    used = {name for node in nodes for name in node.input}
    weights = []
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
        if tensor.name in used:
            weights.append(tensor)
    return helper.make_model(
        helper.make_graph(
            nodes,
            graph.name or "imported",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, size, size])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "classes"])],
            weights,
        ),
        opset_imports=model.opset_import,
        ir_version=max(model.ir_version, 7),
        producer_name="alexdeploy",
    )


def _needed_nodes(graph: onnx.GraphProto, producers: dict[str, onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    needed: set[str] = set()
    waiting = [output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and not needed.issuperset(node.output):
            needed.update(node.output)
            waiting.extend(node.input)
    return [node for node in graph.node if needed.intersection(node.output)]


def _free_batch(graph: onnx.GraphProto, batch: int) -> None:
    """Make constant Reshape targets that begin with the fixed batch follow the batch instead."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        target = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if target is None:
            continue
        shape = numpy_helper.to_array(target).copy()
        if len(shape) > 1 and shape[0] == batch:
            # 0 copies the input's first dimension, which is the batch as long as nothing was folded into it.
            shape[0] = 0
            target.CopyFrom(numpy_helper.from_array(shape, target.name))


def _check_same_answers(
    original: onnx.ModelProto, rewritten: onnx.ModelProto, output: str, batch: int, size: int
) -> int:
    """Compare probabilities at the original's batch and at another; returns the number of classes."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 50, (2 * batch, 3, size, size)).astype(np.float32)
    expected = np.concatenate([run_graph(original, part, [output])[0] for part in np.split(images, 2)])
    expected = expected.reshape(len(images), -1)
    try:
        (logits,) = run_graph(rewritten, images)
    except Exception as exc:
        raise ModelError(
            f"the graph is built for a batch of {batch} and cannot run another: {exc}",
            cure="Export it with a dynamic batch.",
        ) from exc
    for actual in (logits, _softmax(logits)):
        error = float(np.abs(actual - expected).max()) / max(float(np.abs(expected).max()), 1e-30)
        if error <= TOLERANCES["fp32"]:
            return int(logits.shape[1])
    raise ParityError(
        f"the rewritten graph does not give the original's answers: off by {error:.2e} of the largest output"
    )


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.floating] = powers / powers.sum(axis=1, keepdims=True)
    return result


def _shape_text(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"{value.name} [{', '.join(str(dim.dim_value or dim.dim_param or '?') for dim in dims)}]"
