"""Frames on the pipes between processes: a small header, then arrays in their memory layout.

This module also defines the headers that a pool and its workers use.
"""

from __future__ import annotations

import struct
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.engines.base import Backend, EngineInfo, EngineOptions
from alexdeploy.placement.child import Failure

_SIZES = struct.Struct("<IQ")


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first frame to a worker: what to open. `folder` is the path's bytes, which need not be UTF-8."""

    folder: bytes
    backend: Backend
    options: EngineOptions


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From a worker, when its engine is open."""

    info: EngineInfo


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """To a worker; the payload is uint8 [num_images, 256, 256, 3]. `low_latency` is that of `Engine.run`."""

    number: int
    num_images: int
    low_latency: bool


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """From a worker; the payload is float32 [num_images, num_classes], then int32 [num_images, num_views]."""

    number: int
    num_images: int
    num_classes: int
    num_views: int


Request = Job | Batch
Reply = Ready | Answer | Failure


def write_frame(pipe: IO[bytes], header: msgspec.Struct, *arrays: NDArray[np.generic]) -> None:
    """Write and flush a frame. Raises OSError (BrokenPipeError) if the reader is gone."""
    head = msgspec.msgpack.encode(header)
    # A memoryview of nothing, such as the view classes of a graph that is cut, cannot be cast.
    parts = [np.ascontiguousarray(array).view(np.uint8).data.cast("B") for array in arrays if array.size]
    pipe.write(_SIZES.pack(len(head), sum(map(len, parts))))
    pipe.write(head)
    for part in parts:
        pipe.write(part)
    pipe.flush()


def read_frame(pipe: IO[bytes], kind: Any) -> tuple[Any, bytes] | None:
    """The next header, one of the structs `kind`, and its payload; None at the end, even inside a frame."""
    sizes = pipe.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    head_size, payload_size = _SIZES.unpack(sizes)
    head, payload = pipe.read(head_size), pipe.read(payload_size)
    if len(head) < head_size or len(payload) < payload_size:
        return None
    return msgspec.msgpack.decode(head, type=kind), payload
