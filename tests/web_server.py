"""A web server on loopback that serves bytes from memory, with faults: each file's answers are a list of steps.

It also lists its files as S3 does, the first folder being the bucket.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape

Answer = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Answers GET with the next of the file's steps, then with its bytes."""

    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).lstrip("/")
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers)))
            steps = self.server.steps.get(name)
            step = steps.pop(0) if steps else None
        time.sleep(self.server.latency_seconds)
        data = self.server.files.get(name)
        if step is not None:
            step(self, data or b"")
        elif "list-type=2" in self.path:
            self.reply(200, self.server.listing(name), {"Content-Type": "application/xml"})
        elif data is None:
            self.reply(404, b"no such file")
        else:
            self.serve(data)

    def do_CONNECT(self) -> None:
        """A proxy that lets nobody through: the status is the next step of the address, 403 without one."""
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers)))
            steps = self.server.steps.get(self.path)
            step = steps.pop(0) if steps else status(403)
        step(self, b"")

    def do_HEAD(self) -> None:
        data = self.server.files.get(unquote(urlsplit(self.path).path).lstrip("/"))
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def serve(self, data: bytes) -> None:
        asked = self.headers.get("Range")
        if asked is None or not self.server.gives_parts:
            self.reply(200, data)
            return
        start, end = (int(each) for each in asked.removeprefix("bytes=").split("-"))
        part = data[start : end + 1]
        self.reply(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: standard error is the test's."""


class WebServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.files: dict[str, bytes] = {}
        self.steps: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.listed_sizes: dict[str, int] = {}
        self.latency_seconds = 0.0
        self.gives_parts = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def listing(self, bucket: str) -> bytes:
        """All objects of a bucket in one page of S3's protocol; a size in `listed_sizes` is not that of the object."""
        names = sorted(name for name in self.files if name.startswith(f"{bucket}/"))
        found = "".join(
            f"<Contents><Key>{escape(name.partition('/')[2])}</Key>"
            f"<Size>{self.listed_sizes.get(name, len(self.files[name]))}</Size></Contents>"
            for name in names
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients that go away are part of the tests."""


@contextmanager
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(code: int, headers: dict[str, str] | None = None) -> Answer:
    """An answer with this status."""
    return lambda handler, data: handler.reply(code, b"an error", headers)


def redirect(location: str) -> Answer:
    return lambda handler, data: handler.reply(302, b"elsewhere", {"Location": location})


def reset(handler: Handler, data: bytes) -> None:
    """Half of the body, then a connection that is reset."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def truncated(handler: Handler, data: bytes) -> None:
    """Half of the body that was announced, then the end of the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def endless(handler: Handler, data: bytes) -> None:
    """A body without a length that does not end until the client goes away."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def drip(handler: Handler, data: bytes) -> None:
    """One byte at a time, until the client goes away."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.close_connection = True
    try:
        for each in data:
            handler.wfile.write(bytes([each]))
            handler.wfile.flush()
            time.sleep(0.01)
    except OSError:
        pass
