"""ONNX files on disk: one file each, with the spec and the hash of their source in the metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError, first_line
from alexdeploy.core.files import remove_file, sha256_bytes, write_together
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import MAX_DATA_BYTES, read_regular
from alexdeploy.core.spec import CONTRACT_KEY, ModelSpec, Precision
from alexdeploy.graphs.deployment import deployment_graph
from alexdeploy.graphs.edit import float_layers, weight_bits
from alexdeploy.graphs.features import Cut
from alexdeploy.graphs.metadata import (
    FLOAT_LAYERS_KEY,
    INT8_WEIGHTS_KEY,
    PRECISION_KEY,
    RANGES_KEY,
    SOURCE_KEY,
    SOURCE_NAME_KEY,
    SPEC_KEY,
    WEIGHTS_KEY,
    GraphMetadata,
)

OPSET = 17
"""Opset of the files that are written: the newest that TensorRT 8.6 reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a graph is made from: the name and hash of a file, and the hash of the original weights, if any.

    `ranges_sha256` is `Ranges.sha256` of the ranges that an INT8 graph takes its scales from.
    """

    name: str
    sha256: str
    weights_sha256: str | None = None
    ranges_sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph(GraphMetadata):
    """A graph as it is on disk, with the metadata of its file."""

    model: onnx.ModelProto


def graph_of(model: onnx.ModelProto, content: bytes) -> Graph:
    """The graph of a file with `content`, which is `model` serialized."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Graph(model=model, metadata=metadata, sha256=sha256_bytes(content))


def read_graph(path: Path) -> Graph:
    """Read one self-contained ONNX file. Raises ModelError if it is damaged or has external weights."""
    try:
        content = read_regular(path, MAX_DATA_BYTES)
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        model = onnx.load_from_string(content)
    except DecodeError as exc:
        raise ModelError(f"{path} is not an ONNX file, or it is truncated ({len(content):,} bytes)") from exc
    for tensor in _tensors(model):
        # Security: external data would let the file choose any path to read.
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"{path} stores {tensor.name} in an external file, which is not supported",
                hint="Save it as one file: torch.onnx.export(..., external_data=False), "
                "or onnx.save_model(onnx.load(PATH), NEW, save_as_external_data=False)",
            )
    try:
        # Check the bytes, not the parsed model, which would be serialized again: 0.1 s instead of 0.5 s for 244 MB.
        onnx.checker.check_model(content)
    # ValueError: the message contains a name from the file, which may not be UTF-8.
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as exc:
        raise ModelError(f"{path} is not a valid ONNX graph: {first_line(exc)}") from exc
    return graph_of(model, content)


def serialize(model: onnx.ModelProto, spec: ModelSpec, source: Source, precision: Precision | None = None) -> bytes:
    """The bytes of a file with `model`, the spec, and the source. Replaces the model's metadata.

    `precision` is the precision of the graph; None for an imported graph, which may contain any.
    """
    facts = {
        SPEC_KEY: msgspec.json.encode(spec).decode(),
        CONTRACT_KEY: spec.contract_sha256,
        SOURCE_NAME_KEY: source.name,
        SOURCE_KEY: source.sha256,
    }
    if precision is not None:
        facts[PRECISION_KEY] = precision
    if source.weights_sha256 is not None:
        facts[WEIGHTS_KEY] = source.weights_sha256
    if source.ranges_sha256 is not None:
        facts[RANGES_KEY] = source.ranges_sha256
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        facts[FLOAT_LAYERS_KEY] = ",".join(float_layers(model))
        if (bits := weight_bits(model)) is not None:
            facts[INT8_WEIGHTS_KEY] = str(bits)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts)
    # Deterministic, so that exporting twice gives the same hash.
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def write_graph(folder: ModelFolder, precision: Precision, content: bytes) -> None:
    """Write the result of `serialize`, and its hash in a file beside it. Raises OutputError."""
    write_graphs({folder.onnx_path(precision): content}, {})


def write_graphs(contents: Mapping[Path, bytes], others: Mapping[Path, bytes]) -> None:
    """Write graphs, `others` (files that belong to them), and the graphs' hashes. Raises OutputError."""
    sum_paths = {path: path.with_name(f"{path.name}.sha256") for path in contents}
    # A graph without a hash is not compared: a process killed here leaves no hash of another graph.
    for sum_path in sum_paths.values():
        remove_file(sum_path)
    sums = {sum_paths[path]: sum_line(path, content) for path, content in contents.items()}
    write_together({**contents, **others, **sums})


def sum_line(path: Path, content: bytes) -> bytes:
    """The content of a graph's hash file in the format of `sha256sum`, for `sha256sum -c model.onnx.sha256`."""
    return f"{sha256_bytes(content)}  {path.name}\n".encode()


def deploy(
    graph: Graph, spec: ModelSpec, num_views: int, mean_image: NDArray[np.float32] | None, cut: Cut | None = None
) -> bytes:
    """The deployment graph of a network, serialized."""
    content: bytes = deployment_graph(graph.model, spec, num_views, mean_image, cut=cut).SerializeToString()
    return content


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    # Covers every field: graphs, branches, local functions, training, attributes, sparse tensors.
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


def tensor_shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Shapes of all tensors known from the file or from shape inference; a dynamic size is its name or "?"."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {v.name: [d.dim_value or d.dim_param or "?" for d in v.type.tensor_type.shape.dim] for v in values}
