"""Choosing the engine file of a model that fits the GPU and the requirements. Does not import TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import release
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import EngineBackend, NumViews
from alexdeploy.engines.trt.files import NAMES, EngineRecord, find_engines, sm
from alexdeploy.engines.trt.signing import name_of, read_secret
from alexdeploy.graphs.freshness import load_metadata, read_metadata
from alexdeploy.network.weights import check_origin


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequirements:
    """Requirements for an engine to run here; `batch_size` is the largest number of images.

    `version` is that of the backend's library; `cuda` plays no part for TensorRT-RTX.

    `graph_sha256` None: no graph of this precision exists; `weights_sha256` None: nothing to compare with.
    """

    graph_sha256: str | None
    weights_sha256: str | None
    contract_sha256: str
    precision: Precision
    num_views: NumViews
    batch_size: int
    backend: EngineBackend = "tensorrt"
    version: str
    compute_capability: tuple[int, int]
    cuda: str


def engine_requirements(
    folder: ModelFolder,
    *,
    precision: Precision,
    num_views: NumViews,
    batch_size: int,
    backend: EngineBackend = "tensorrt",
    version: str,
    compute_capability: tuple[int, int],
    cuda: str,
) -> EngineRequirements:
    """The requirements for an engine of this model with that library, GPU and driver (`cuda` as in "13.0").

    Reads and hashes the model's files: for another GPU or batch, use `dataclasses.replace` on the result. Raises
    ModelError for a damaged model, StaleArtifactError for a graph of older weights.
    """
    spec = folder.spec()
    graph, weights = _hashes(folder, precision, spec)
    return EngineRequirements(
        graph_sha256=graph,
        weights_sha256=weights,
        contract_sha256=spec.contract_sha256,
        precision=precision,
        num_views=num_views,
        batch_size=batch_size,
        backend=backend,
        version=version,
        compute_capability=compute_capability,
        # An engine for RTX cards is built without their driver.
        cuda="" if backend == "tensorrt-rtx" else cuda,
    )


def _hashes(folder: ModelFolder, precision: Precision, spec: ModelSpec) -> tuple[str | None, str | None]:
    """Hashes of the graph and of its weights: an inference machine may have one, both or neither."""
    if folder.onnx_path(precision).is_file():
        facts = load_metadata(folder, precision, spec)
        return facts.sha256, facts.network_sha256
    if folder.weights_path.is_file():
        return None, check_origin(folder, spec)
    for each in get_args(Precision):
        if folder.onnx_path(each).is_file():
            return None, read_metadata(folder.onnx_path(each)).network_sha256
    return None, None


def fitting_engines(
    folder: ModelFolder, wanted: EngineRequirements, *, gpu: str = "", is_largest_first: bool = False
) -> list[tuple[Path, EngineRecord]]:
    """The engines that meet the requirements, best first; none is verified yet.

    Sorted by: marked as signed by this installation, built on a GPU of that name, smallest (or largest) maximum batch,
    most recently built. Raises ModelError if other users could read or change the secret.
    """
    secret = read_secret()
    own = None if secret is None else name_of(secret)
    fitting = [found for found in find_engines(folder) if not differences_from(found[1], wanted)]
    fitting.sort(key=lambda found: found[1].built_at, reverse=True)
    sign = -1 if is_largest_first else 1
    return sorted(
        fitting, key=lambda found: (found[1].signed_by != own, found[1].gpu != gpu, sign * found[1].profile[2])
    )


def choose_engine(folder: ModelFolder, wanted: EngineRequirements, *, gpu: str = "") -> Path:
    """The first of the fitting engines. Raises ModelError that says how the nearest differs."""
    fitting = fitting_engines(folder, wanted, gpu=gpu)
    if fitting:
        return fitting[0][0]
    hint = f"Build one: {build_command(folder, wanted)}"
    others = [
        (path, differences_from(record, wanted))
        for path, record in find_engines(folder)
        if record.backend == wanted.backend
    ]
    if not others:
        raise ModelError(f"{folder.path} has no {NAMES[wanted.backend]} engine", hint=hint)
    path, differences = min(others, key=lambda other: len(other[1]))
    raise ModelError(f"{path} does not fit: {'; '.join(differences)}", hint=hint)


def differences_from(record: EngineRecord, wanted: EngineRequirements) -> tuple[str, ...]:
    """A description of each requirement that an engine does not meet."""
    told = []
    if record.backend != wanted.backend:
        told.append(f"it is for {NAMES[record.backend]}, requested {NAMES[wanted.backend]}")
    if record.precision != wanted.precision:
        told.append(f"its precision is {record.precision}, requested {wanted.precision}")
    if record.num_views != wanted.num_views:
        told.append(f"it averages {record.num_views} views, requested {wanted.num_views}")
    # The graph of another precision always has another hash.
    graph = wanted.graph_sha256 if record.precision == wanted.precision else None
    if wanted.weights_sha256 not in (None, record.weights_sha256):
        told.append(
            f"it was built from weights {record.weights_sha256[:12]}, the model's are {wanted.weights_sha256[:12]}"
        )
    elif graph is not None and record.graph_sha256 != graph:
        told.append(f"it was built from graph {record.graph_sha256[:12]}, the model's is {graph[:12]}")
    if record.contract_sha256 != wanted.contract_sha256:
        told.append("it was built for another architecture, preprocessing or classes")
    if not record.profile[0] <= wanted.batch_size <= record.profile[2]:
        told.append(f"it takes {record.profile[0]} to {record.profile[2]} images, requested {wanted.batch_size}")
    if wanted.compute_capability not in record.compute_capabilities:
        capabilities = " and ".join(map(sm, record.compute_capabilities))
        told.append(f"it is for {capabilities}, this device is {sm(wanted.compute_capability)}")
    versions = (
        (NAMES[record.backend], release(record.version), release(wanted.version)),
        ("CUDA", record.cuda, wanted.cuda),
    )
    for name, found, here in versions:
        if found != here and record.backend == wanted.backend:
            told.append(f"it was built with {name} {found}, here is {here}")
    return tuple(told)


def build_command(folder: ModelFolder, wanted: EngineRequirements, device: str | None = None) -> str:
    """The command that builds a suitable engine; TensorRT's for the first GPU unless `device` names another."""
    words = ["alexdeploy build", folder.quoted]
    words += [f"--{wanted.precision}"] * (wanted.precision != "fp32")
    words += [f"--views {wanted.num_views}"] * (wanted.num_views != 1)
    words += [f"--max-batch {wanted.batch_size}"]
    if wanted.backend == "tensorrt-rtx":
        words += ["--backend tensorrt-rtx", f"--for sm{wanted.compute_capability[0]}{wanted.compute_capability[1]}"]
    else:
        words += [f"--devices {device}"] * (device is not None)
    return " ".join(words)
