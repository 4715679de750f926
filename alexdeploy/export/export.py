"""The export step: a model folder in, checked ONNX files in the same folder out."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder
from alexdeploy.core.errors import DeviceError, ImageError, ModelError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.export import graphs
from alexdeploy.export.deployment import check_network
from alexdeploy.export.fp16 import to_fp16
from alexdeploy.export.parity import Parity, check_parity, compare_outputs
from alexdeploy.images import sample
from alexdeploy.images.decode import decode
from alexdeploy.images.preprocess import network_input
from alexdeploy.images.sources import iter_sources
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import load_weights

_NUM_RANDOM = 2
_NUM_REAL = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """One file that an export wrote, or found up to date, and how it was checked."""

    path: Path
    precision: str
    sha256: str
    written: bool
    parity: Parity | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """`images`: a photograph, folder or archive to check on; None takes the training data, or rendered pictures."""

    fp16: bool = False
    images: str | None = None


def export_model(
    folder: ModelFolder,
    options: ExportOptions = ExportOptions(),
    on_step: Callable[[str], None] = lambda message: None,
) -> tuple[Exported, ...]:
    """Write `model.onnx`, and `model.fp16.onnx` if asked, after each has been checked against the weights.

    An imported model has no weights of its own: its `model.onnx` stays, and the FP16 graph is checked against it.
    Raises ParityError, with every file left as it was, if a graph does not give the answers of the weights.
    """
    spec = folder.spec()
    images = check_images(folder, spec, options.images, on_step)
    exported = [_export_fp32(folder, spec, images, on_step)]
    if options.fp16:
        exported.append(_export_fp16(folder, spec, images, on_step))
    return tuple(exported)


def _export_fp32(
    folder: ModelFolder, spec: ModelSpec, images: NDArray[np.float32], on_step: Callable[[str], None]
) -> Exported:
    path = folder.onnx_path()
    if not folder.weights_path.is_file():
        graph = graphs.load_graph(folder, "fp32", spec)
        return Exported(path=path, precision="fp32", sha256=graph.sha256, written=False, parity=None)
    if spec.architecture is None:
        raise ModelError(f"{folder.spec_path} has no architecture to build the weights into")
    try:
        from alexdeploy.export.onnx_export import export_network
    except ImportError as exc:
        raise DeviceError("exporting weights needs PyTorch", cure="pip install 'alexdeploy[train]'") from exc
    weights = load_weights(folder.weights_path, plan_layers(spec.architecture, spec.num_classes))
    on_step("exporting with torch.onnx")
    model, plan, torch_activations = export_network(spec.architecture, spec.num_classes, weights, images)
    check_network(model, spec)
    on_step("checking ONNX Runtime and PyTorch against NumPy float64")
    parity = check_parity(model, plan, weights, images, "fp32", {"PyTorch": torch_activations})
    digest = graphs.write_graph(path, model, spec, folder.weights_path)
    return Exported(path=path, precision="fp32", sha256=digest, written=True, parity=parity)


def _export_fp16(
    folder: ModelFolder, spec: ModelSpec, images: NDArray[np.float32], on_step: Callable[[str], None]
) -> Exported:
    path = folder.onnx_path("fp16")
    source = graphs.load_graph(folder, "fp32", spec)
    on_step("converting to FP16, LRN in FP32")
    model = to_fp16(source.model)
    on_step("checking the FP16 graph")
    if spec.architecture is not None and folder.weights_path.is_file():
        plan = plan_layers(spec.architecture, spec.num_classes)
        parity = check_parity(model, plan, load_weights(folder.weights_path, plan), images, "fp16")
    else:
        parity = compare_outputs(model, source.model, images, "fp16")
    digest = graphs.write_graph(path, model, spec, folder.onnx_path())
    return Exported(path=path, precision="fp16", sha256=digest, written=True, parity=parity)


def check_images(
    folder: ModelFolder,
    spec: ModelSpec,
    named: str | None,
    on_step: Callable[[str], None] = lambda message: None,
) -> NDArray[np.float32]:
    """Network inputs to check on, float32 [N, 3, crop, crop]: some random, some from real photographs."""
    steps, mean = spec.preprocessing, folder.mean_image(spec)
    origin = named or str(spec.provenance.get("data") or "")
    photographs: list[NDArray[np.uint8]] = []
    for source in iter_sources([origin]) if origin else ():
        try:
            photographs.append(decode(source.read(), steps.resize))
        except ImageError as exc:
            if named:
                raise ImageError(f"{source.name}: {exc.message}", cure="Name photographs that can be read.") from exc
        if len(photographs) == _NUM_REAL:
            break
    if not photographs:
        origin = "rendered pictures"
        photographs = [_rendered(index, steps.resize) for index in range(_NUM_REAL)]
    on_step(f"checking on {_NUM_RANDOM} random inputs and {len(photographs)} images of {origin}")
    real = np.concatenate([network_input(photograph, steps, 1, mean) for photograph in photographs])
    rng = np.random.default_rng(0)
    random = rng.normal(float(real.mean()), float(real.std()), (_NUM_RANDOM, *real.shape[1:])).astype(np.float32)
    return np.concatenate([random, real])


def _rendered(index: int, resize: Literal["crop", "warp"]) -> NDArray[np.uint8]:
    picture = sample.render_image(index % len(sample.CLASSES), np.random.default_rng(index))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return decode(buffer.getvalue(), resize)
