"""Configurations are parsed as Triton parses them, and compared with the graph, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import onnx
from google.protobuf import text_format

from alexdeploy.core.errors import ModelError
from alexdeploy.serving.triton.config import Settings

_TYPES: dict[int, str] = {
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT32: "TYPE_INT32",
}


def verify_config(configs: Mapping[str, str], settings: Settings, graph: onnx.ModelProto | None) -> bool:
    """Raise ModelError if Triton would not read a configuration, or if the graph has other inputs or outputs.

    `configs` are by the name of the model; `graph` is None for engines, which only TensorRT can read. Returns False if
    nothing could be verified, because tritonclient, which has the schema, is not installed.
    """
    if find_spec("tritonclient") is None:
        return False
    from tritonclient.grpc import model_config_pb2

    parsed = {}
    for name, text in configs.items():
        try:
            parsed[name] = text_format.Parse(text, model_config_pb2.ModelConfig())
        except text_format.ParseError as exc:
            raise ModelError(f"config.pbtxt of {name} is not one of Triton: {exc}") from exc
        if parsed[name].name != name:
            raise ModelError(f"config.pbtxt of {name} is of {parsed[name].name!r}: Triton reads no such name")
    if graph is not None:
        found = parsed[settings.graph]
        types = model_config_pb2.DataType
        listed = [(each.name, types.Name(each.data_type), list(each.dims)) for each in (*found.input, *found.output)]
        own = [_described(value) for value in (*_inputs(graph), *graph.graph.output)]
        if listed != own:
            raise ModelError(f"config.pbtxt of {settings.graph} has {listed}, the graph has {own}")
    return True


def _inputs(graph: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [value for value in graph.graph.input if value.name not in weights]


def _described(value: onnx.ValueInfoProto) -> tuple[str, Any, list[int]]:
    """Name, type and shape without the batch, as in a configuration."""
    tensor = value.type.tensor_type
    return value.name, _TYPES.get(tensor.elem_type), [dim.dim_value for dim in tensor.shape.dim][1:]
