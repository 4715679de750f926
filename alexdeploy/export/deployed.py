"""The deployment graph as a file that any ONNX runtime runs: pixels in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from alexdeploy.core.backend_checks import BackendCheck
from alexdeploy.core.errors import ModelError, first_line
from alexdeploy.core.events import Status
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import backend_version
from alexdeploy.core.reading import MAX_TEXT_BYTES, read_regular
from alexdeploy.core.spec import CONTRACT_KEY, ModelSpec, Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.export.engine_check import check_deployed
from alexdeploy.export.events import Event
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.files import Graph, graph_of, sum_line
from alexdeploy.graphs.metadata import PRECISION_KEY, SOURCE_KEY, SOURCE_NAME_KEY, SPEC_KEY, VIEWS_KEY
from alexdeploy.graphs.openvino import unit_lrn_bias


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployed:
    """A deployment graph that passed its check. `content` is None if the file is up to date."""

    path: Path
    precision: Precision
    num_views: NumViews
    sha256: str
    content: bytes | None
    check: BackendCheck


def deployed_graphs(
    folder: ModelFolder,
    network: Graph,
    precision: Precision,
    spec: ModelSpec,
    mean_image: NDArray[np.float32] | None,
    photographs: NDArray[np.uint8],
    asked: tuple[NumViews, ...],
    on_event: Callable[[Event], None],
) -> list[Deployed]:
    """The deployment graphs of a network: of the numbers of views `asked`, and of the files that are there.

    Each is compared with the network on `photographs` uint8 [N, 256, 256, 3] in ONNX Runtime, as a program elsewhere
    runs it. Raises ParityError if the answers differ, ModelError as `portable_graph` does.
    """
    found = []
    for num_views in get_args(NumViews):
        path, sum_path = (of(precision, num_views) for of in (folder.onnx_path, folder.sum_path))
        # A file that is there would be stale otherwise.
        if num_views not in asked and not path.is_file():
            continue
        on_event(Status(message=f"checking {path.name} against the network"))
        source = folder.onnx_path(precision).name
        graph, content = portable_graph(network, source, spec, precision, num_views, mean_image)
        error = check_deployed(graph.model, network.model, spec, mean_image, photographs, num_views)
        is_there = path.is_file() and sha256_file(path) == graph.sha256 and _has(sum_path, sum_line(path, content))
        check = BackendCheck(
            backend="onnxruntime",
            version=backend_version("onnxruntime"),
            precision=precision,
            artifact=graph.sha256,
            num_images=len(photographs),
            error=error,
        )
        found.append(
            Deployed(
                path=path,
                precision=precision,
                num_views=num_views,
                sha256=graph.sha256,
                content=None if is_there else content,
                check=check,
            )
        )
    return found


def _has(path: Path, content: bytes) -> bool:
    """Whether `path` is a file with this content; one that cannot be read is written again."""
    try:
        return read_regular(path, MAX_TEXT_BYTES) == content
    except (OSError, ModelError):
        return False


def portable_graph(
    graph: Graph,
    source: str,
    spec: ModelSpec,
    precision: Precision,
    num_views: NumViews,
    mean_image: NDArray[np.float32] | None,
) -> tuple[Graph, bytes]:
    """The deployment graph of `graph`, the network in the file named `source`, and the bytes of its file.

    Where LRN's k is not a whole number, which OpenVINO computes wrongly, the LRN has k = 1 and a Mul follows it.
    Raises ModelError if the ONNX checker refuses the result.
    """
    model = unit_lrn_bias(deployment_graph(graph.model, spec, num_views, mean_image))
    facts = {
        **{key: value for key, value in graph.metadata.items() if key.startswith("alexdeploy.")},
        SPEC_KEY: msgspec.json.encode(spec).decode(),
        CONTRACT_KEY: spec.contract_sha256,
        SOURCE_NAME_KEY: source,
        SOURCE_KEY: graph.sha256,
        PRECISION_KEY: precision,
        VIEWS_KEY: str(num_views),
    }
    onnx.helper.set_model_props(model, facts)
    # Deterministic, so that exporting twice gives the same hash.
    content = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as exc:
        raise ModelError(f"the deployment graph of {source} is not valid ONNX: {first_line(exc)}") from exc
    return graph_of(model, content), content
