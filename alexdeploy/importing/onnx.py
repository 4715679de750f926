"""From any ONNX classifier to a model folder: `images` [N, 3, H, W] -> `logits` [N, C], batch dynamic."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from alexdeploy.core.backend_checks import backend_checks_json
from alexdeploy.core.errors import AlexDeployError, ModelError, default_hint, warn
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import package_version
from alexdeploy.core.spec import ModelSpec, Preprocessing
from alexdeploy.export.check_images import check_images
from alexdeploy.export.engine_check import check_engines
from alexdeploy.export.fp16 import to_fp32
from alexdeploy.graphs import files as graph_files
from alexdeploy.graphs.deployment import PREFIX as DEPLOY_PREFIX
from alexdeploy.graphs.edit import all_nodes, computed_from, holds_only_float32, inner_graphs, prune, reads
from alexdeploy.graphs.fold_constants import fold_constants
from alexdeploy.graphs.runner import run_graph, runtime_message
from alexdeploy.images.preprocess import network_input
from alexdeploy.importing.check import ReferenceRun, check_same_answers, probe_images
from alexdeploy.importing.input import PREFIX, ImageInput, one_input, take_float_planes
from alexdeploy.importing.model_folder import MeanFile, MeanImage, class_names, mean_file, origin, write_model
from alexdeploy.importing.opset import modern, runnable
from alexdeploy.importing.output import LOGITS, Scores, append_logits, before_activation, choose_output
from alexdeploy.importing.published_files import read_foreign, recognise

_TAKEN = ("images", "logits", "probabilities", "view_classes")
"""Inputs and outputs of the plain and of the deployment graph: no inner tensor may have these names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxOptions:
    """Settings that an ONNX file does not contain. The crop is taken from the graph."""

    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    output_name: str | None = None
    recipe: str | None = None
    overwrite: bool = False
    mean_image: MeanImage | None = None


def import_onnx(
    path: Path,
    folder: ModelFolder,
    options: OnnxOptions,
    on_warning: Callable[[str], None] = warn,
) -> ModelSpec:
    """Write `model.onnx` and `spec.json` into `folder`, and `mean.npy` if a mean image is given; returns the spec.

    The graph may use any names for its input and output, have a fixed batch, list its initializers as inputs, have more
    than one output, and end in a softmax; its input may be float32, float16 or uint8, NCHW or NHWC. Raises ModelError
    if it is not a classifier of square RGB images, ParityError if the rewritten graph does not give the answers of the
    original, and UsageError if the folder is in use or the options do not suit the graph. Nothing is written, and no
    earlier model changed, until all checks have passed.
    """
    if not options.overwrite:
        folder.check_unused()
    known = recognise(path, read_foreign(path), on_warning)
    with default_hint("Download, copy or export the file again."):
        original = graph_files.read_graph(path)
    model, image = one_input(original.model, path)
    steps = dataclasses.replace(options.preprocessing, crop=image.size)
    mean = None if options.mean_image is None else mean_file(options.mean_image, steps.scale)
    if mean is not None:
        steps = dataclasses.replace(steps, mean=(0.0, 0.0, 0.0), mean_image=mean.sha256)
    image.check_steps(steps, path)
    model = runnable(model, path)
    scores, reference = _scores_of(model, image, steps, mean, options, path, on_warning)
    spec = ModelSpec(
        name=folder.path.name,
        classes=class_names(options.classes, reference.scores.shape[1], path),
        preprocessing=steps,
        recipe=options.recipe,
        provenance={
            **origin(path, original.sha256),
            "onnx_version": package_version("onnx"),
            "imported_output": scores.name,
            "known_file": None if known is None else known.title,
        },
    )
    model = modern(model, path)
    if reference.precision == "fp16":
        on_warning(f"{path.name} computes in float16; the imported network computes in float32")
        model = to_fp32(model)
    take_float_planes(model.graph, image)
    fold_constants(model.graph)
    network = _rewritten(model, image.batch, reference, scores, spec, path)
    # Sources are looked up by name in the model folder: this name must not be one of the names in there.
    content = graph_files.serialize(network, spec, graph_files.Source(name="original.onnx", sha256=original.sha256))
    photographs = np.concatenate([reference.images, check_images(spec, reference.mean_image, None).photographs])
    graph = graph_files.graph_of(network, content)
    checks = check_engines(graph, spec, "fp32", reference.mean_image, photographs, on_warning)
    files = {} if mean is None else {folder.mean_path: mean.content}
    files[folder.backends_path] = backend_checks_json(checks)
    graph_path = folder.onnx_path()
    files |= {graph_path: content, folder.sum_path(): graph_files.sum_line(graph_path, content)}
    write_model(folder, files, spec)
    return spec


def _scores_of(
    model: ModelProto,
    image: ImageInput,
    steps: Preprocessing,
    mean: MeanFile | None,
    options: OnnxOptions,
    path: Path,
    on_warning: Callable[[str], None],
) -> tuple[Scores, ReferenceRun]:
    """The output with the class scores, and its values for two images; all other outputs are removed from the graph."""
    images, mean_image = probe_images(), None if mean is None else mean.image
    inputs = np.concatenate([network_input(each, steps, 1, mean_image) for each in images])
    taken = image.original(inputs)
    parts = [np.resize(taken, (image.batch, *taken.shape[1:]))] if image.batch > 1 else np.split(taken, 2)

    scores = choose_output(
        model,
        lambda names: [_run(model, part, names, path) for part in parts],
        image.batch,
        wanted=options.output_name,
        labels=options.classes,
        path=path,
        on_warning=on_warning,
    )
    kept = next(value for value in model.graph.output if value.name == scores.name)
    del model.graph.output[:]
    model.graph.output.append(kept)
    prune(model.graph)
    is_half = TensorProto.FLOAT16 in (image.element_type, kept.type.tensor_type.elem_type)
    return scores, ReferenceRun(
        images=images,
        inputs=inputs,
        scores=scores.values,
        holds_probabilities=scores.total is not None,
        mean_image=mean_image,
        precision="fp16" if is_half else "fp32",
    )


def _rewritten(
    model: ModelProto, batch: int, reference: ReferenceRun, scores: Scores, spec: ModelSpec, path: Path
) -> ModelProto:
    """The checked plain network: one input `images`, one output `logits` [N, C], dynamic batch."""
    _free_batch(model, np.resize(reference.inputs, (batch, *reference.inputs.shape[1:])))
    logits = before_activation(model.graph, scores)
    if logits is not None:
        # The deployment graph adds its own softmax; the logits are the input of the one at the end.
        with contextlib.suppress(ModelError):
            network = _plain_network(model, logits, scores, True, spec)
            check_same_answers(network, reference, spec, batch, path)
            return network
    network = _plain_network(model, scores.name, scores, scores.total is None, spec)
    check_same_answers(network, reference, spec, batch, path)
    return network


def _plain_network(model: ModelProto, source: str, scores: Scores, are_logits: bool, spec: ModelSpec) -> ModelProto:
    """From `images` to `logits`, computed from the tensor `source`."""
    copy = deepcopy(model)
    graph = copy.graph
    append_logits(graph, source, scores, are_logits=are_logits, is_float32=holds_only_float32(graph))
    size = spec.preprocessing.crop
    graph.output[0].CopyFrom(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", spec.num_classes]))
    prune(graph)
    _rename(graph, {graph.input[0].name: "images", LOGITS: "logits"})
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
    """Rename tensors, also those that would collide with our names; give every node a unique name."""
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
        # The FP16 converter names its new nodes after existing ones, and not every exporter names its nodes.
        name = node.name or next(filter(None, node.output), node.op_type)
        node.name = _unused(f"original/{name}" if _is_ours(name) else name, used)


def _unused(name: str, used: set[str]) -> str:
    """`name`, with a number appended if it is in `used`; the result is added to `used`."""
    number, free = 1, name
    while free in used:
        number += 1
        free = f"{name}_{number}"
    used.add(free)
    return free


def _is_ours(name: str) -> bool:
    return name in _TAKEN or name.startswith(DEPLOY_PREFIX)


def _free_batch(model: ModelProto, inputs: NDArray[np.float32]) -> None:
    """Make every Reshape of the images to a constant shape batch-independent: -1 for the batch, the rest unchanged."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    depends = computed_from(graph, graph.input[0].name)
    fixed = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] in constants]
    fixed = [node for node in fixed if depends.intersection(reads(node))]
    outputs = run_graph(model, inputs, [node.output[0] for node in fixed]) if fixed else []
    for index, (node, output) in enumerate(zip(fixed, outputs, strict=True)):
        if output.ndim >= 2 and output.shape[0] % len(inputs) == 0:
            name = f"{PREFIX}shape{index}"
            graph.initializer.append(numpy_helper.from_array(np.array([-1, *output.shape[1:]], np.int64), name))
            node.input[1] = name
            del node.attribute[:]


def _run(model: ModelProto, inputs: NDArray[np.generic], names: Sequence[str], path: Path) -> list[NDArray[np.generic]]:
    try:
        return run_graph(model, inputs, names)
    except AlexDeployError:
        raise
    except Exception as exc:
        # ONNX Runtime's exceptions have no common base class below Exception.
        raise ModelError(f"{path} cannot be run by ONNX Runtime: {runtime_message(exc)}") from exc
