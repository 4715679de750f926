"""The encoding of the Open Inference Protocol v2 over REST: JSON, with tensors in binary after it where asked for.

Triton's documents docs/protocol/extension_binary_data.md and extension_classification.md define the extensions.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.serving.errors import InvalidRequestError, TooLargeError
from alexdeploy.serving.infer import INPUT, PIXELS
from alexdeploy.serving.tensors import (
    LENGTH,
    InferRequest,
    InferResponse,
    Parameters,
    RequestedOutput,
    Tensor,
    check_counts,
    check_parameters,
    count_elements,
    integer_parameter,
    read_elements,
    to_binary,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
_BASE64 = "base64"
_NUM_PIXELS = math.prod(PIXELS)
_MAX_TIMEOUT_US = 2**53

_JSON_IMAGE_BYTES = 6 * _NUM_PIXELS
"""Of an image in JSON: three digits for each number, a comma, and brackets around each three of them."""

_MIN_JSON_BYTES = 16 << 20
"""The most JSON for any number of images; several files in base64 fit into it."""

_OTHER_COMMAS = 10_000
"""Commas of a request beside those between its pixels."""

_Data = TypeVar("_Data")
_Values = dict[str, str | bool | int | float]


class _Input(msgspec.Struct, Generic[_Data], gc=False):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Values = {}
    data: _Data | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, gc=False):
    name: str
    parameters: _Values = {}


class _Request(msgspec.Struct, Generic[_Data]):
    inputs: list[_Input[_Data]]
    outputs: list[_Output] = []
    id: str = ""
    parameters: _Values = {}


# Most requests have flat data, which is read in one pass; anything else is kept as text and read by its datatype.
_FLAT: msgspec.json.Decoder[_Request[Any]] = msgspec.json.Decoder(_Request[list[int | str]])
_TEXT: msgspec.json.Decoder[_Request[Any]] = msgspec.json.Decoder(_Request[msgspec.Raw])
_PIXELS = msgspec.json.Decoder(list[int])
_FLATTEN = bytes.maketrans(b"[]", b"  ")


def read_infer(
    body: memoryview, header_length: str | None, *, model: str, version: str, max_images: int
) -> InferRequest:
    """Read the body of an inference request; pixels stay where they are, as views of `body`.

    `header_length` is the value of the header HEADER_LENGTH: the length of the JSON in front of the binary tensors. "0"
    is a body without JSON, one image. Raises InvalidRequestError, and TooLargeError for more JSON than `max_images`
    images can need: numbers take many times as much memory when they are read.
    """
    length = _header_length(header_length, len(body))
    if length == 0 and header_length is not None:
        return InferRequest(model=model, version=version, inputs=[_lone_image(body)], binary_outputs=True)
    max_length = max(_MIN_JSON_BYTES, max_images * _JSON_IMAGE_BYTES)
    if length > max_length:
        raise TooLargeError(f"the JSON has {length} bytes, the limit is {max_length}: send tensors in binary")
    # Numbers are read while no other request is, 8 million in 0.4 s; to count them takes a hundredth of that.
    max_commas = max_images * _NUM_PIXELS + _OTHER_COMMAS
    if length > max_commas and bytes(body[:length]).count(b",") > max_commas:
        raise TooLargeError(f"the JSON has more values than {max_images} images have")
    request = _read_json(body[:length])
    check_counts(model, len(request.inputs), len(request.outputs))
    check_parameters(request.parameters, "request")
    tensor, num_bytes = _tensor(request.inputs[0], body[length:], max_images)
    if length + num_bytes != len(body):
        raise InvalidRequestError(f"{len(body) - length - num_bytes} bytes of the body belong to no input")
    is_binary = _flag(request.parameters, "binary_data_output", False)
    return InferRequest(
        model=model,
        version=version,
        id=request.id,
        inputs=[tensor],
        outputs=[_requested(output, is_binary) for output in request.outputs],
        binary_outputs=is_binary,
        timeout_us=integer_parameter(request.parameters, "timeout", _MAX_TIMEOUT_US),
    )


def write_infer(response: InferResponse, request: InferRequest) -> tuple[bytes, int | None]:
    """The body of a response and the value of HEADER_LENGTH, None if all of it is JSON."""
    is_binary = {output.name: output.binary for output in request.outputs}
    parts: list[bytes | memoryview] = [b""]
    described = []
    for tensor in response.outputs:
        each: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if is_binary.get(tensor.name, request.binary_outputs):
            data = to_binary(tensor)
            parts.append(data)
            each["parameters"] = {"binary_data_size": len(data)}
        else:
            each["data"] = _to_json(tensor)
        described.append(each)
    parts[0] = msgspec.json.encode(
        {
            "model_name": response.model,
            "model_version": response.version,
            **({"id": response.id} if response.id else {}),
            "parameters": response.parameters,
            "outputs": described,
        }
    )
    return b"".join(parts), len(parts[0]) if len(parts) > 1 else None


def read_object(body: memoryview, fields: type[_Data]) -> _Data:
    """A small JSON object, which may be left out. Raises InvalidRequestError."""
    return _decode(msgspec.json.Decoder(fields), body if body.nbytes else memoryview(b"{}"))


def _header_length(text: str | None, available: int) -> int:
    if text is None:
        return available
    # int() also accepts signs, spaces, underscores and other scripts' digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidRequestError(f"{HEADER_LENGTH} is not a length")
    if int(text) > available:
        raise InvalidRequestError(f"{HEADER_LENGTH} is {int(text)}, the body has {available} bytes")
    return int(text)


def _decode(decoder: msgspec.json.Decoder[_Data], text: memoryview | bytes) -> _Data:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise _malformed(exc) from None


def _malformed(exc: Exception) -> InvalidRequestError:
    return InvalidRequestError(f"failed to parse the request JSON: {exc}")


def _read_json(text: memoryview) -> _Request[Any]:
    try:
        return _FLAT.decode(text)
    except msgspec.ValidationError:
        return _decode(_TEXT, text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exc:
        raise _malformed(exc) from None


def _tensor(found: _Input[Any], binary: memoryview, max_images: int) -> tuple[Tensor, int]:
    """The input and the length of its binary data, 0 if it is in JSON; `binary` is what comes after the JSON."""
    name, is_text = found.name, False
    check_parameters(found.parameters, "input")
    if "shared_memory_region" in found.parameters:
        raise InvalidRequestError(f"input '{name}' is in shared memory, which this server does not have")
    if found.datatype not in ("UINT8", "BYTES"):
        raise InvalidRequestError(f"input '{name}' has datatype {found.datatype}, expected UINT8 or BYTES")
    count = count_elements(name, found.datatype, found.shape, max_images)
    num_bytes = 0
    data: NDArray[np.uint8] | Sequence[bytes]
    if "binary_data_size" in found.parameters:
        num_bytes = integer_parameter(found.parameters, "binary_data_size", len(binary))
        if found.data is not msgspec.UNSET:
            raise InvalidRequestError(f"input '{name}' must set only one of 'data' and 'binary_data_size'")
        part = binary[:num_bytes]
        data = read_elements(name, part, count) if found.datatype == "BYTES" else np.frombuffer(part, np.uint8)
    elif found.data is msgspec.UNSET:
        raise InvalidRequestError(f"input '{name}' must set one of 'data' and 'binary_data_size'")
    elif found.datatype == "BYTES":
        data, is_text = _strings(found), found.parameters.get("content_type") != _BASE64
    else:
        data = _pixels(found)
    if len(data) != count:
        raise InvalidRequestError(f"input '{name}' has {len(data)} elements, its shape {found.shape} has {count}")
    if isinstance(data, np.ndarray):
        data = data.reshape(found.shape)
    tensor = Tensor(name=name, datatype=found.datatype, shape=tuple(found.shape), data=data, is_text=is_text)
    return tensor, num_bytes


def _lone_image(body: memoryview) -> Tensor:
    """A body without JSON: the pixels of an image, or the length of a file and the file."""
    if len(body) == _NUM_PIXELS:
        pixels = np.frombuffer(body, np.uint8).reshape(1, *PIXELS)
        return Tensor(name=INPUT, datatype="UINT8", shape=pixels.shape, data=pixels)
    if len(body) >= LENGTH.size and LENGTH.unpack_from(body)[0] == len(body) - LENGTH.size:
        return Tensor(name=INPUT, datatype="BYTES", shape=(1,), data=[bytes(body[LENGTH.size :])])
    raise InvalidRequestError(
        f"a body without JSON is the {_NUM_PIXELS} bytes of one image, or a file after its length in 4 bytes; "
        f"got {len(body)} bytes"
    )


def _pixels(found: _Input[Any]) -> NDArray[np.uint8]:
    values: Any = found.data
    if isinstance(values, msgspec.Raw):
        # Without its inner brackets nested data is flat data. Strings, which could hold brackets, are refused anyway.
        text = bytes(values)
        values = _decode(_PIXELS, b"[" + text.translate(_FLATTEN) + b"]")
    try:
        return np.frombuffer(bytes(values), np.uint8)
    except (TypeError, ValueError):
        raise InvalidRequestError(f"input '{found.name}' has values that are not whole numbers from 0 to 255") from None


def _strings(found: _Input[Any]) -> list[bytes]:
    """BYTES from JSON: the UTF-8 of the strings, or what they encode with the parameter content_type "base64"."""
    values: Any = found.data
    if isinstance(values, msgspec.Raw):
        values = _decode(msgspec.json.Decoder(list[str | list[str]]), values)
        values = [each for value in values for each in ([value] if isinstance(value, str) else value)]
    if any(not isinstance(value, str) for value in values):
        raise InvalidRequestError(f"input '{found.name}' has elements that are not strings")
    try:
        if found.parameters.get("content_type") == _BASE64:
            return [base64.b64decode(value, validate=True) for value in values]
        return [value.encode() for value in values]
    except (UnicodeEncodeError, binascii.Error, ValueError) as exc:
        raise InvalidRequestError(f"input '{found.name}': {exc}") from None


def _requested(output: _Output, binary: bool) -> RequestedOutput:
    check_parameters(output.parameters, "output")
    if "shared_memory_region" in output.parameters:
        raise InvalidRequestError(f"output '{output.name}' is to go to shared memory, which this server does not have")
    return RequestedOutput(
        name=output.name,
        classification=integer_parameter(output.parameters, "classification", 2**31),
        binary=_flag(output.parameters, "binary_data", binary),
    )


def _flag(parameters: Parameters, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parameter '{name}' is not a boolean")
    return value


def _to_json(tensor: Tensor) -> list[Any]:
    """Flat. A float32 is written as the float64 of its value, which reads back as the same float32."""
    if isinstance(tensor.data, np.ndarray):
        return list(tensor.data.reshape(-1).tolist())
    return [element.decode() for element in tensor.data]
