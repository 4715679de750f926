"""Clients that are slow, hostile or gone do not keep a server from answering the others."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from patience import PATIENCE, wait_for
from running import SERVING, Running, receive_all, running

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.serving.app import AppOptions
from alexdeploy.serving.models import Repository
from alexdeploy.serving.protocol import ConnectionLimits

LIMITS = ConnectionLimits(
    max_connections=8,
    max_header_bytes=4096,
    max_headers=20,
    header_seconds=0.5,
    body_seconds=0.5,
    min_bytes_per_second=1 << 20,
)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSING = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def strict(model: ModelFolder) -> Iterator[Running]:
    with running(Repository([model], SERVING), AppOptions(max_body_bytes=1 << 20), LIMITS) as server:
        yield server


@pytest.fixture(autouse=True)
def _answers(strict: Running) -> Iterator[None]:
    """After each test the server answers, and no connection is left."""
    yield
    assert strict.send(CLOSING).startswith(b"HTTP/1.1 200")
    wait_for(lambda: strict.rest.num_connections == 0)


def infer(model: ModelFolder, body: bytes, *headers: str) -> bytes:
    lines = (f"POST /v2/models/{model.path.name}/infer HTTP/1.1", "Host: x", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 10_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(30)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost", 408),
        (b"", 408),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUpgrade: websocket\r\n\r\n", 200),
    ],
)
def test_a_header_that_is_too_large_too_slow_or_wrong(strict: Running, data: bytes, status: int) -> None:
    answer = strict.send(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    if status != 200:
        assert list(json.loads(body)) == ["error"]


def test_a_body_that_is_too_slow_ends_the_connection(strict: Running, model: ModelFolder) -> None:
    began = time.monotonic()
    assert strict.send(infer(model, b"{", "Content-Length: 1000")) == b""
    assert time.monotonic() - began >= LIMITS.body_seconds
    with connect(strict) as connection:
        connection.sendall(infer(model, b"", "Content-Length: 1000"))
        # A byte now and then does not help.
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert receive_all(connection) == b""
        stop.set()
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    "headers", [("Content-Length: 2000000",), ("Transfer-Encoding: chunked",), ("Content-Length: 999999999999999",)]
)
def test_a_large_body_is_refused_before_it_is_read(
    strict: Running, model: ModelFolder, headers: tuple[str, ...]
) -> None:
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with connect(strict) as connection:
        connection.sendall(infer(model, b"", *headers))
        if "chunked" in headers[0]:
            for _ in range(20):
                connection.sendall(chunk)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_sends_on_after_a_refusal_is_cut_off(strict: Running, model: ModelFolder) -> None:
    with connect(strict) as connection:
        connection.sendall(infer(model, b"", "Content-Length: 999999999999"))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_without_end(connection)


def send_without_end(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"a" * 65536)


def test_a_header_after_the_body_has_a_limit(model: ModelFolder) -> None:
    def send_without_end(connection: socket.socket) -> None:
        connection.sendall(b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: ")
        for _ in range(1000):
            connection.sendall(b"y" * (64 << 10))

    with (
        running(Repository([model], SERVING)) as server,
        connect(server) as connection,
        pytest.raises(ConnectionError),
    ):
        send_without_end(connection)


def test_pipelined_requests_are_answered_in_order(strict: Running) -> None:
    answers = strict.send(LIVE + b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n" + CLOSING)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200"]


def test_an_idle_connection_makes_room_and_a_busy_one_does_not(strict: Running, model: ModelFolder) -> None:
    idle = [connect(strict) for _ in range(LIMITS.max_connections)]
    for connection in idle:
        connection.sendall(LIVE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert strict.send(CLOSING).startswith(b"HTTP/1.1 200")
    for connection in idle:
        connection.close()
    wait_for(lambda: strict.rest.num_connections == 0)
    busy = [connect(strict) for _ in range(LIMITS.max_connections)]
    for connection in busy:
        connection.sendall(infer(model, b"{", "Content-Length: 1000"))
    wait_for(lambda: strict.rest.num_connections == LIMITS.max_connections)
    assert strict.send(CLOSING).startswith(b"HTTP/1.1 503")
    for connection in busy:
        connection.close()


def test_a_client_that_goes_away_takes_its_images_out_of_the_queue(strict: Running, model: ModelFolder) -> None:
    served = strict.repository.models[0]
    pixels = bytes(256 * 256 * 3)
    # The engine is kept busy, so that the request waits.
    jobs = [served.batcher.submit([bytearray(b"x")] * 4) for _ in range(3)]
    with connect(strict) as connection:
        head = f"Content-Length: {len(pixels)}"
        connection.sendall(infer(model, pixels, head, "Inference-Header-Content-Length: 0"))
    for job in jobs:
        job.future.result(PATIENCE)
    wait_for(lambda: served.batcher.num_waiting == 0)


def test_500_hostile_requests_leave_a_server_that_answers(strict: Running, model: ModelFolder) -> None:
    truncated = infer(model, b'{"inputs": [', "Content-Length: 12", "Connection: close")
    huge = infer(model, b"{}", "Content-Length: 2", "Inference-Header-Content-Length: 99999999", "Connection: close")
    nested = infer(model, b"[" * 1000, "Content-Length: 1000", "Connection: close")
    bomb = infer(model, b"x" * 100, "Content-Length: 100", "Content-Encoding: gzip", "Connection: close")
    header = b"GET / HTTP/1.1\r\nA: " + b"a" * 5000
    kinds = (truncated, huge, nested, bomb, header)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(strict.send, kinds * 100))
    statuses = {answer[9:12] for answer in answers}
    assert statuses <= {b"400", b"431", b"503"}, statuses
