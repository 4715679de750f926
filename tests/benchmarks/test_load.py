"""What the clients of the server's benchmark send and count, against a server made of a few lines."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, cycle, islice
from pathlib import Path

import pytest

from benchmarks.load import Load, send

REQUEST = b"POST /infer HTTP/1.1\r\nContent-Length: 5\r\n\r\nphoto"


@contextmanager
def server(answer: Callable[[int], bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """A port whose requests are answered by their number, one after the other, and the requests."""
    requests: list[bytes] = []
    numbers, turn = count(), threading.Lock()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while request := self.request.recv(len(REQUEST), socket.MSG_WAITALL):
                with turn:
                    requests.append(request)
                    content = answer(next(numbers))
                if not content:
                    return
                self.request.sendall(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield listener.server_address[1], requests
        finally:
            listener.shutdown()
            thread.join()


def response(status: int, body: bytes = b"{}") -> bytes:
    return f"HTTP/1.1 {status} Words\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    paths = [tmp_path / "0", tmp_path / "1"]
    paths[0].write_bytes(REQUEST)
    paths[1].write_bytes(REQUEST.replace(b"photo", b"other"))
    return tuple(map(str, paths))


def test_clients_send_the_requests_in_turn_and_each_waits_for_its_answer(files: tuple[str, ...]) -> None:
    def answer(number: int) -> bytes:
        time.sleep(0.01)
        return response(200)

    with server(answer) as (port, requests):
        answers = send(Load(port=port, files=files, seconds=0.3, num_clients=1))
    assert answers.statuses == {200: len(requests)}
    assert len(answers.latencies_ms) == len(requests)
    assert [request[-5:] for request in requests] == list(islice(cycle([b"photo", b"other"]), len(requests)))
    assert min(answers.latencies_ms) >= 10
    # One client is never answered twice at once.
    assert sum(answers.latencies_ms) <= 1e3 * answers.seconds


def test_every_status_is_counted_and_only_good_answers_have_a_latency(files: tuple[str, ...]) -> None:
    def answer(number: int) -> bytes:
        time.sleep(0.002)
        return [response(200, b"x" * 70_000), response(503), b""][number % 3]

    with server(answer) as (port, requests):
        answers = send(Load(port=port, files=files, seconds=0.3, num_clients=3))
    assert set(answers.statuses) == {200, 503, 0}
    assert sum(answers.statuses.values()) == len(requests)
    assert len(answers.latencies_ms) == answers.statuses[200]


def test_requests_at_random_times_come_whether_or_not_earlier_ones_are_answered(files: tuple[str, ...]) -> None:
    def answer(number: int) -> bytes:
        if number == 0:
            time.sleep(1.0)
        return response(200)

    with server(answer) as (port, requests):
        answers = send(Load(port=port, files=files, seconds=0.5, requests_per_second=100.0, seed=1))
    assert answers.statuses == {200: len(requests)}
    # 50 are expected, with a deviation of 7; the halt of a second is in the latency of every one of them.
    assert 20 < len(requests) < 90
    assert min(answers.latencies_ms) >= 400
