"""Calls of gRPC: how their messages come in, how they are named in the log, and how they end with an error."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from alexdeploy.serving.access_log import RequestRecord
from alexdeploy.serving.bodies import BodyBudget
from alexdeploy.serving.errors import BusyError, InvalidRequestError

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

_MESSAGE_OVERHEAD = 1 << 20
"""Bytes of a message beside its images: names, shapes and parameters."""

_MIN_AT_A_TIME = 16
"""Else a few slow clients would hold up all others."""

_MIN_STREAMS = 64
"""A client may keep a stream open and send little."""

_SECONDS = 60.0
"""How long a message may take to come in."""

_WINDOW_BYTES = 256 << 10
"""What a client may send before anybody reads it: the pixels of an image."""


class Reception:
    """How many messages come in at a time, and how many streams are open, each of which may be receiving one besides.

    gRPC holds a whole message before anybody sees how large it is. The numbers are what the budget has room for if all
    are as large as they may be, and no less than 16 and 64. To be used in one event loop.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._max_bytes = budget.max_body_bytes + _MESSAGE_OVERHEAD
        room = budget.max_total_bytes // self._max_bytes
        self._has_room = asyncio.Semaphore(max(_MIN_AT_A_TIME, room))
        self._max_streams = max(_MIN_STREAMS, room)
        self._num_streams = 0

    def options(self) -> tuple[tuple[str, int], ...]:
        """Options of the server. A message over the limit, also after decompression, gets RESOURCE_EXHAUSTED."""
        return (
            ("grpc.max_receive_message_length", self._max_bytes),
            ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
            # It would widen the window of calls that wait to 4 MiB and more.
            ("grpc.http2.bdp_probe", 0),
        )

    async def read(self, context: Any) -> bytes:
        """The message of a call of one message; others wait until there is room. Raises RequestError."""
        async with self._has_room:
            try:
                data = await asyncio.wait_for(context.read(), _SECONDS)
            except asyncio.TimeoutError:
                raise BusyError(f"the request did not come in within {_SECONDS:g} s") from None
        if data is grpc.aio.EOF:
            raise InvalidRequestError("the call has no message")
        return bytes(data)

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A stream that is open. Raises BusyError if there are too many."""
        if self._num_streams == self._max_streams:
            raise BusyError(f"{self._max_streams} streams are open, the most that this server has at a time")
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1


def read_message(data: bytes, request: Any) -> Any:
    """Read a serialized message into `request`, and return that. Raises InvalidRequestError."""
    try:
        request.ParseFromString(data)
    except DecodeError:
        raise InvalidRequestError(f"not a {request.DESCRIPTOR.name}") from None
    return request


def new_record(method: str, context: Any) -> RequestRecord:
    return RequestRecord(
        id=uuid.uuid4().hex,
        protocol="grpc",
        method=method,
        path=f"/{SERVICE.full_name}/{method}",
        client=peer_of(context),
    )


def peer_of(context: Any) -> str:
    """The client's host, of gRPC's "ipv4:127.0.0.1:50000" or "ipv6:%5B::1%5D:50000"."""
    kind, _, rest = unquote(context.peer()).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else kind


def end_call(context: Any, code: str, message: str) -> Any:
    """End a call with an error; what it returns is no answer.

    Not by `abort`: its exception has the frames of the call, and with them what was received, in a cycle.
    """
    context.set_code(grpc.StatusCode[code])
    context.set_details(message)
