"""The time of each layer as reported by an engine's runtime, on one core so that times add up."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError, UsageError, first_line
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import Precision, graph_precision
from alexdeploy.engines.base import Backend, NumViews
from alexdeploy.graphs.deployment import PREFIX, deployment_graph
from alexdeploy.graphs.freshness import load_graph
from alexdeploy.graphs.onnxruntime_library import new_session

PROFILED: tuple[Backend, ...] = ("openvino", "onnxruntime")
"""Backends whose runtimes report the time of each layer."""

_NUM_RUNS = 5
_AFTER_NETWORK = tuple(PREFIX + name for name in ("softmax", "by_view", "answers", "logits"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTime:
    """Milliseconds per batch of one layer. Fused layers have one name. `kind` is the runtime's name for its type.

    `is_preprocessing`: the layer is before the network, between pixels and views.
    """

    name: str
    kind: str
    milliseconds: float
    is_preprocessing: bool


def profile(
    folder: ModelFolder, backend: Backend, precision: Precision, num_views: NumViews, images: NDArray[np.uint8]
) -> tuple[LayerTime, ...]:
    """Run `images`, uint8 [N, 256, 256, 3], a few times on one core; return the median time of each layer, in order.

    Raises UsageError for a backend that does not report layer times, DeviceError and ModelError.
    """
    if backend not in PROFILED:
        raise UsageError(f"{backend} does not report times of layers", hint=f"Backends that do: {', '.join(PROFILED)}")
    spec = folder.spec()
    graph = load_graph(folder, graph_precision(precision), spec)
    mean_image = folder.mean_image(spec)
    # The same graph that the engine runs, for the number of images given here.
    if backend == "openvino":
        from alexdeploy.engines.openvino import local_graph

        model = local_graph(graph.model, spec, precision, num_views, mean_image)
    else:
        model = deployment_graph(graph.model, spec, num_views, mean_image)
    content: bytes = model.SerializeToString()
    try:
        if backend == "openvino":
            from alexdeploy.engines.openvino import may_be_bfloat16

            return _medians(_openvino(content, precision, may_be_bfloat16(graph, spec), images))
        return _medians(_onnxruntime(content, images))
    # Neither runtime has a common base class for its exceptions; ONNX Runtime's derive from Exception.
    except Exception as exc:
        raise DeviceError(f"{backend} could not be profiled: {first_line(exc)}") from exc


def _openvino(
    content: bytes, precision: Precision, allow_bfloat16: bool, images: NDArray[np.uint8]
) -> Iterable[tuple[str, str, float]]:
    from alexdeploy.engines.openvino import precision_hint
    from alexdeploy.engines.openvino_library import cpu_capabilities, shared_core

    core = shared_core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision_hint(cpu_capabilities(core), precision, allow_bfloat16),
        "INFERENCE_NUM_THREADS": "1",
        "NUM_STREAMS": "1",
        "PERF_COUNT": "YES",
    }
    model = core.read_model(content)
    model.reshape(list(images.shape))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.infer({0: images})
    for _ in range(_NUM_RUNS):
        request.infer({0: images})
        for entry in request.profiling_info:
            if entry.real_time:
                yield entry.node_name, entry.node_type, 1e3 * entry.real_time.total_seconds()


def _onnxruntime(content: bytes, images: NDArray[np.uint8]) -> Iterable[tuple[str, str, float]]:
    with tempfile.TemporaryDirectory() as folder:

        def set_options(options: Any) -> None:
            options.intra_op_num_threads = 1
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")

        session = new_session(content, ["CPUExecutionProvider"], set_options)
        for _ in range(1 + _NUM_RUNS):
            session.run(None, {"images": images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    seen: dict[str, int] = defaultdict(int)
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        seen[name] += 1
        # The first run allocates, and is slower.
        if seen[name] > 1:
            yield name, event["args"].get("op_name", ""), event["dur"] / 1e3


def _medians(times: Iterable[tuple[str, str, float]]) -> tuple[LayerTime, ...]:
    by_layer: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, kind, milliseconds in times:
        by_layer[name, kind].append(milliseconds)
    return tuple(
        LayerTime(
            name=name,
            kind=kind,
            milliseconds=float(np.median(values)),
            is_preprocessing=name.startswith(PREFIX) and not name.startswith(_AFTER_NETWORK),
        )
        for (name, kind), values in by_layer.items()
    )
