"""A store with a latency, in a process of its own: python -m benchmarks.store_server FOLDER SECONDS [NUM_NAMES]

Serves the files of FOLDER by HTTP and as the bucket "photographs" by S3's protocol: objects and their sizes, whole or
in parts, and pages of names; signatures are not checked. With NUM_NAMES, the bucket has that many objects, numbered
names for the same files over and over. Prints its port. Costs less than the client, unlike moto.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "photographs"


class _Store:
    def __init__(self, folder: Path, latency_seconds: float, num_names: int | None = None) -> None:
        self._files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        self._data = list(self._files.values())
        self._names: Sequence[str] = list(self._files) if num_names is None else _Numbered(num_names)
        self._latency_seconds = latency_seconds

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                await asyncio.sleep(self._latency_seconds)
                writer.write(self._answer(head))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, head: str) -> bytes:
        method, target, _ = head.split(" ", 2)
        parts = urlsplit(target)
        if "list-type=2" in parts.query:
            return _reply(200, self._page(parse_qs(parts.query)), kind="application/xml")
        data = self._found(unquote(parts.path).removeprefix(f"/{BUCKET}/").removeprefix("/"))
        if data is None:
            return _reply(404, b"")
        if method == "HEAD":
            return _reply(200, b"", length=len(data))
        if asked := re.search(r"\r\nrange: bytes=(\d+)-(\d+)", head, re.IGNORECASE):
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            return _reply(206, data[start:end], f"Content-Range: bytes {start}-{end - 1}/{len(data)}\r\n")
        return _reply(200, data)

    def _found(self, name: str) -> bytes | None:
        if isinstance(self._names, _Numbered):
            return self._data[int(name.removesuffix(".jpg")) % len(self._data)] if name in self._names else None
        return self._files.get(name)

    def _page(self, query: dict[str, list[str]]) -> bytes:
        first = int(query.get("continuation-token", ["0"])[0])
        end = first + int(query.get("max-keys", ["1000"])[0])
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < len(self._names) else ""
        keys = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self._found(name) or b'')}</Size><ETag>1</ETag></Contents>"
            for name in self._names[first:end]
        )
        is_cut = str(bool(more)).lower()
        return f"<ListBucketResult><IsTruncated>{is_cut}</IsTruncated>{more}{keys}</ListBucketResult>".encode()


class _Numbered(Sequence[str]):
    """Names in order, of which none is in memory."""

    def __init__(self, num_names: int) -> None:
        self._numbers = range(num_names)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, name: object) -> bool:
        number = str(name).removesuffix(".jpg")
        return number.isdecimal() and int(number) in self._numbers

    def __getitem__(self, number: Any) -> Any:
        found = self._numbers[number]
        return [f"{each:010}.jpg" for each in found] if isinstance(found, range) else f"{found:010}.jpg"


def _reply(status: int, body: bytes, extra: str = "", *, length: int | None = None, kind: str = "image/jpeg") -> bytes:
    num_bytes = len(body) if length is None else length
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {num_bytes}\r\n{extra}\r\n"
    return head.encode() + body


async def _main(folder: Path, latency_seconds: float, num_names: int | None) -> None:
    server = await asyncio.start_server(_Store(folder, latency_seconds, num_names).serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None))
