"""From somebody else's ONNX classifier to a model folder: `images` [N, 3, H, W] -> `logits` [N, C], batch dynamic."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import AlexDeployError, ModelError, first_line
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Preprocessing
from alexdeploy.export import graphs
from alexdeploy.export.deployment import PREFIX as DEPLOY_PREFIX
from alexdeploy.export.deployment import describe_value
from alexdeploy.export.fold import fold_constants
from alexdeploy.export.graph_walk import all_nodes, inner_graphs, needed_tensors, producers, prune, reads
from alexdeploy.export.import_check import Probe, check_same_answers, probe_images
from alexdeploy.export.import_folder import (
    MeanFile,
    MeanImage,
    class_names,
    mean_file,
    origin,
    write_model,
)
from alexdeploy.export.import_known import read_foreign, recognise
from alexdeploy.export.import_opset import modern, runnable
from alexdeploy.export.runner import run_graph
from alexdeploy.images.preprocess import network_input

_PREFIX = "import/"
"""Of the tensors that this module adds."""

_TAKEN = ("images", "logits", "probabilities", "view_classes")
"""Inputs and outputs of the plain and of the deployment graph: no tensor inside may be called so."""

_KEEP_ORDER = ("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")
"""Operators that hand on the same scores in the same order."""

_SMALLEST_PROBABILITY = 1e-7
"""What a probability of 0 becomes before its logarithm is taken: about the smallest number in FP16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """What an ONNX file does not say of itself. The crop is taken from the graph."""

    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    output: str | None = None
    recipe: str | None = None
    overwrite: bool = False
    mean_image: MeanImage | None = None


def import_onnx(
    path: Path,
    folder: ModelFolder,
    options: ImportOptions,
    on_warning: Callable[[str], None] = lambda message: None,
) -> ModelSpec:
    """Write `model.onnx` and `spec.json` into `folder`, and `mean.npy` if a mean image is given; returns the spec.

    The graph may name its input and output as it likes, fix its batch, list its initializers as inputs, have more
    than one output, and end in a softmax. Raises ModelError if it is no NCHW classifier of square RGB images,
    ParityError if the rewritten graph does not give the answers of the original, and UsageError if the folder is
    in use. Nothing is written, and no earlier model touched, before all of that is known.
    """
    if not options.overwrite:
        folder.check_unused()
    known = recognise(path, read_foreign(path), on_warning)
    original = graphs.read_graph(path)
    model, batch = _one_input(original.model, path)
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    steps = dataclasses.replace(options.preprocessing, crop=size)
    mean = None if options.mean_image is None else mean_file(options.mean_image, steps.scale)
    if mean is not None:
        steps = dataclasses.replace(steps, mean=(0.0, 0.0, 0.0), mean_image=mean.sha256)
    model = runnable(model, path)
    model, probe = _one_output(model, batch, steps, mean, options.output, path)
    spec = ModelSpec(
        name=folder.path.name,
        classes=class_names(options.classes, probe.scores.shape[1], path),
        preprocessing=steps,
        recipe=options.recipe,
        provenance={**origin(path, original.sha256), "known_file": None if known is None else known.title},
    )
    model = modern(model, path)
    fold_constants(model.graph)
    network = _rewritten(model, batch, probe, spec, path)
    # A graph's source is looked for in its own folder, by its name: this name must be none of those in there.
    content = graphs.serialize(network, spec, graphs.Source(name="original.onnx", sha256=original.sha256))
    files = {} if mean is None else {folder.mean_path: mean.content}
    graph_path = folder.onnx_path()
    write_model(folder, {**files, graph_path: content, folder.sum_path(): graphs.sum_line(graph_path, content)}, spec)
    return spec


def _one_input(model: ModelProto, path: Path) -> tuple[ModelProto, int]:
    """A copy whose only input is the image, with the outputs that need nothing else; and its batch, 1 if dynamic."""
    copy = deepcopy(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    graph = copy.graph
    if graph.sparse_initializer:
        raise ModelError(f"{path} has sparse weights, which are not supported", cure="Export it with dense weights.")
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    images = [value for value in inputs if len(value.type.tensor_type.shape.dim) == 4]
    found = ", ".join(f"{value.name} {describe_value(value)}" for value in inputs) or "nothing"
    if not images:
        raise ModelError(f"{path} takes {found}; expected one image input, float32 [N, 3, H, W]")
    image = next((value for value in images if _is_photograph(value)), None)
    if image is None:
        raise ModelError(
            f"{path} takes {found}; expected float32 [N, 3, H, H] with a fixed H of at most {IMAGE_SIZE}",
            cure=_input_cure(images[0]),
        )
    others = {value.name for value in inputs} - {image.name}
    outputs = [value for value in graph.output if not others.intersection(needed_tensors(graph, value.name))]
    if not outputs:
        raise ModelError(
            f"{path} takes {found}; expected one image input", cure="Export it with the others as constants."
        )
    del graph.input[:], graph.output[:]
    graph.input.append(image)
    graph.output.extend(outputs)
    prune(graph)
    # From version 4 of the format on, weights need not be inputs.
    copy.ir_version = max(copy.ir_version, 7)
    return copy, image.type.tensor_type.shape.dim[0].dim_value or 1


def _is_photograph(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    _, channels, height, width = (dim.dim_value for dim in tensor.shape.dim)
    is_square = height == width and 1 <= height <= IMAGE_SIZE
    return bool(tensor.elem_type == TensorProto.FLOAT and channels == 3 and is_square)


def _input_cure(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    if dims[3] in (1, 3) and dims[1] not in (1, 3):
        return "Its channels come last: export it in NCHW (tf2onnx: --inputs-as-nchw)."
    if dims[1] == 3 and not (dims[2] and dims[3]):
        return (
            "Fix its size: python -m onnxruntime.tools.make_dynamic_shape_fixed "
            f"--input_name {value.name} --input_shape 1,3,224,224 FILE.onnx NEW.onnx"
        )
    if tensor.elem_type != TensorProto.FLOAT:
        return "Export it with a float32 input."
    return f"Views are squares cut from photographs of {IMAGE_SIZE}x{IMAGE_SIZE} in colour; export it for such."


def _one_output(
    model: ModelProto, batch: int, steps: Preprocessing, mean: MeanFile | None, wanted: str | None, path: Path
) -> tuple[ModelProto, Probe]:
    """The part of the graph that computes the class scores, and what it answers to two images."""
    names = [value.name for value in model.graph.output]
    if wanted is not None and wanted not in names:
        raise ModelError(f"{path} has no output {wanted!r}", cure=f"Its outputs: {', '.join(names)}")
    images, mean_image = probe_images(), None if mean is None else mean.image
    inputs = np.concatenate([network_input(image, steps, 1, mean_image) for image in images])
    parts = [np.resize(inputs, (batch, *inputs.shape[1:]))] if batch > 1 else np.split(inputs, 2)
    answers = [_run(model, part, path) for part in parts]
    shapes = {name: answer.shape for name, answer in zip(names, answers[0], strict=True)}
    fitting = [
        name
        for name, answer in zip(names, answers[0], strict=True)
        if answer.dtype == np.float32 and _holds_scores(answer.shape, batch) and wanted in (None, name)
    ]
    if not fitting:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items() if wanted in (None, name))
        raise ModelError(f"{path} gives {found} for a batch of {batch}; expected class scores, float32 [N, C]")
    index = names.index(fitting[0])
    scores = np.concatenate([answer[index].reshape(batch, -1) for answer in answers])[:2]
    if not np.isfinite(scores).all():
        raise ModelError(f"{path} gives {fitting[0]} that is not finite (NaN or infinity)")
    kept = model.graph.output[index]
    del model.graph.output[:]
    model.graph.output.append(kept)
    prune(model.graph)
    return model, Probe(images=images, inputs=inputs, scores=scores, mean_image=mean_image)


def _holds_scores(shape: tuple[int, ...], batch: int) -> bool:
    """[N, C], or that with ones in it: [N, C, 1, 1]."""
    return len(shape) >= 2 and shape[0] == batch and sum(size != 1 for size in shape[1:]) == 1 and 0 not in shape


def _rewritten(model: ModelProto, batch: int, probe: Probe, spec: ModelSpec, path: Path) -> ModelProto:
    """The plain network, checked: one input `images`, one output `logits` [N, C], the batch dynamic."""
    _free_batch(model, np.resize(probe.inputs, (batch, *probe.inputs.shape[1:])))
    output = model.graph.output[0].name
    made_by = producers(model.graph)
    last = made_by.get(output)
    while last is not None and last.op_type in _KEEP_ORDER:
        last = made_by.get(last.input[0])
    if last is not None and last.op_type == "Sigmoid" and not probe.holds_probabilities:
        raise ModelError(
            f"{path} ends in a Sigmoid: a score for each label by itself, not one class out of {spec.num_classes}",
            cure="Models of several labels for one image are not supported.",
        )
    if probe.holds_probabilities and last is not None and last.op_type == "Softmax":
        # A softmax at the end is the deployment graph's affair; what goes into it are the logits.
        with contextlib.suppress(ModelError):
            network = _plain_network(model, last.input[0], False, spec)
            check_same_answers(network, probe, spec, batch, path)
            return network
    network = _plain_network(model, output, probe.holds_probabilities, spec)
    check_same_answers(network, probe, spec, batch, path)
    return network


def _plain_network(model: ModelProto, scores: str, takes_logarithm: bool, spec: ModelSpec) -> ModelProto:
    """From `images` to `logits`: the tensor `scores` as [N, C], or its logarithm, of which softmax is the inverse."""
    copy = deepcopy(model)
    graph, logits = copy.graph, _PREFIX + "logits"
    flat = _PREFIX + "flat" if takes_logarithm else logits
    graph.node.append(helper.make_node("Flatten", [scores], [flat], name=flat, axis=1))
    if takes_logarithm:
        smallest, clipped = _PREFIX + "smallest", _PREFIX + "clipped"
        graph.initializer.append(numpy_helper.from_array(np.array(_SMALLEST_PROBABILITY, np.float32), smallest))
        graph.node.append(helper.make_node("Max", [flat, smallest], [clipped], name=clipped))
        graph.node.append(helper.make_node("Log", [clipped], [logits], name=logits))
    size = spec.preprocessing.crop
    graph.output[0].CopyFrom(helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", spec.num_classes]))
    prune(graph)
    _rename(graph, {graph.input[0].name: "images", logits: "logits"})
    return helper.make_model(
        helper.make_graph(
            graph.node,
            graph.name,
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, size, size])],
            graph.output,
            graph.initializer,
        ),
        opset_imports=copy.opset_import,
        ir_version=copy.ir_version,
        producer_name="alexdeploy",
    )


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Rename tensors, and those that would collide with names of ours; give every node a name of its own."""
    known = {name for node in all_nodes(graph.node) for name in (*node.input, *node.output)}
    for name in sorted(known - set(names)):
        if _is_ours(name):
            names[name] = _unused(f"original/{name}", known)
    for node in all_nodes(graph.node):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for inner in (graph, *inner_graphs(graph.node)):
        for value in (*inner.input, *inner.output, *inner.initializer):
            value.name = names.get(value.name, value.name)
    used: set[str] = set()
    for node in all_nodes(graph.node):
        # The FP16 converter names what it adds after the node, and not every exporter names its nodes.
        name = node.name or next(filter(None, node.output), node.op_type)
        node.name = _unused(f"original/{name}" if _is_ours(name) else name, used)


def _unused(name: str, used: set[str]) -> str:
    """`name`, with a number after it if need be, which is then in `used`."""
    number, free = 1, name
    while free in used:
        number += 1
        free = f"{name}_{number}"
    used.add(free)
    return free


def _is_ours(name: str) -> bool:
    return name in _TAKEN or name.startswith(DEPLOY_PREFIX)


def _free_batch(model: ModelProto, inputs: NDArray[np.float32]) -> None:
    """Let every Reshape of the images to a constant shape follow the batch: -1 there, what it was in the rest."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    depends, fixed = {graph.input[0].name}, []
    for node in graph.node:
        if depends.intersection(reads(node)):
            depends.update(node.output)
            if node.op_type == "Reshape" and node.input[1] in constants:
                fixed.append(node)
    outputs = run_graph(model, inputs, [node.output[0] for node in fixed]) if fixed else []
    for index, (node, output) in enumerate(zip(fixed, outputs, strict=True)):
        if output.ndim >= 2 and output.shape[0] % len(inputs) == 0:
            name = f"{_PREFIX}shape{index}"
            graph.initializer.append(numpy_helper.from_array(np.array([-1, *output.shape[1:]], np.int64), name))
            node.input[1] = name
            del node.attribute[:]


def _run(model: ModelProto, inputs: NDArray[np.float32], path: Path) -> list[NDArray[np.floating]]:
    try:
        return run_graph(model, inputs)
    except AlexDeployError:
        raise
    except Exception as exc:
        # ONNX Runtime's own exceptions have no common base short of Exception.
        raise ModelError(f"{path} cannot be run by ONNX Runtime: {first_line(exc)}") from exc
