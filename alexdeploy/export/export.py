"""The export step: a model folder in, checked ONNX files in the same folder out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder, sha256_bytes, sha256_file
from alexdeploy.core.errors import DeviceError, ImageError, ModelError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.export import graphs
from alexdeploy.export.deployment import check_network
from alexdeploy.export.fp16 import to_fp16
from alexdeploy.export.parity import Parity, check_parity, compare_outputs
from alexdeploy.images import sample
from alexdeploy.images.decode import decode
from alexdeploy.images.listing import walk_images
from alexdeploy.images.preprocess import network_input
from alexdeploy.images.sources import iter_sources, read_file
from alexdeploy.network.layers import plan_layers
from alexdeploy.network.weights import Weights, load_weights

_NUM_RANDOM = 2
_NUM_REAL = 4
_MOST_FILES = 100_000
_MOST_CANDIDATES = 64

_Resize = Literal["crop", "warp"]


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
    Raises ParityError, with every file left as it was, if a graph does not give the answers of the weights: nothing
    is written before all that was asked for has been checked.
    """
    spec = folder.spec()
    images = check_images(folder, spec, options.images, on_step)
    checked = [_checked_fp32(folder, spec, images, on_step)]
    if options.fp16:
        checked.append(_checked_fp16(checked[0], folder, spec, images, on_step))
    for each in checked:
        if each.content is not None:
            graphs.write_graph(each.path, each.content)
    return tuple(
        Exported(
            path=each.path,
            precision=each.precision,
            sha256=each.graph.sha256,
            written=each.content is not None,
            parity=each.parity,
        )
        for each in checked
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """A graph that may be written. `content` is None where the file is it already; `weights` where there are none."""

    path: Path
    precision: str
    graph: graphs.Graph
    content: bytes | None
    weights: Weights | None
    parity: Parity | None


def _checked_fp32(
    folder: ModelFolder, spec: ModelSpec, images: NDArray[np.float32], on_step: Callable[[str], None]
) -> _Checked:
    path = folder.onnx_path()
    if not folder.weights_path.is_file():
        graph = graphs.load_graph(folder, "fp32", spec)
        return _Checked(path=path, precision="fp32", graph=graph, content=None, weights=None, parity=None)
    if spec.architecture is None:
        raise ModelError(f"{folder.spec_path} has no architecture to build the weights into")
    try:
        from alexdeploy.export.onnx_export import export_network
    except ImportError as exc:
        raise DeviceError("exporting weights needs PyTorch", cure="pip install 'alexdeploy[train]'") from exc
    # Before they are read: if they change in between, the graph is refused as stale and not taken for the new one.
    digest = sha256_file(folder.weights_path)
    weights = load_weights(folder.weights_path, plan_layers(spec.architecture, spec.num_classes))
    on_step("exporting with torch.onnx")
    model, plan, torch_activations = export_network(spec.architecture, spec.num_classes, weights, images)
    check_network(model, spec)
    on_step("checking ONNX Runtime and PyTorch against NumPy float64")
    parity = check_parity(model, plan, weights, images, "fp32", {"PyTorch": torch_activations})
    source = graphs.Source(name=folder.weights_path.name, sha256=digest, weights_sha256=digest)
    content = graphs.serialize(model, spec, source)
    graph = graphs.Graph(model=model, sha256=sha256_bytes(content))
    return _Checked(path=path, precision="fp32", graph=graph, content=content, weights=weights, parity=parity)


def _checked_fp16(
    fp32: _Checked,
    folder: ModelFolder,
    spec: ModelSpec,
    images: NDArray[np.float32],
    on_step: Callable[[str], None],
) -> _Checked:
    on_step("converting to FP16, LRN in FP32")
    model = to_fp16(fp32.graph.model)
    on_step("checking the FP16 graph")
    if spec.architecture is not None and fp32.weights is not None:
        plan = plan_layers(spec.architecture, spec.num_classes)
        parity = check_parity(model, plan, fp32.weights, images, "fp16")
    else:
        parity = compare_outputs(model, fp32.graph.model, images, "fp16")
    source = graphs.Source(name=fp32.path.name, sha256=fp32.graph.sha256, weights_sha256=fp32.graph.weights_sha256)
    content = graphs.serialize(model, spec, source)
    return _Checked(
        path=folder.onnx_path("fp16"),
        precision="fp16",
        graph=graphs.Graph(model=model, sha256=sha256_bytes(content)),
        content=content,
        weights=fp32.weights,
        parity=parity,
    )


def check_images(
    folder: ModelFolder,
    spec: ModelSpec,
    named: str | None,
    on_step: Callable[[str], None] = lambda message: None,
) -> NDArray[np.float32]:
    """Network inputs to check on, float32 [N, 3, crop, crop]: some random, some from real photographs.

    `named` is anything that `iter_sources` takes. Raises ImageError if one of its first images cannot be read.
    """
    steps, mean = spec.preprocessing, folder.mean_image(spec)
    origin = named or str(spec.provenance.get("data") or "")
    photographs = _named_photographs(named, steps.resize) if named else _training_photographs(origin, steps.resize)
    if not photographs:
        origin = "rendered pictures"
        photographs = [_rendered(index, steps.resize) for index in range(_NUM_REAL)]
    on_step(f"checking on {_NUM_RANDOM} random inputs and {len(photographs)} images of {origin}")
    real = np.concatenate([network_input(photograph, steps, 1, mean) for photograph in photographs])
    rng = np.random.default_rng(0)
    random = rng.normal(float(real.mean()), float(real.std()), (_NUM_RANDOM, *real.shape[1:])).astype(np.float32)
    return np.concatenate([random, real])


def _named_photographs(named: str, resize: _Resize) -> list[NDArray[np.uint8]]:
    photographs = []
    for source in islice(iter_sources([named]), _NUM_REAL):
        try:
            photographs.append(decode(source.read(), resize))
        except ImageError as exc:
            raise ImageError(f"{source.name}: {exc.message}", cure="Name photographs that can be read.") from exc
    return photographs


def _training_photographs(origin: str, resize: _Resize) -> list[NDArray[np.uint8]]:
    """Up to four images from all over the folder `origin`, so of several classes; none if it is not a folder here.

    The name comes from `spec.json`, whoever wrote that: it is never read as a list, a pattern or an archive.
    """
    photographs: list[NDArray[np.uint8]] = []
    if not origin or not Path(origin).is_dir():
        return photographs
    files = (found.path for found in walk_images(origin) if found.problem is None)
    for path in _spread(islice(files, _MOST_FILES)):
        with suppress(ImageError):
            photographs.append(decode(read_file(path, was_listed=True), resize))
        if len(photographs) == _NUM_REAL:
            break
    return photographs


def _spread(paths: Iterable[str]) -> list[str]:
    """At most 64 of `paths`, ordered so that the first four, and every four after them, lie evenly over all."""
    kept: list[str] = []
    step = 1
    for index, path in enumerate(paths):
        if index % step == 0:
            kept.append(path)
        if len(kept) > _MOST_CANDIDATES:
            kept, step = kept[::2], 2 * step
    stride = -(-len(kept) // _NUM_REAL)
    return [path for first in range(stride) for path in kept[first::stride]]


def _rendered(index: int, resize: _Resize) -> NDArray[np.uint8]:
    picture = sample.render_image(index % len(sample.CLASSES), np.random.default_rng(index))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return decode(buffer.getvalue(), resize)
