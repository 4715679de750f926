"""A request of the Open Inference Protocol v2 and its response, independent of how they are encoded."""

from __future__ import annotations

import difflib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexdeploy.serving.errors import InvalidRequestError

if TYPE_CHECKING:
    from alexdeploy.inference.batcher import JobTimes

LENGTH = struct.Struct("<I")
"""The length in front of each element of BYTES."""

_MAX_DIMENSIONS = 8
_MAX_OUTPUTS = 16

Parameters = Mapping[str, "str | bool | int | float"]

Level = Literal["request", "input", "output"]
_KNOWN: dict[str, Level] = {
    "timeout": "request",
    "binary_data_output": "request",
    "content_type": "input",
    "binary_data_size": "input",
    "classification": "output",
    "binary_data": "output",
}
"""Parameters that have an effect, and whose they are."""

_OF_PREDICT = {"top_k": "classification", "topk": "classification"}
_NEAR = 0.8
_MAX_NAME = 50
_MAX_PARAMETERS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One input or output. `data` has `shape`, for "BYTES" it is the list of elements in row-major order.

    `is_text`: its elements were strings of JSON.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any] | Sequence[bytes]
    is_text: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestedOutput:
    """An output that the client asks for; `classification` k > 0: its k best as "probability:index:label"."""

    name: str
    classification: int = 0
    binary: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """`outputs` empty: all outputs. `timeout_us`: microseconds until the answer is no longer of use; 0: no limit."""

    model: str
    version: str = ""
    id: str = ""
    inputs: Sequence[Tensor] = ()
    outputs: Sequence[RequestedOutput] = ()
    binary_outputs: bool = False
    timeout_us: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class InferResponse:
    """`outputs` in the order in which they were requested; `parameters` name what answered.

    `times` is for the log, and is not part of what the client gets.
    """

    model: str
    version: str
    id: str
    outputs: Sequence[Tensor]
    parameters: Parameters = field(default_factory=dict)
    times: JobTimes | None = None


def bytes_array(values: Sequence[bytes], shape: tuple[int, ...]) -> NDArray[np.object_]:
    """BYTES elements as an object array of `shape`."""
    found = np.empty(len(values), np.object_)
    found[:] = values
    return found.reshape(shape)


def check_counts(model: str, num_inputs: int, num_outputs: int) -> None:
    """Raise InvalidRequestError unless there is one input, and for more outputs than any model has.

    To be called before they are read: a body has room for millions.
    """
    if num_inputs != 1:
        raise InvalidRequestError(f"expected 1 inputs but got {num_inputs} inputs for model '{model}'")
    if num_outputs > _MAX_OUTPUTS:
        raise InvalidRequestError(f"{num_outputs} outputs are requested, at most {_MAX_OUTPUTS} can be")


def count_elements(name: str, datatype: str, shape: Sequence[int], max_images: int) -> int:
    """The number of elements of the input `name`. Raises InvalidRequestError.

    More files than `max_images` are refused here: to read millions of empty ones takes long.
    """
    if len(shape) > _MAX_DIMENSIONS:
        raise InvalidRequestError(f"the shape of input '{name}' has {len(shape)} dimensions")
    if any(size < 0 for size in shape):
        raise InvalidRequestError(f"input '{name}' has shape {list(shape)}")
    count = math.prod(shape)
    if datatype == "BYTES" and count > max_images:
        raise InvalidRequestError(
            f"inference request batch-size must be >= 1 and <= {max_images} for input '{name}', got {count}"
        )
    return count


def read_elements(name: str, part: memoryview, count: int) -> list[bytes]:
    """Split the binary data of the BYTES input `name`, at most `count` elements. Raises InvalidRequestError."""
    found: list[bytes] = []
    at = 0
    while at < len(part):
        if len(found) == count:
            raise InvalidRequestError(f"input '{name}' has more than {count} elements, as its shape has")
        begin = at + LENGTH.size
        end = begin + LENGTH.unpack_from(part, at)[0] if begin <= len(part) else begin
        if end > len(part):
            raise InvalidRequestError(f"input '{name}': element {len(found)} is longer than the data")
        found.append(bytes(part[begin:end]))
        at = end
    return found


def check_parameters(parameters: Mapping[str, Any], level: Level) -> None:
    """Raise InvalidRequestError for too many parameters, one that is nearly a known one, or one at the wrong place.

    Others are let through, as Triton does: clients send those of its schedulers, and parameters of their own.
    """
    if len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequestError(f"got {len(parameters)} parameters, at most {_MAX_PARAMETERS} can be")
    for name in parameters:
        if _KNOWN.get(name) == level or len(name) > _MAX_NAME:
            continue
        near = difflib.get_close_matches(name.lower().replace("-", "_"), _KNOWN, 1, _NEAR)
        meant = _OF_PREDICT.get(name) or (near[0] if near else None)
        # In a request MLServer's clients say so how all inputs are encoded.
        if meant is not None and (name, level) != ("content_type", "request"):
            whose = {"request": "the request", "input": "an input", "output": "an output"}[_KNOWN[meant]]
            raise InvalidRequestError(
                f"parameter '{name}' of the {level} is unknown; did you mean '{meant}' of {whose}?"
            )


def integer_parameter(parameters: Parameters, name: str, most: int) -> int:
    """A parameter from 0 to `most`; 0 if it is not there. Raises InvalidRequestError."""
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidRequestError(f"parameter '{name}' is not a whole number from 0 to {most}")
    return value


def to_binary(tensor: Tensor) -> bytes | memoryview:
    """The data of a tensor as the binary tensor extension has it: little-endian, BYTES each after its length."""
    if isinstance(tensor.data, np.ndarray):
        little = np.ascontiguousarray(tensor.data, tensor.data.dtype.newbyteorder("<"))
        return little.data.cast("B")
    return b"".join(part for element in tensor.data for part in (LENGTH.pack(len(element)), element))
