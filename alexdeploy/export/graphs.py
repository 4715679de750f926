"""ONNX files on disk: one file each, carrying the spec and the hash of what they were made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder, atomic_write, sha256_bytes, sha256_file
from alexdeploy.core.errors import ModelError, StaleArtifactError, first_line
from alexdeploy.core.spec import CONTRACT_KEY, ModelSpec
from alexdeploy.export.deployment import deployment_graph
from alexdeploy.export.ranges import Ranges, read_ranges

_SPEC_KEY = "alexdeploy.spec"
_SOURCE_KEY = "alexdeploy.source_sha256"
_SOURCE_NAME_KEY = "alexdeploy.source"
_WEIGHTS_KEY = "alexdeploy.weights_sha256"
_RANGES_KEY = "alexdeploy.ranges_sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a graph is made from: a file's name and hash, and the hash of the weights at the root of it all, if any.

    `ranges_sha256` is `Ranges.sha256` of those that an INT8 graph has its scales from.
    """

    name: str
    sha256: str
    weights_sha256: str | None = None
    ranges_sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A graph as it is on disk. `sha256` is the hash of the file's bytes."""

    model: onnx.ModelProto
    sha256: str

    @property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self.model.metadata_props}

    @property
    def weights_sha256(self) -> str | None:
        """The hash of the weights that it comes from, at any remove; None for an imported model."""
        return self.metadata.get(_WEIGHTS_KEY)

    @property
    def network_sha256(self) -> str:
        """What tells the network apart: its weights, or for an imported model its FP32 file."""
        is_derived = self.metadata.get(_SOURCE_NAME_KEY) == ModelFolder(Path()).onnx_path().name
        return self.weights_sha256 or (self.metadata[_SOURCE_KEY] if is_derived else self.sha256)

    def spec(self) -> ModelSpec | None:
        """The spec that the file carries, None if alexdeploy did not write it."""
        text = self.metadata.get(_SPEC_KEY)
        try:
            return None if text is None else msgspec.json.decode(text, type=ModelSpec)
        except msgspec.DecodeError:
            return None


def read_graph(path: Path) -> Graph:
    """Read one self-contained ONNX file. Raises ModelError if it is damaged or keeps its weights elsewhere."""
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        model = onnx.load_from_string(content)
    except DecodeError as exc:
        raise ModelError(f"{path} is not an ONNX file, or it is truncated ({len(content):,} bytes)") from exc
    for tensor in _tensors(model):
        # A path inside the file would make us read whatever it names.
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"{path} keeps {tensor.name} in an external file, which is refused",
                cure="Save it as one file: onnx.save_model(onnx.load(PATH), NEW, save_as_external_data=False)",
            )
    try:
        # Of the bytes, not of the parsed model, which it would serialize again: 0.1 s instead of 0.5 for 244 MB.
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as exc:
        raise ModelError(f"{path} is not a valid ONNX graph: {first_line(exc)}") from exc
    return Graph(model=model, sha256=sha256_bytes(content))


def serialize(model: onnx.ModelProto, spec: ModelSpec, source: Source) -> bytes:
    """The bytes of a file that holds `model`, the spec, and what it was made from. Replaces the model's metadata."""
    facts = {
        _SPEC_KEY: msgspec.json.encode(spec).decode(),
        CONTRACT_KEY: spec.contract_sha256,
        _SOURCE_NAME_KEY: source.name,
        _SOURCE_KEY: source.sha256,
    }
    if source.weights_sha256 is not None:
        facts[_WEIGHTS_KEY] = source.weights_sha256
    if source.ranges_sha256 is not None:
        facts[_RANGES_KEY] = source.ranges_sha256
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts)
    # Deterministic, so that exporting twice gives the same hash.
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def write_graph(path: Path, content: bytes) -> None:
    """Write what `serialize` gave. Raises OutputError."""
    with atomic_write(path) as file:
        file.write(content)


def load_graph(folder: ModelFolder, precision: str, spec: ModelSpec) -> Graph:
    """The model's graph of a precision. Raises StaleArtifactError if its weights or its spec have changed since.

    The weights are compared for every graph: an FP16 graph may still match a `model.onnx` that they have left behind.
    """
    path = folder.onnx_path(precision)
    cure = f"alexdeploy export {folder.path}" + ("" if precision == "fp32" else f" --{precision}")
    if not path.is_file():
        raise ModelError(f"{folder.path} has no {path.name}", cure=f"Make it: {cure}")
    graph = read_graph(path)
    metadata = graph.metadata
    if metadata.get(CONTRACT_KEY) != spec.contract_sha256:
        raise StaleArtifactError(
            f"{path} was made for another architecture, preprocessing or classes than {folder.spec_path} has now",
            cure=f"Renew it: {cure}",
        )
    made_from = {
        folder.weights_path.name: graph.weights_sha256 or "(unknown)",
        metadata.get(_SOURCE_NAME_KEY, ""): metadata.get(_SOURCE_KEY, ""),
    }
    for name, expected in made_from.items():
        source = folder.path / name
        # An inference machine may have been given only this file: then there is nothing to be stale against.
        if source.is_file() and (found := sha256_file(source)) != expected:
            raise StaleArtifactError(
                f"{path} was made from {source.name} {expected[:12]}, which is now {found[:12]}",
                cure=f"Renew it: {cure}",
            )
    measured = metadata.get(_RANGES_KEY, "")
    # The folder of ranges is the working folder's: one there may be of another model that is called the same.
    ranges = _ranges_of(folder) if measured else None
    if ranges is not None and ranges.network_sha256 == graph.network_sha256 and ranges.sha256 != measured:
        raise StaleArtifactError(
            f"{path} was made from {folder.ranges_path.name} {measured[:12]}, which is now {ranges.sha256[:12]}",
            cure=f"Renew it: {cure}",
        )
    return graph


def _ranges_of(folder: ModelFolder) -> Ranges | None:
    """The measured ranges on disk; None where there are none to compare with."""
    try:
        return read_ranges(folder.ranges_path)
    except ModelError:
        return None


def deploy(graph: Graph, spec: ModelSpec, num_views: int, mean_image: NDArray[np.float32] | None) -> bytes:
    """The deployment graph of a network, serialized."""
    content: bytes = deployment_graph(graph.model, spec, num_views, mean_image).SerializeToString()
    return content


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    # By way of every field, whatever it is: graphs, branches, local functions, training, attributes, sparse tensors.
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


def tensor_shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Shapes of all tensors that the file or ONNX's shape inference knows; a dynamic size is its name or "?"."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {v.name: [d.dim_value or d.dim_param or "?" for d in v.type.tensor_type.shape.dim] for v in values}
