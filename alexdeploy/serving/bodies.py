"""Bodies of requests: read within limits, and decompressed within the same limits."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from alexdeploy.core.memory import give_back_memory
from alexdeploy.serving.errors import BusyError, InvalidRequestError, TooLargeError

_ENCODINGS = ("gzip", "deflate", "identity")
_AUTO_DETECT = 32 + zlib.MAX_WBITS
"""zlib's code for: gzip or zlib format, whichever the data begins with."""

_STEP_BYTES = 1 << 20
"""What is inflated at a time: some milliseconds."""

_MAX_MEMBERS = 64
"""Members of gzip data that one body may have. Empty ones take time and count for no other limit."""

_MIN_TOTAL_BYTES = 256 << 20

_MUCH_BYTES = 64 << 20
_GIVE_BACK_SECONDS = 1.0
"""How long after much was held, and nothing is any more, memory is given back to the system: it takes some 50 ms."""


class BodyBudget:
    """The bytes of all bodies that are held at a time, and the most that one may have.

    What is held includes bodies that are still being read. `max_total_bytes` None: four times `max_body_bytes`, and no
    less than 256 MiB. To be used in one event loop.
    """

    def __init__(self, max_body_bytes: int, max_total_bytes: int | None = None) -> None:
        self.max_body_bytes = max_body_bytes
        self.max_total_bytes = max(4 * max_body_bytes, _MIN_TOTAL_BYTES) if max_total_bytes is None else max_total_bytes
        self.held_bytes = self._most_bytes = 0

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """The account of one request, which is settled at the end of the block."""
        held = Held(self)
        try:
            yield held
        finally:
            self.held_bytes -= held.num_bytes
            if not self.held_bytes and self._most_bytes > _MUCH_BYTES:
                self._most_bytes = 0
                loop = asyncio.get_running_loop()
                loop.call_later(_GIVE_BACK_SECONDS, loop.run_in_executor, None, give_back_memory)


class Held:
    """What one request holds of a budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self.budget = budget
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Raises BusyError if all bodies together would be too large."""
        if self.budget.held_bytes + num_bytes > self.budget.max_total_bytes:
            raise BusyError("the bodies of other requests fill the memory that is set aside for bodies")
        self.num_bytes += num_bytes
        self.budget.held_bytes += num_bytes
        self.budget._most_bytes = max(self.budget._most_bytes, self.budget.held_bytes)


async def read_body(request: Request, held: Held) -> memoryview:
    """The whole body of a request, decompressed if it is compressed.

    Raises TooLargeError, BusyError or InvalidRequestError as soon as that is certain, and ClientDisconnect.
    """
    limit = held.budget.max_body_bytes
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in _ENCODINGS:
        raise InvalidRequestError(f"Content-Encoding is {encoding!r}, expected one of {', '.join(_ENCODINGS)}")
    # The server has checked the header; a mounted application may run under another server.
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit)
    received: bytes | bytearray = b""
    is_complete = False
    while not is_complete:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        is_complete = not message.get("more_body", False)
        if len(received) + len(chunk) > limit:
            raise _too_large(limit)
        held.add(len(chunk))
        if is_complete and not received:
            # As of most images: not copied.
            received = chunk
        elif isinstance(received, bytes):
            received = bytearray(chunk)
        else:
            received += chunk
    return memoryview(received if encoding == "identity" else await _decompress(memoryview(received), held))


async def _decompress(packed: memoryview, held: Held) -> bytearray:
    """Inflate gzip or zlib data, of one member or a few, with other requests in between."""
    limit, found = held.budget.max_body_bytes, bytearray()
    begin = num_members = 0
    while begin < len(packed):
        num_members += 1
        if num_members > _MAX_MEMBERS:
            raise InvalidRequestError(f"the body cannot be decompressed: it has more than {_MAX_MEMBERS} members")
        inflater = zlib.decompressobj(_AUTO_DETECT)
        while not inflater.eof:
            # Not all that is left: what a step does not use is copied.
            step = packed[begin : begin + _STEP_BYTES]
            try:
                part = inflater.decompress(step, min(_STEP_BYTES, limit + 1 - len(found)))
            except zlib.error as exc:
                raise InvalidRequestError(f"the body cannot be decompressed: {exc}") from None
            num_used = len(step) - len(inflater.unconsumed_tail) - len(inflater.unused_data)
            if not part and not num_used and not inflater.eof:
                raise InvalidRequestError("the body cannot be decompressed: it is not complete")
            if len(found) + len(part) > limit:
                raise _too_large(limit)
            held.add(len(part))
            found += part
            begin += num_used
            await asyncio.sleep(0)
    return found


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body has more than {limit} bytes, the limit of this server")
