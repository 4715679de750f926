"""The graphs of an export, each made and checked in memory before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError
from alexdeploy.core.events import Status
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import missing_package, package_version
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.export.events import Event
from alexdeploy.export.fp16 import HalfLayer, plan_fp16, to_fp16
from alexdeploy.export.parity import Parity, check_parity, compare_outputs
from alexdeploy.export.publish import Network
from alexdeploy.export.quantize.calibrate import measured_tensors
from alexdeploy.export.quantize.quantize import Budget, Quantization, quantize
from alexdeploy.graphs import files as graph_files
from alexdeploy.graphs.deployment import check_network
from alexdeploy.graphs.edit import WeightBits
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.ranges import Ranges, read_ranges
from alexdeploy.graphs.runner import GraphRunner
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
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


def kept_fp32(folder: ModelFolder, network: Network) -> Checked | None:
    """`model.onnx` if its metadata and the records beside it show that an export would not change it; else None."""
    if network.weights is None or network.new_files or not folder.sum_path().is_file():
        return None
    try:
        graph = load_graph(folder, "fp32", network.spec)
    except ModelError:
        return None
    if [each.version for each in graph.model.opset_import] != [graph_files.OPSET]:
        return None
    # Another PyTorch may write another graph. Without any, the graph that is there is what can be converted. The wheels
    # of PyPI are "2.10.0" in their metadata, and write "2.10.0+cu128".
    version = package_version("torch")
    if version is not None and _release(version) != _release(graph.model.producer_version):
        return None
    return Checked(
        path=folder.onnx_path(),
        precision="fp32",
        graph=graph,
        content=None,
        weights=network.weights.tensors,
        parity=None,
    )


def _release(version: str) -> str:
    """A version without its build, which follows a "+"."""
    return version.partition("+")[0]


def checked_fp32(
    folder: ModelFolder, network: Network, images: NDArray[np.float32], on_event: Callable[[Event], None]
) -> Checked:
    path, spec = folder.onnx_path(), network.spec
    if network.weights is None:
        graph = load_graph(folder, "fp32", spec)
        return Checked(path=path, precision="fp32", graph=graph, content=None, weights=None, parity=None)
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
    return Checked(path=path, precision="fp32", graph=graph, content=content, weights=weights, parity=parity)


def checked_fp16(
    fp32: Checked,
    folder: ModelFolder,
    spec: ModelSpec,
    images: NDArray[np.float32],
    ranges: Ranges | None,
    on_event: Callable[[Event], None],
) -> Checked:
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
    return Checked(
        path=folder.onnx_path("fp16"),
        precision="fp16",
        graph=graph_files.graph_of(model, content),
        content=content,
        weights=fp32.weights,
        parity=parity,
        half_layers=layers,
    )


def _largest(
    fp32: Checked,
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


def checked_int8(
    fp32: Checked,
    folder: ModelFolder,
    spec: ModelSpec,
    calibrate: str | None,
    budget: Budget,
    weight_bits: WeightBits,
    on_event: Callable[[Event], None],
) -> Checked:
    """The INT8 graph, as `quantize` makes it."""
    quantized = quantize(folder, spec, fp32.graph, calibrate, budget, weight_bits=weight_bits, on_event=on_event)
    source = graph_files.Source(
        name=fp32.path.name,
        sha256=fp32.graph.sha256,
        weights_sha256=fp32.graph.weights_sha256,
        ranges_sha256=quantized.ranges.sha256,
    )
    content = graph_files.serialize(quantized.model, spec, source, "int8")
    return Checked(
        path=folder.onnx_path("int8"),
        precision="int8",
        graph=graph_files.graph_of(quantized.model, content),
        content=content,
        weights=fp32.weights,
        parity=None,
        quantization=quantized.report,
        ranges=None if calibrate is None else quantized.ranges,
    )
