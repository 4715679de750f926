"""A request of the Open Inference Protocol v2 and its response, independent of how they are encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Parameters = Mapping[str, "str | bool | int | float"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One input or output. `data` has `shape`, for "BYTES" it is the list of elements in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any] | Sequence[bytes]


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
    """`outputs` in the order in which they were requested; `parameters` name what answered."""

    model: str
    version: str
    id: str
    outputs: Sequence[Tensor]
    parameters: Parameters = field(default_factory=dict)


def bytes_array(values: Sequence[bytes], shape: tuple[int, ...]) -> NDArray[np.object_]:
    """BYTES elements as an object array of `shape`."""
    found = np.empty(len(values), np.object_)
    found[:] = values
    return found.reshape(shape)
