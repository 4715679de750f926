"""Connections of the REST server: uvicorn's, with limits on what a client may send and how slowly."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}

_HIGH_WATER_BYTES = 256 << 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """A request's header must be complete within `header_seconds`, its body must come at `min_bytes_per_second`.

    `body_seconds` are added to what a body of its size may take. A connection without a request is closed after
    `idle_seconds`.
    """

    max_connections: int = 1000
    max_header_bytes: int = 32 << 10
    max_headers: int = 100
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    min_bytes_per_second: int = 16 << 10
    idle_seconds: int = 75


class LimitedProtocol(HttpToolsProtocol):
    """One connection. `limits` and `is_draining` are set on a subclass for each server.

    `close_late` is to be called for every connection about once a second.
    """

    limits = ConnectionLimits()
    is_draining = False
    transport: asyncio.Transport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = self._parsed_bytes = self._num_headers = 0
        self._body_bytes = self._unread_bytes = 0
        self._idle_bytes = 0
        """Received since the last part of a body."""
        self._is_in_header = True
        self._since: float | None = time.monotonic()
        """When the request that is being read began, or the connection; None while no part of a request is missing."""
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections and not self._close_an_idle_one():
            self._refuse(503, "the server has too many connections")

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._since is None:
            self._since = time.monotonic()
        self._idle_bytes += len(data)
        if self._is_in_header:
            self._header_bytes += len(data)
        super().data_received(data)
        # The parser keeps a header after the last chunk until it ends, and copies it for every part that comes.
        if not self._is_in_header and self._idle_bytes > self.limits.max_header_bytes:
            self.transport.abort()
        # A header that is not complete may be one without an end, which no callback has seen yet.
        if self._is_in_header and self._header_bytes > self.limits.max_header_bytes:
            self._refuse_header()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._since is None:
            self._since = time.monotonic()
        self._is_in_header, self._num_headers, self._parsed_bytes = True, 0, 0
        self._body_bytes = self._unread_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._has_room(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > self.limits.max_headers:
            self._refuse(431, f"the request has more than {self.limits.max_headers} headers")
        elif self._has_room(len(name) + len(value)):
            super().on_header(name, value)

    def _has_room(self, num_bytes: int) -> bool:
        """Count bytes of a header; refuses the request if they are too many."""
        self._parsed_bytes += num_bytes
        if self._parsed_bytes > self.limits.max_header_bytes:
            self._refuse_header()
        return not self._is_refused

    def _refuse_header(self) -> None:
        self._refuse(431, f"the header has more than {self.limits.max_header_bytes} bytes")

    def on_headers_complete(self) -> None:
        self._is_in_header, self._header_bytes, self._idle_bytes = False, 0, 0
        if self._is_refused:
            return
        super().on_headers_complete()
        if self.is_draining and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._is_refused:
            return
        self._body_bytes += len(body)
        self._idle_bytes = 0
        if self.cycle.response_complete:
            # Of a request that was refused before it was read. Its client gets the answer if it looks up soon.
            self._unread_bytes += len(body)
            if self._unread_bytes > 64 * self.limits.max_header_bytes:
                self.transport.close()
            return
        # As uvicorn's, with room for one image before the connection is paused, which costs system calls, and without
        # the two copies of a body that comes in one part.
        self.cycle.body = self.cycle.body + body if self.cycle.body else body  # type: ignore[assignment]
        if len(self.cycle.body) > _HIGH_WATER_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._is_refused:
            return
        super().on_message_complete()
        self._is_in_header, self._since = True, None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    @property
    def is_idle(self) -> bool:
        """Whether all requests that have begun are answered."""
        return self._since is None and (self.cycle is None or self.cycle.response_complete)

    @property
    def has_begun(self) -> bool:
        """Whether any part of a request was received that is not answered yet."""
        return not self.is_idle and (self.cycle is not None or self._header_bytes > 0)

    def drain(self) -> None:
        """Answer what has begun, then close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def close_late(self, now: float) -> None:
        """Close the connection if its client is too slow."""
        if self._since is None or self._is_refused:
            return
        if self.flow.read_paused:
            # Nothing is read from this client, so it is not what is slow.
            self._since = now
            return
        seconds = now - self._since
        if self._is_in_header:
            if seconds > self.limits.header_seconds:
                self._refuse(408, "the request took too long")
        elif seconds > self.limits.body_seconds + self._body_bytes / self.limits.min_bytes_per_second:
            self.transport.abort()

    def _close_an_idle_one(self) -> bool:
        for other in self.connections:
            if other is not self and isinstance(other, LimitedProtocol) and other.is_idle:
                other.transport.close()
                return True
        return False

    def _refuse(self, status: int, message: str) -> None:
        """Answer without the application, once, and close."""
        if self._is_refused:
            return
        self._is_refused = True
        body = msgspec.json.encode({"error": message})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(head.encode() + body)
        self.transport.close()
