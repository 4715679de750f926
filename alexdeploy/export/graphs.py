"""ONNX files on disk: one file each, carrying the spec and the hash of what they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from alexdeploy.core.artifacts import ModelFolder, atomic_write, sha256_bytes, sha256_file
from alexdeploy.core.errors import ModelError, StaleArtifactError
from alexdeploy.core.spec import ModelSpec
from alexdeploy.export.deployment import deployment_graph

_SPEC_KEY = "alexdeploy.spec"
_CONTRACT_KEY = "alexdeploy.contract_sha256"
_SOURCE_KEY = "alexdeploy.source_sha256"
_SOURCE_NAME_KEY = "alexdeploy.source"


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A graph as read from disk. `sha256` is the hash of the file's bytes."""

    model: onnx.ModelProto
    sha256: str

    @property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self.model.metadata_props}

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
    for tensor in _tensors(model.graph):
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
        raise ModelError(f"{path} is not a valid ONNX graph: {str(exc).strip().splitlines()[0]}") from exc
    return Graph(model=model, sha256=sha256_bytes(content))


def write_graph(path: Path, model: onnx.ModelProto, spec: ModelSpec, source: Path) -> str:
    """Write `model` with the spec and the hash of the file it was made from; returns the SHA-256 of the result."""
    facts = {
        _SPEC_KEY: msgspec.json.encode(spec).decode(),
        _CONTRACT_KEY: spec.contract_sha256,
        _SOURCE_NAME_KEY: source.name,
        _SOURCE_KEY: sha256_file(source),
    }
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts)
    # Deterministic, so that exporting twice gives the same hash.
    content = model.SerializeToString(deterministic=True)
    with atomic_write(path) as file:
        file.write(content)
    return sha256_bytes(content)


def load_graph(folder: ModelFolder, precision: str, spec: ModelSpec) -> Graph:
    """The model's graph of a precision. Raises StaleArtifactError if its weights or its spec have changed since."""
    path = folder.onnx_path(precision)
    cure = f"alexdeploy export {folder.path}" + ("" if precision == "fp32" else f" --{precision}")
    if not path.is_file():
        raise ModelError(f"{folder.path} has no {path.name}", cure=f"Make it: {cure}")
    graph = read_graph(path)
    metadata = graph.metadata
    if metadata.get(_CONTRACT_KEY) != spec.contract_sha256:
        raise StaleArtifactError(
            f"{path} was made for another architecture, preprocessing or classes than {folder.spec_path} has now",
            cure=f"Renew it: {cure}",
        )
    source = folder.path / metadata.get(_SOURCE_NAME_KEY, "")
    # An inference machine may have been given only this file: then there is nothing to be stale against.
    if source.is_file():
        found, expected = sha256_file(source), metadata.get(_SOURCE_KEY, "")
        if found != expected:
            raise StaleArtifactError(
                f"{path} was made from {source.name} {expected[:12]}, which is now {found[:12]}",
                cure=f"Renew it: {cure}",
            )
    return graph


def deploy(graph: Graph, spec: ModelSpec, num_views: int, mean_image: NDArray[np.float32] | None) -> bytes:
    """The deployment graph of a network, serialized."""
    content: bytes = deployment_graph(graph.model, spec, num_views, mean_image).SerializeToString()
    return content


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = [
        *graph.initializer,
        *(part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices)),
    ]
    for node in graph.node:
        for attribute in node.attribute:
            found += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                found += _tensors(inner)
    return found


def tensor_shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Shapes of all tensors that the file or ONNX's shape inference knows; a dynamic size is its name or "?"."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {v.name: [d.dim_value or d.dim_param or "?" for d in v.type.tensor_type.shape.dim] for v in values}


def type_name(value: onnx.ValueInfoProto) -> str:
    """The element type as NumPy calls it: float32, uint8 ..."""
    return str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
