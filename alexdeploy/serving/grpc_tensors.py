"""The messages of the Open Inference Protocol v2 in gRPC, to requests and from responses.

Triton's document docs/protocol/extension_binary_data.md defines the elements of BYTES in raw contents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from alexdeploy.serving.errors import InvalidRequestError
from alexdeploy.serving.tensors import (
    InferRequest,
    InferResponse,
    Level,
    RequestedOutput,
    Tensor,
    check_counts,
    check_parameters,
    count_elements,
    integer_parameter,
    read_elements,
    to_binary,
)

_MAX_TIMEOUT_US = 2**53


def read_request(message: Any, seconds_left: float | None, *, max_images: int) -> InferRequest:
    """A `ModelInferRequest`; `seconds_left` until the client's deadline, None: it has none.

    The pixels of raw contents are used where they are. Raises InvalidRequestError.
    """
    check_counts(message.model_name, len(message.inputs), len(message.outputs))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequestError(f"got {len(raw)} raw input contents for {len(message.inputs)} inputs")
    timeout_us = integer_parameter(_values(message.parameters, "request"), "timeout", _MAX_TIMEOUT_US)
    if seconds_left is not None:
        left_us = max(1, min(math.ceil(seconds_left * 1e6), _MAX_TIMEOUT_US))
        timeout_us = min(timeout_us or left_us, left_us)
    return InferRequest(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        inputs=[_tensor(message.inputs[0], raw[0] if raw else None, message.model_name, max_images)],
        outputs=[_requested(each) for each in message.outputs],
        timeout_us=timeout_us,
    )


def write_response(response: InferResponse) -> Any:
    """A `ModelInferResponse` with raw contents, as Triton's are whatever the request had."""
    return service_pb2.ModelInferResponse(
        model_name=response.model,
        model_version=response.version,
        id=response.id,
        parameters={name: _parameter(value) for name, value in response.parameters.items()},
        outputs=[{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in response.outputs],
        raw_output_contents=[bytes(to_binary(each)) for each in response.outputs],
    )


def _tensor(message: Any, raw: bytes | None, model: str, max_images: int) -> Tensor:
    name, datatype, shape = message.name, message.datatype, tuple(message.shape)
    _values(message.parameters, "input")
    if "shared_memory_region" in message.parameters:
        raise InvalidRequestError(f"input '{name}' is in shared memory, which this server does not have")
    if datatype not in ("UINT8", "BYTES"):
        raise InvalidRequestError(f"input '{name}' has datatype {datatype}, expected UINT8 or BYTES")
    count = count_elements(name, datatype, shape, max_images)
    data: NDArray[np.uint8] | Sequence[bytes]
    if raw is None:
        data = list(message.contents.bytes_contents) if datatype == "BYTES" else _pixels(message)
    elif message.HasField("contents"):
        raise InvalidRequestError(
            f"contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
        )
    elif datatype == "BYTES":
        data = read_elements(name, memoryview(raw), count)
    else:
        data = np.frombuffer(raw, np.uint8)
    if len(data) != count:
        raise InvalidRequestError(f"input '{name}' has {len(data)} elements, its shape {list(shape)} has {count}")
    if isinstance(data, np.ndarray):
        data = data.reshape(shape)
    return Tensor(name=name, datatype=datatype, shape=shape, data=data)


def _pixels(message: Any) -> NDArray[np.uint8]:
    """The `uint_contents`, which are 32 bits wide."""
    try:
        return np.frombuffer(bytes(message.contents.uint_contents), np.uint8)
    except ValueError:
        raise InvalidRequestError(f"input '{message.name}' has values that are not from 0 to 255") from None


def _requested(message: Any) -> RequestedOutput:
    if "shared_memory_region" in message.parameters:
        raise InvalidRequestError(f"output '{message.name}' is to go to shared memory, which this server does not have")
    values = _values(message.parameters, "output")
    return RequestedOutput(name=message.name, classification=integer_parameter(values, "classification", 2**31))


def _values(parameters: Mapping[str, Any], level: Level) -> dict[str, str | bool | int | float]:
    """Parameters without their types; one without a value is left out. Raises InvalidRequestError."""
    check_parameters(parameters, level)
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found


def _parameter(value: str | bool | int | float) -> Any:
    # bool comes first: it is an int to isinstance.
    kinds = ((bool, "bool_param"), (int, "int64_param"), (float, "double_param"), (str, "string_param"))
    choice = next(name for kind, name in kinds if isinstance(value, kind))
    return service_pb2.InferParameter(**{choice: value})
