"""The export step: read a model folder, write checked ONNX files to the same folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import check_argument, check_fields
from alexdeploy.core.backend_checks import BackendCheck, record_backend_checks
from alexdeploy.core.errors import ModelError, StaleArtifactError
from alexdeploy.core.events import Notice, Status, warn_of_notices
from alexdeploy.core.model_folder import ModelFolder, own_model
from alexdeploy.core.packages import missing_package, package_version
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.export.check_images import check_images
from alexdeploy.export.deployed import deployed_graphs
from alexdeploy.export.engine_check import check_engines
from alexdeploy.export.events import Event
from alexdeploy.export.fp16 import HalfLayer, plan_fp16, to_fp16
from alexdeploy.export.parity import Parity, check_parity, compare_outputs
from alexdeploy.export.publish import Network, check_complete, publish, read_network
from alexdeploy.export.quantize.calibrate import measured_tensors
from alexdeploy.export.quantize.int8 import quantizable_layers
from alexdeploy.export.quantize.quantize import Budget, Quantization, check_kept_layers, quantize
from alexdeploy.graphs import files as graph_files
from alexdeploy.graphs.deployment import check_network
from alexdeploy.graphs.edit import WeightBits
from alexdeploy.graphs.freshness import export_command, load_graph
from alexdeploy.graphs.ranges import Ranges, read_ranges, write_ranges
from alexdeploy.graphs.runner import GraphRunner
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """One file that an export wrote, or found up to date, and how it was checked.

    `parity` compares layers or outputs with FP32's. `half_layers` is the FP16 plan, `quantization` the outcome of the
    INT8 search. `backends` are the installed backends, and whether each gives the graph's answers. `num_views` is that
    of a deployment graph; None for a network.
    """

    path: Path
    precision: Precision
    sha256: str
    written: bool
    parity: Parity | None
    half_layers: tuple[HalfLayer, ...] = ()
    quantization: Quantization | None = None
    backends: tuple[BackendCheck, ...] = ()
    num_views: NumViews | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """`images`: a photograph, folder or archive to check on; None uses the training data, or rendered pictures.

    `calibrate`: images to measure INT8 ranges on; None uses the ranges measured earlier. `budget`: the maximum accuracy
    loss of INT8. `int8_weights`: bits of an INT8 weight; 7 is for processors without VNNI, see docs/precision.md.
    `deployment`: write the deployment graph of `num_views` views of each precision too; one that is there is always
    renewed with its network. `overwrite`: export `model.onnx` again even if it is up to date.
    """

    fp16: bool = False
    int8: bool = False
    int8_weights: WeightBits = 8
    deployment: bool = False
    num_views: NumViews = 1
    overwrite: bool = False
    images: str | None = None
    calibrate: str | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_fields(self)


def export_model(
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: ExportOptions = ExportOptions(),
    on_event: Callable[[Event], None] = warn_of_notices,
) -> tuple[Exported, ...]:
    """Check and write `model.onnx` and, if requested, `model.fp16.onnx`, `model.int8.onnx` and deployment graphs.

    `model` is a folder or what `find_model` takes. An imported model has no separate weights: its `model.onnx` is kept,
    and the others are checked against it. A `model.onnx` that is up to date is kept too, unless `overwrite` is set.
    Nothing is written until every requested graph has passed its checks. Raises ParityError, with all existing graphs
    unchanged, if a graph does not give the answers of the weights, exceeds the budget, or gives wrong answers on every
    installed backend.
    """
    folder = own_model(model)
    options = check_argument("options", options, ExportOptions)
    network = read_network(folder)
    spec = network.spec
    _check_options(folder, network, options)
    images = check_images(spec, network.mean_image, options.images, on_event)
    fp32 = (None if options.overwrite else _kept_fp32(folder, network)) or _checked_fp32(
        folder, network, images.inputs, on_event
    )
    # INT8 before FP16: the ranges measured for it also show where FP16 would overflow.
    int8 = _checked_int8(fp32, folder, spec, options, on_event) if options.int8 else None
    ranges = None if int8 is None else int8.ranges
    fp16 = _checked_fp16(fp32, folder, spec, images.inputs, ranges, on_event) if options.fp16 else None
    checked = [each for each in (fp32, fp16, int8) if each is not None]
    backends: dict[str, tuple[BackendCheck, ...]] = {}

    def warn(message: str) -> None:
        on_event(Notice(message=message))

    for each in checked:
        on_event(Status(message=f"checking every backend on the {each.precision} graph, with one view and ten"))
        backends[each.precision] = check_engines(
            each.graph, spec, each.precision, network.mean_image, images.photographs, warn
        )

    asked = (options.num_views,) if options.deployment else ()
    deployed = [
        each
        for of in checked
        for each in deployed_graphs(
            folder, of.graph, of.precision, spec, network.mean_image, images.photographs, asked, on_event
        )
    ]

    def write_first() -> None:
        # Before the graphs: a record of another graph than the one in the folder is ignored.
        record_backend_checks(folder, tuple(check for found in backends.values() for check in found))
        for each in checked:
            if each.ranges is not None:
                write_ranges(folder.ranges_path, each.ranges)

    contents = {each.path: each.content for each in checked if each.content is not None}
    contents |= {each.path: each.content for each in deployed if each.content is not None}
    publish(folder, network, contents, write_first)
    networks = tuple(
        Exported(
            path=each.path,
            precision=each.precision,
            sha256=each.graph.sha256,
            written=each.content is not None,
            parity=each.parity,
            half_layers=each.half_layers,
            quantization=each.quantization,
            backends=backends[each.precision],
        )
        for each in checked
    )
    return networks + tuple(
        Exported(
            path=each.path,
            precision=each.precision,
            sha256=each.sha256,
            written=each.content is not None,
            parity=None,
            backends=(each.check,),
            num_views=each.num_views,
        )
        for each in deployed
    )


def _check_options(folder: ModelFolder, network: Network, options: ExportOptions) -> None:
    """Raise the errors that can be found before any work is done."""
    asked: tuple[Precision, ...] = ("fp32", *(("fp16",) if options.fp16 else ()), *(("int8",) if options.int8 else ()))
    check_complete(folder, network, asked)
    if options.int8 and options.budget.keep:
        architecture = network.spec.architecture
        if network.weights is not None and architecture is not None:
            layers = architecture.trained_layers
        else:
            layers = quantizable_layers(load_graph(folder, "fp32", network.spec).model)
        check_kept_layers(options.budget.keep, layers)
    if options.int8 and options.calibrate is None:
        ranges = read_ranges(folder.ranges_path, folder.path.as_posix())
        if network.weights is not None and ranges.network_sha256 != network.weights.sha256 and network.new_files:
            raise StaleArtifactError(
                f"{folder.ranges_path} was measured on the weights {ranges.network_sha256[:12]}; the newer ones that "
                f"are exported are {network.weights.sha256[:12]}",
                hint=f"Measure ranges in the same run: {export_command(folder, *asked)}",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """A graph that passed its checks. `content` is None if the file is up to date, `weights` if there are none."""

    path: Path
    precision: Precision
    graph: graph_files.Graph
    content: bytes | None
    weights: Weights | None
    parity: Parity | None
    half_layers: tuple[HalfLayer, ...] = ()
    quantization: Quantization | None = None
    ranges: Ranges | None = None


def _kept_fp32(folder: ModelFolder, network: Network) -> _Checked | None:
    """`model.onnx` if its metadata and the records beside it show that an export would not change it; else None."""
    if network.weights is None or network.new_files or not folder.sum_path().is_file():
        return None
    try:
        graph = load_graph(folder, "fp32", network.spec)
    except ModelError:
        return None
    written_by = (graph.model.producer_version, [each.version for each in graph.model.opset_import])
    if written_by != (package_version("torch"), [graph_files.OPSET]):
        return None
    return _Checked(
        path=folder.onnx_path(),
        precision="fp32",
        graph=graph,
        content=None,
        weights=network.weights.tensors,
        parity=None,
    )


def _checked_fp32(
    folder: ModelFolder, network: Network, images: NDArray[np.float32], on_event: Callable[[Event], None]
) -> _Checked:
    path, spec = folder.onnx_path(), network.spec
    if network.weights is None:
        graph = load_graph(folder, "fp32", spec)
        return _Checked(path=path, precision="fp32", graph=graph, content=None, weights=None, parity=None)
    try:
        from alexdeploy.export.onnx_export import export_network
    except ImportError as exc:
        raise missing_package("torch", "exporting weights", "train") from exc
    weights, digest = network.weights
    assert spec.architecture is not None
    on_event(Status(message="exporting with torch.onnx"))
    model, plan, torch_activations = export_network(spec.architecture, spec.num_classes, weights, images)
    check_network(model, spec)
    on_event(Status(message="checking ONNX Runtime and PyTorch against NumPy float64"))
    parity = check_parity(model, plan, weights, images, "fp32", {"PyTorch": torch_activations})
    source = graph_files.Source(name=folder.weights_path.name, sha256=digest, weights_sha256=digest)
    content = graph_files.serialize(model, spec, source, "fp32")
    graph = graph_files.graph_of(model, content)
    return _Checked(path=path, precision="fp32", graph=graph, content=content, weights=weights, parity=parity)


def _checked_fp16(
    fp32: _Checked,
    folder: ModelFolder,
    spec: ModelSpec,
    images: NDArray[np.float32],
    ranges: Ranges | None,
    on_event: Callable[[Event], None],
) -> _Checked:
    layers = plan_fp16(fp32.graph.model, _largest(fp32, folder, spec, images, ranges, on_event))
    islands = [layer.layer for layer in layers if layer.precision == "fp32"]
    on_event(Status(message=f"converting to FP16, {', '.join(islands) or 'nothing'} in FP32"))
    model = to_fp16(fp32.graph.model, islands)
    on_event(Status(message="checking the FP16 graph"))
    if spec.architecture is not None and fp32.weights is not None:
        plan = plan_layers(spec.architecture, spec.num_classes)
        parity = check_parity(model, plan, fp32.weights, images, "fp16")
    else:
        parity = compare_outputs(model, fp32.graph.model, images, "fp16")
    source = graph_files.Source(name=fp32.path.name, sha256=fp32.graph.sha256, weights_sha256=fp32.graph.weights_sha256)
    content = graph_files.serialize(model, spec, source, "fp16")
    return _Checked(
        path=folder.onnx_path("fp16"),
        precision="fp16",
        graph=graph_files.graph_of(model, content),
        content=content,
        weights=fp32.weights,
        parity=parity,
        half_layers=layers,
    )


def _largest(
    fp32: _Checked,
    folder: ModelFolder,
    spec: ModelSpec,
    images: NDArray[np.float32],
    ranges: Ranges | None,
    on_event: Callable[[Event], None],
) -> dict[str, float]:
    """The largest |x| of each tensor: from calibration if it was on this network, else from the check images."""
    if ranges is not None:
        return {name: tensor.largest for name, tensor in ranges.tensors.items()}
    if os.path.isfile(folder.ranges_path):
        ranges = read_ranges(folder.ranges_path)
        if (ranges.network_sha256, ranges.contract_sha256) == (fp32.graph.network_sha256, spec.contract_sha256):
            on_event(
                Status(message=f"ranges of {folder.ranges_path}: {ranges.num_images} images of {ranges.images_from}")
            )
            return {name: tensor.largest for name, tensor in ranges.tensors.items()}
        on_event(Status(message=f"{folder.ranges_path} was measured on another graph or preprocessing and is not used"))
    runner = GraphRunner(fp32.graph.model, measured_tensors(fp32.graph.model))
    on_event(
        Status(message=f"ranges of the {len(images)} inputs of the check; alexdeploy calibrate measures them on more")
    )
    return {name: float(np.abs(values).max()) for name, values in runner.run(images).items()}


def _checked_int8(
    fp32: _Checked,
    folder: ModelFolder,
    spec: ModelSpec,
    options: ExportOptions,
    on_event: Callable[[Event], None],
) -> _Checked:
    quantized = quantize(
        folder,
        spec,
        fp32.graph,
        options.calibrate,
        options.budget,
        weight_bits=options.int8_weights,
        on_event=on_event,
    )
    source = graph_files.Source(
        name=fp32.path.name,
        sha256=fp32.graph.sha256,
        weights_sha256=fp32.graph.weights_sha256,
        ranges_sha256=quantized.ranges.sha256,
    )
    content = graph_files.serialize(quantized.model, spec, source, "int8")
    return _Checked(
        path=folder.onnx_path("int8"),
        precision="int8",
        graph=graph_files.graph_of(quantized.model, content),
        content=content,
        weights=fp32.weights,
        parity=None,
        quantization=quantized.report,
        ranges=None if options.calibrate is None else quantized.ranges,
    )
