"""Choosing the engine file of a model that meets the requirements on the present GPU. Imports no TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import release
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.engines.trt.files import EngineRecord, find_engines
from alexdeploy.engines.trt.signing import name_of, read_secret
from alexdeploy.graphs.freshness import load_metadata, read_metadata
from alexdeploy.network.weights import check_origin


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequirements:
    """What an engine must be to run here; `batch_size` is the most images.

    `graph_sha256` None: there is no graph of this precision; `weights_sha256` None: there is nothing to compare with.
    """

    graph_sha256: str | None
    weights_sha256: str | None
    contract_sha256: str
    precision: Precision
    num_views: NumViews
    batch_size: int
    tensorrt: str
    compute_capability: tuple[int, int]
    cuda: str


def engine_requirements(
    folder: ModelFolder,
    *,
    precision: Precision,
    num_views: NumViews,
    batch_size: int,
    tensorrt: str,
    compute_capability: tuple[int, int],
    cuda: str,
) -> EngineRequirements:
    """What an engine of this model must be to run with that TensorRT, GPU and driver (`cuda` as in "13.0").

    Reads and hashes the model's files: for another GPU or batch, use `dataclasses.replace` on what it gave. Raises
    ModelError for a damaged model, StaleArtifactError for a graph that its weights have left behind.
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
        tensorrt=tensorrt,
        compute_capability=compute_capability,
        cuda=cuda,
    )


def _hashes(folder: ModelFolder, precision: Precision, spec: ModelSpec) -> tuple[str | None, str | None]:
    """Of the graph, and of the weights that it comes from: an inference machine may have one, the other or neither."""
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
    """The engines that do what is wanted, the best first; none of them is verified yet.

    First come those that this installation says to have signed, of them those built on a GPU of that name, of them
    those for the smallest batches (or the largest), and of them those built last. Raises ModelError if the secret is
    not this user's alone.
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
    """The first of the fitting engines. Raises ModelError that says of the nearest in what it differs."""
    fitting = fitting_engines(folder, wanted, gpu=gpu)
    if fitting:
        return fitting[0][0]
    hint = f"Build one: {build_command(folder, wanted)}"
    others = [(path, differences_from(record, wanted)) for path, record in find_engines(folder)]
    if not others:
        raise ModelError(f"{folder.path} has no TensorRT engine", hint=hint)
    path, differences = min(others, key=lambda other: len(other[1]))
    raise ModelError(f"{path} does not fit: {'; '.join(differences)}", hint=hint)


def differences_from(record: EngineRecord, wanted: EngineRequirements) -> tuple[str, ...]:
    """Each part in which an engine is not what is wanted, in words."""
    told = []
    if record.precision != wanted.precision:
        told.append(f"its precision is {record.precision}, requested {wanted.precision}")
    if record.num_views != wanted.num_views:
        told.append(f"it averages {record.num_views} views, requested {wanted.num_views}")
    # The hash of another precision's graph differs as a matter of course.
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
    if record.compute_capability != wanted.compute_capability:
        told.append(f"it is for {_sm(record.compute_capability)}, this device is {_sm(wanted.compute_capability)}")
    versions = ("TensorRT", release(record.tensorrt), release(wanted.tensorrt)), ("CUDA", record.cuda, wanted.cuda)
    for name, found, here in versions:
        if found != here:
            told.append(f"it was built with {name} {found}, here is {here}")
    return tuple(told)


def build_command(folder: ModelFolder, wanted: EngineRequirements, device: str | None = None) -> str:
    """The command that builds what is wanted, for the first GPU unless another is named."""
    words = ["alexdeploy build", folder.quoted]
    words += [f"--{wanted.precision}"] * (wanted.precision != "fp32")
    words += [f"--views {wanted.num_views}"] * (wanted.num_views != 1)
    words += [f"--max-batch {wanted.batch_size}"]
    words += [f"--devices {device}"] * (device is not None)
    return " ".join(words)


def _sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"
