"""A store with a latency, in a process of its own: python -m benchmarks.store_server FOLDER SECONDS

Serves the files of FOLDER by HTTP and as the bucket "photographs" by S3's protocol: objects and their sizes, whole or
in parts, and pages of names; signatures are not checked. Prints its port. Costs less than the client, unlike moto.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "photographs"


class _Store:
    def __init__(self, folder: Path, latency_seconds: float) -> None:
        self._files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self._names = list(self._files)
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
        data = self._files.get(unquote(parts.path).removeprefix(f"/{BUCKET}/").removeprefix("/"))
        if data is None:
            return _reply(404, b"")
        if method == "HEAD":
            return _reply(200, b"", length=len(data))
        if asked := re.search(r"\r\nrange: bytes=(\d+)-(\d+)", head, re.IGNORECASE):
            start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
            return _reply(206, data[start:end], f"Content-Range: bytes {start}-{end - 1}/{len(data)}\r\n")
        return _reply(200, data)

    def _page(self, query: dict[str, list[str]]) -> bytes:
        first = int(query.get("continuation-token", ["0"])[0])
        end = first + int(query.get("max-keys", ["1000"])[0])
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < len(self._names) else ""
        keys = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(self._files[name])}</Size><ETag>1</ETag></Contents>"
            for name in self._names[first:end]
        )
        is_cut = str(bool(more)).lower()
        return f"<ListBucketResult><IsTruncated>{is_cut}</IsTruncated>{more}{keys}</ListBucketResult>".encode()


def _reply(status: int, body: bytes, extra: str = "", *, length: int | None = None, kind: str = "image/jpeg") -> bytes:
    num_bytes = len(body) if length is None else length
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {num_bytes}\r\n{extra}\r\n"
    return head.encode() + body


async def _main(folder: Path, latency_seconds: float) -> None:
    server = await asyncio.start_server(_Store(folder, latency_seconds).serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), float(sys.argv[2])))
