"""How much memory a model needs: its weights, its activations, and in the memory of this machine."""

from __future__ import annotations

from dataclasses import replace

from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import DeviceMemoryError
from alexdeploy.core.memory import host_memory, is_in_memory
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import IMAGE_SIZE, ModelSpec, Precision
from alexdeploy.engines.base import Backend, can_run, compiling_bytes, is_installed
from alexdeploy.network.layers import plan_layers
from alexdeploy.placement.options import BATCH_SIZE, PredictOptions

_VIEW_BYTES = 8_000_000
"""Activations per view if the architecture is unknown; those of the 2012 network take 5 MB in float32."""

_HOST_BYTES = 160_000_000
"""What an engine takes whatever the model is, most of it its library. Measured: up to 140 MB in OpenVINO 2026.4."""

_OPENING_COPIES = {"onnxruntime": 4.5, "torch": 2.5}
_OPEN_COPIES = 2
"""Memory while a model is opened and afterwards, as a multiple of its weights. Measured with 244 MB of weights, from
another process: 4.4 in ONNX Runtime, 2.3 in PyTorch; 2.1 to 2.2 afterwards. OpenVINO: `compiling_bytes`."""

_COMPILED_COPIES = 1
"""The same where the compiled model is in OpenVINO's cache: measured 0.7."""

_INT8_COPIES = 5
"""`_OPEN_COPIES` for INT8 in ONNX Runtime, which makes float32 of the weights: measured 4.7."""

_OPENVINO_SHARE, _LEAST_OPENVINO_SHARE = 0.25, 0.1
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


def host_bytes(
    folder: ModelFolder, options: PredictOptions, *, low_latency: bool = False, is_compiled: bool = False
) -> int:
    """An estimate of the most memory of this machine that the model takes while it is opened and used on its CPU.

    `low_latency`: as in a server, where OpenVINO opens a second model, for one image, beside the first. A cache of
    compiled models that is in memory counts. `is_compiled`: the least, with the compiled model in the cache. Raises
    ModelError if the model has no readable spec.
    """
    num_replicas = options.replicas * (1 if options.devices is None else options.devices.count(",") + 1)
    backend = _backend(options)
    # Replicas share the threads, and OpenVINO has at most a stream for each of them.
    num_threads = options.num_threads or available_processors()
    num_streams = min(options.num_streams or num_threads, num_threads) if backend == "openvino" else 1
    batch_size = BATCH_SIZE if options.batch_size == "auto" else options.batch_size
    share = (_LEAST_OPENVINO_SHARE if is_compiled else _OPENVINO_SHARE) if backend == "openvino" else 1.0
    pixel_bytes = 3 * IMAGE_SIZE * IMAGE_SIZE
    # Each view is also cut, in float32.
    image_bytes = pixel_bytes + share * options.num_views * (view_bytes(folder.spec()) + 4 * pixel_bytes)
    batch_bytes = round(max(num_streams, num_replicas) * batch_size * image_bytes)
    graphs = num_replicas * weight_bytes(folder, options.precision)
    # FP16 graphs are computed in float32.
    weights = graphs * (2 if options.precision == "fp16" else 1)
    if backend == "openvino":
        opening = compiling_bytes(graphs, options.precision)
    else:
        opening = round(_OPENING_COPIES.get(backend, 4) * graphs)
    if is_compiled and backend == "openvino":
        return num_replicas * _HOST_BYTES + _COMPILED_COPIES * weights + batch_bytes
    is_cached = backend == "openvino" and (cache := cache_folder("openvino")) is not None and is_in_memory(cache)
    is_widened = backend == "onnxruntime" and options.precision == "int8"
    using = ((_INT8_COPIES if is_widened else _OPEN_COPIES) + is_cached) * weights + batch_bytes
    opens_another = low_latency and backend == "openvino" and batch_size > 1
    return num_replicas * _HOST_BYTES + (using + opening if opens_another else max(using, opening))


def _backend(options: PredictOptions) -> Backend:
    return options.backend or ("openvino" if is_installed("openvino") else "onnxruntime")


def check_free_memory(folder: ModelFolder, options: PredictOptions) -> None:
    """Raise DeviceMemoryError if the model does not fit into the memory that is free, here or in this container.

    Whether OpenVINO has to compile it is not known yet; if so, its engine looks again.
    """
    needed = host_bytes(folder, options, is_compiled=True)
    free, _ = host_memory()
    if free is not None and needed > free:
        smaller = smaller_options(folder, options, free, is_compiled=True)
        raise DeviceMemoryError(
            f"{folder.path.name} needs about {needed / 1e6:,.0f} MB of memory, {free / 1e6:,.0f} MB are free",
            hint=f"Use {smaller}." if smaller else "Stop other programs, or give the container more memory.",
        )


def smaller_options(
    folder: ModelFolder,
    options: PredictOptions,
    free: int,
    *,
    low_latency: bool = False,
    is_compiled: bool = False,
) -> str:
    """Options of the command line, each of which alone makes the model fit into `free` bytes: "--views 1 or ..."."""
    others = {
        "--precision int8": replace(options, precision="int8"),
        "--batch-size 1": replace(options, batch_size=1),
        "--views 1": replace(options, num_views=1),
        "--replicas 1": replace(options, replicas=1),
    }
    if not folder.onnx_path("int8").is_file() or not can_run(_backend(options), "int8"):
        del others["--precision int8"]
    return " or ".join(
        name
        for name, other in others.items()
        if other != options and host_bytes(folder, other, low_latency=low_latency, is_compiled=is_compiled) <= free
    )
