"""What a version of the graph's model consists of: an ONNX file, or TensorRT's engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.engines.trt.files import DEFAULT_MAX_BATCH, find_engines, load_engine
from alexdeploy.export.deployed import portable_graph
from alexdeploy.graphs.freshness import load_graph, load_metadata
from alexdeploy.serving.triton.config import TritonBackend


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifacts:
    """`files` of the version's folder; `sha256` and `weights_sha256` of the network that they were made from.

    `graph` is the ONNX graph that runs; None for engines. `plans`: compute capability and file of each engine.
    """

    files: Mapping[str, bytes]
    sha256: str
    weights_sha256: str | None
    graph: onnx.ModelProto | None = None
    plans: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def make_artifacts(
    folder: ModelFolder, backend: TritonBackend, precision: Precision, num_views: NumViews, batch_size: int
) -> Artifacts:
    """The files that `backend` runs. Raises StaleArtifactError and ModelError as engines do when they are opened."""
    spec = folder.spec()
    if backend == "tensorrt":
        return _engines(folder, spec, precision, num_views, batch_size)
    network = load_graph(folder, precision, spec)
    source = folder.onnx_path(precision).name
    graph, content = portable_graph(network, source, spec, precision, num_views, folder.mean_image(spec))
    return Artifacts(
        files={"model.onnx": content},
        sha256=network.sha256,
        weights_sha256=network.weights_sha256,
        graph=graph.model,
    )


def _engines(
    folder: ModelFolder, spec: ModelSpec, precision: Precision, num_views: NumViews, batch_size: int
) -> Artifacts:
    """The newest engine for each compute capability, all of the version of TensorRT that built the newest of them.

    They are read as they are to be run: only what this installation built or trusts.
    """
    facts = load_metadata(folder, precision, spec)
    wanted = ("tensorrt", facts.sha256, spec.contract_sha256, precision, num_views)
    fitting = [
        (path, record)
        for path, record in find_engines(folder)
        if (record.backend, record.graph_sha256, record.contract_sha256, record.precision, record.num_views) == wanted
        and record.profile[0] == 1
        and record.profile[2] >= batch_size
    ]
    if not fitting:
        words = [] if precision == "fp32" else [f"--{precision}"]
        words += ["--views", str(num_views)]
        words += ["--max-batch", str(batch_size)] if batch_size > DEFAULT_MAX_BATCH else []
        raise ModelError(
            f"{folder.path} has no engine that fits: {precision}, --views {num_views}, batches of {batch_size}",
            hint=f"Build one: alexdeploy build {folder.quoted} {' '.join(words)}",
        )
    fitting.sort(key=lambda found: found[1].built_at)
    version = fitting[-1][1].version
    files, plans = {}, {}
    for path, record in fitting:
        if record.version == version:
            # An engine of TensorRT is for one.
            ((major, minor),) = record.compute_capabilities
            name = f"model.sm{major}{minor}.plan"
            plans[f"{major}.{minor}"] = name
            files[name] = load_engine(path)[1]
    note = f"the engines are of TensorRT {version}; the one in Triton must be the same"
    return Artifacts(
        files=files,
        sha256=facts.sha256,
        weights_sha256=facts.weights_sha256,
        plans=tuple(sorted(plans.items())),
        notes=(note,),
    )
