"""How much memory a model needs: its weights, its activations, and in the memory of this machine."""

from __future__ import annotations

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision
from alexdeploy.engines.base import is_installed
from alexdeploy.network.layers import plan_layers
from alexdeploy.placement.options import BATCH_SIZE, PredictOptions

_VIEW_BYTES = 8_000_000
"""Activations per view if the architecture is unknown; those of the 2012 network take 5 MB in float32."""

_HOST_BYTES = 160_000_000
"""What an engine takes whatever the model is, most of it its library. Measured: up to 140 MB in OpenVINO 2026.4."""

_WEIGHT_COPIES = 4
"""Memory while a model is opened, as a multiple of its graph's size. Measured with 228 MB of weights: 3.7 in OpenVINO
while it compiles and 2.1 with the compiled model in the cache, 2.7 in ONNX Runtime."""

_OPENVINO_SHARE = 0.25
"""OpenVINO's memory for activations as a share of `view_bytes`. Measured: 0.1 to 0.2; ONNX Runtime takes about 1."""


def weight_bytes(folder: ModelFolder, precision: Precision) -> int:
    """The size of the graph, or of the file of weights."""
    for name in (precision, "fp32"):
        path = folder.onnx_path(name)
        if path.is_file():
            return path.stat().st_size
    return folder.weights_path.stat().st_size if folder.weights_path.is_file() else 0


def view_bytes(spec: ModelSpec) -> int:
    """Bytes of all layers' inputs and outputs in float32: an upper bound, because runtimes reuse memory."""
    if spec.members:
        return sum(map(view_bytes, spec.networks))
    if spec.architecture is None:
        return _VIEW_BYTES
    total = 0
    for layer in plan_layers(spec.architecture, spec.num_classes):
        size = 4
        for side in layer.output_shape:
            size *= side
        total += size
    return total + 4 * 3 * spec.preprocessing.crop**2


def host_bytes(folder: ModelFolder, options: PredictOptions) -> int:
    """An estimate of the most memory of this machine that the model takes while it is opened and used on its CPU.

    Raises ModelError if it has no readable spec.
    """
    num_replicas = options.replicas * (1 if options.devices is None else options.devices.count(",") + 1)
    backend = options.backend or ("openvino" if is_installed("openvino") else "onnxruntime")
    # Replicas share the threads, and OpenVINO has at most a stream for each of them.
    num_threads = options.num_threads or available_processors()
    num_streams = min(options.num_streams or num_threads, num_threads) if backend == "openvino" else 1
    batch_size = BATCH_SIZE if options.batch_size == "auto" else options.batch_size
    share = _OPENVINO_SHARE if backend == "openvino" else 1.0
    pixel_bytes = 3 * IMAGE_SIZE * IMAGE_SIZE
    # Each view is also cut, in float32.
    image_bytes = pixel_bytes + share * options.num_views * (view_bytes(folder.spec()) + 4 * pixel_bytes)
    engine_bytes = _HOST_BYTES + _WEIGHT_COPIES * weight_bytes(folder, options.precision)
    return num_replicas * engine_bytes + round(max(num_streams, num_replicas) * batch_size * image_bytes)
