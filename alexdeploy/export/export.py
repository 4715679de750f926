"""The export step: read a model folder, write checked ONNX files to the same folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import check_argument, check_fields
from alexdeploy.core.backend_checks import BackendCheck, record_backend_checks
from alexdeploy.core.errors import ModelError, StaleArtifactError, UsageError
from alexdeploy.core.events import Notice, Status, warn_of_notices
from alexdeploy.core.model_folder import ModelFolder, own_model
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.export.check_images import check_images, check_photographs
from alexdeploy.export.checked import Checked, checked_fp16, checked_fp32, checked_int8, kept_fp32
from alexdeploy.export.deployed import deployed_graphs
from alexdeploy.export.engine_check import check_engines
from alexdeploy.export.events import Event
from alexdeploy.export.fp16 import HalfLayer
from alexdeploy.export.parity import Parity
from alexdeploy.export.publish import Network, check_complete, publish, read_network
from alexdeploy.export.quantize.int8 import quantizable_layers
from alexdeploy.export.quantize.quantize import Budget, Quantization, check_kept_layers
from alexdeploy.graphs.edit import WeightBits
from alexdeploy.graphs.freshness import ensemble_command, export_command, load_graph, load_metadata
from alexdeploy.graphs.ranges import read_ranges, write_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """One file that an export wrote, or found up to date, and how it was checked.

    `parity` compares layers or outputs with FP32's. `half_layers` is the FP16 plan, `quantization` the outcome of the
    INT8 search. `backends` are the installed backends, and whether each gives the graph's answers. `num_views` is that
    of a deployment graph; None for a network. `warnings`, of `model.onnx`: which other graphs cannot be used now,
    each with the command that renews it.
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
    warnings: tuple[str, ...] = ()


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
    if spec.members:
        checked = _kept_of_ensemble(folder, spec, options)
        _, photographs = check_photographs(spec, options.images)
    else:
        checked, photographs = _checked(folder, network, options, on_event)
    backends: dict[str, tuple[BackendCheck, ...]] = {}

    def warn(message: str) -> None:
        on_event(Notice(message=message))

    for each in checked:
        on_event(Status(message=f"checking every backend on the {each.precision} graph, with one view and ten"))
        backends[each.precision] = check_engines(
            each.graph, spec, each.precision, network.mean_image, photographs, warn
        )

    asked = (options.num_views,) if options.deployment else ()
    deployed = [
        each
        for of in checked
        for each in deployed_graphs(
            folder, of.graph, of.precision, spec, network.mean_image, photographs, asked, on_event
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
    warnings = _unusable(folder, spec)
    for message in warnings:
        warn(message)
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
            warnings=warnings if each.precision == "fp32" else (),
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


def _checked(
    folder: ModelFolder, network: Network, options: ExportOptions, on_event: Callable[[Event], None]
) -> tuple[list[Checked], NDArray[np.uint8]]:
    """The requested graphs, and the photographs to check the backends on."""
    spec = network.spec
    images = check_images(spec, network.mean_image, options.images, on_event)
    fp32 = (None if options.overwrite else kept_fp32(folder, network)) or checked_fp32(
        folder, network, images.inputs, on_event
    )
    # INT8 before FP16: the ranges measured for it also show where FP16 would overflow.
    int8 = None
    if options.int8:
        int8 = checked_int8(fp32, folder, spec, options.calibrate, options.budget, options.int8_weights, on_event)
    ranges = None if int8 is None else int8.ranges
    fp16 = checked_fp16(fp32, folder, spec, images.inputs, ranges, on_event) if options.fp16 else None
    return [each for each in (fp32, fp16, int8) if each is not None], images.photographs


def _unusable(folder: ModelFolder, spec: ModelSpec) -> tuple[str, ...]:
    """What is wrong with each graph of the folder, as of those that were made from an earlier `model.onnx`."""
    found = []
    for precision in get_args(Precision):
        if folder.onnx_path(precision).is_file():
            try:
                load_metadata(folder, precision, spec)
            except ModelError as exc:
                found.append("\n".join(filter(None, (exc.message, exc.hint))))
    return tuple(found)


def _precisions(options: ExportOptions) -> tuple[Precision, ...]:
    return ("fp32", *(("fp16",) if options.fp16 else ()), *(("int8",) if options.int8 else ()))


def _kept_of_ensemble(folder: ModelFolder, spec: ModelSpec, options: ExportOptions) -> list[Checked]:
    """The requested graphs of an ensemble as they are. Raises UsageError for options that would change them."""
    if options.overwrite or options.calibrate is not None or options.budget != Budget() or options.int8_weights != 8:
        raise UsageError(
            f"{folder.path} is an ensemble: its graphs are those of its members, which export does not change",
            hint=f"Export the members, then make it again: {ensemble_command(folder)}",
        )
    found = []
    for precision in _precisions(options):
        graph = load_graph(folder, precision, spec)
        path = folder.onnx_path(precision)
        found.append(Checked(path=path, precision=precision, graph=graph, content=None, weights=None, parity=None))
    return found


def _check_options(folder: ModelFolder, network: Network, options: ExportOptions) -> None:
    """Raise the errors that can be found before any work is done."""
    asked = _precisions(options)
    check_complete(folder, network, asked)
    if network.spec.members:
        # Its graphs are there, or loading them says what is missing.
        return
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
