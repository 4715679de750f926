"""`alexdeploy serve` in a process of its own: how it starts, reloads and ends."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from colour import PICTURES
from helpers import smooth_images
from patience import HANG, PATIENCE, wait_for
from running import receive_all
from serve_process import serving

from alexdeploy.core.model_folder import ModelFolder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals as on POSIX")

PIXELS = smooth_images(4).tobytes()


def request(model: ModelFolder, body: bytes = PIXELS, *, sent: int | None = None) -> bytes:
    """An inference request of four images, or the first `sent` bytes of its body."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "shape": [4, 256, 256, 3],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": len(body)},
                }
            ]
        }
    ).encode()
    lines = (
        f"POST /v2/models/{model.path.name}/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(head) + len(body)}",
        f"Inference-Header-Content-Length: {len(head)}",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + (head + body)[:sent]


def test_sigterm_ends_it_when_all_that_was_accepted_is_answered(model: ModelFolder) -> None:
    with contextlib.ExitStack() as stack, serving(model, "--views", "10", "--max-queue", "256") as program:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", program.port), PATIENCE)) for _ in range(50)
        ]
        idle, slow, *flying = connections
        idle.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        slow.sendall(request(model, sent=1000))
        with ThreadPoolExecutor(48) as threads:
            list(threads.map(lambda each: each.sendall(request(model)), flying))
            program.process.send_signal(signal.SIGTERM)
            answers = [threads.submit(receive_all, connection) for connection in flying]
            rest = request(model)[len(request(model, sent=1000)) :]
            wait_for(lambda: is_refused(program.port))
            slow.sendall(rest)
            answer = receive_all(slow)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()
            heads = [answer.result(PATIENCE).partition(b"\r\n\r\n")[0] for answer in answers]
        assert [head[:12] for head in heads] == [b"HTTP/1.1 200"] * 48
        receive_all(idle)
        assert program.process.wait(PATIENCE) == 0
        program.wait_until("^stopped$")
        # Some may not have been read yet.
        assert program.found(r"^stopping: \d+ requests? in flight, at most 30 s for their answers$")
        lines = [json.loads(line) for line in (program.process.stdout or [])]
        assert [line["rows"] for line in lines if line["method"] == "POST"] == [4] * 49


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_request_that_does_not_come_to_its_end_is_given_up(model: ModelFolder) -> None:
    with (
        serving(model, "--drain-seconds", "0.5") as program,
        socket.create_connection(("127.0.0.1", program.port), PATIENCE) as connection,
    ):
        connection.sendall(request(model, sent=1000))
        time.sleep(0.1)
        assert program.end(signal.SIGTERM) == 143
        assert receive_all(connection) == b""
        program.wait_until("^stopped before every request was answered$")
        assert "Traceback" not in "".join(program.lines)


def test_a_second_signal_ends_it_at_once(model: ModelFolder) -> None:
    with (
        serving(model, "--drain-seconds", "3000") as program,
        socket.create_connection(("127.0.0.1", program.port), PATIENCE) as connection,
    ):
        connection.sendall(request(model, sent=1000))
        program.process.send_signal(signal.SIGTERM)
        wait_for(lambda: is_refused(program.port))
        time.sleep(0.3)
        assert program.end(signal.SIGTERM) == 143


def test_ctrl_c_ends_it_with_its_own_code(model: ModelFolder) -> None:
    with serving(model) as program:
        assert program.end(signal.SIGINT) == 130
        assert "Traceback" not in "".join(program.lines)


def test_a_signal_while_models_are_loaded_ends_it_too(model: ModelFolder) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(model, "--port", str(port), is_ready=False) as program:
        wait_for(lambda: not is_refused(port))
        assert program.end(signal.SIGTERM) == 0
        assert "Traceback" not in "".join(program.lines)


SLOW = """
import sys, time
from alexdeploy.__main__ import main
from alexdeploy.serving import models

opens, open_model = [], models.open_model

def slowly(*arguments):
    opens.append(arguments)
    if len(opens) == {number}:
        print("opening", file=sys.stderr, flush=True)
        time.sleep({seconds})
    return open_model(*arguments)

models.open_model = slowly
main()
"""
"""A program in which one opening of a model takes an hour, as that of a large engine may."""


@pytest.mark.parametrize("number", [1, 2], ids=["at the start", "a new export"])
def test_a_signal_while_a_model_opens_slowly_ends_it_without_waiting_for_that(model: ModelFolder, number: int) -> None:
    code = SLOW.format(number=number, seconds=HANG)
    with serving(model, is_ready=number > 1, program=("-c", code)) as program:
        if number > 1:
            program.process.send_signal(signal.SIGHUP)
        program.wait_until("^opening$")
        assert program.end(signal.SIGTERM) == 0
        program.wait_until("^stopped$")
        assert program.found("^stopping: 0 requests in flight$")
        assert "Traceback" not in "".join(program.lines)


def test_it_serves_both_protocols_and_says_how_to_ask(model: ModelFolder, tmp_path: Path) -> None:
    with serving(model) as program:
        command = program.found("^try: (curl .*)$")
        assert command is not None
        assert "onnxruntime fp32 on" in "".join(program.lines)
        (tmp_path / "photo.jpg").write_bytes(PICTURES["red"])
        shell = subprocess.run(command[1], shell=True, cwd=tmp_path, capture_output=True, check=True)
        assert json.loads(shell.stdout)["rows"][0]["label"].startswith("class-")
        tensor = triton.InferInput("images", [4, 256, 256, 3], "UINT8")
        tensor.set_data_from_numpy(smooth_images(4))
        with triton.InferenceServerClient(program.grpc) as client:
            over_grpc = client.infer(model.path.name, [tensor]).as_numpy("probabilities")
        answer = httpx.post(
            f"{program.url}/v2/models/{model.path.name}/infer",
            json={
                "inputs": [
                    {
                        "name": "images",
                        "shape": [4, 256, 256, 3],
                        "datatype": "UINT8",
                        "data": np.frombuffer(PIXELS, np.uint8).tolist(),
                    }
                ],
                "outputs": [{"name": "probabilities"}],
            },
            timeout=PATIENCE,
        )
        np.testing.assert_array_equal(
            np.float32(answer.json()["outputs"][0]["data"]).reshape(4, -1), over_grpc, strict=True
        )


def test_what_is_wrong_with_requests_is_not_for_whoever_runs_the_server(model: ModelFolder) -> None:
    with serving(model, "--watch") as program:
        before = list(program.lines)
        form = {"Content-Type": "multipart/form-data; boundary=B"}
        found = httpx.post(f"{program.url}/predict", content=b"no form", headers=form, timeout=PATIENCE)
        assert found.status_code == 400
        with socket.create_connection(("127.0.0.1", program.port), PATIENCE) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            assert receive_all(connection).startswith(b"HTTP/1.1 400")
        assert program.end(signal.SIGTERM) == 0
        program.wait_until("^stopped$")
        assert program.lines[: len(before)] == before
        assert [line.partition(":")[0] for line in program.lines[len(before) :]] == ["stopping", "stopped\n"]


UNDER_NOHUP = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from alexdeploy.__main__ import main
main()
"""


def test_sighup_loads_the_newest_export(model: ModelFolder) -> None:
    # As under nohup: SIGHUP, which ends nothing here, is no longer ignored.
    with serving(model, program=("-c", UNDER_NOHUP)) as program:
        program.process.send_signal(signal.SIGHUP)
        program.wait_until(r"in place of \w+; ready in")
        assert httpx.get(f"{program.url}/v2/health/ready", timeout=PATIENCE).status_code == 200


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl")
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([openssl, *words, *names], check=True, capture_output=True)
    return paths


def test_tls_and_tokens_for_both_protocols(model: ModelFolder, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    tokens = tmp_path / "tokens"
    tokens.write_text("the-token-of-this-test\n")
    own = {"authorization": "Bearer the-token-of-this-test"}
    words = ("--tls-cert", str(cert), "--tls-key", str(key), "--token-file", str(tokens))
    with serving(model, *words) as program:
        assert program.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=program.url, verify=context, timeout=PATIENCE) as client:
            assert client.get("/v2").status_code == 401
            assert client.get("/v2", headers=own).status_code == 200
        with triton.InferenceServerClient(program.grpc, ssl=True, root_certificates=str(cert)) as rpc:
            assert rpc.is_server_ready()
            assert rpc.get_server_metadata(headers=own).name == "alexdeploy"
            with pytest.raises(Exception, match="token"):
                rpc.get_server_metadata()
        # A connection that never begins to speak TLS does not keep the server from ending.
        with socket.create_connection(("127.0.0.1", program.port), PATIENCE):
            assert program.end(signal.SIGTERM) == 0
        assert "the-token" not in "".join(program.lines)
