"""`alexdeploy serve`: what it refuses before it serves anything. tests/serving/ has the rest."""

from __future__ import annotations

import socket
from importlib.util import find_spec

import pytest
from program import Run

from alexdeploy.cli import serve
from alexdeploy.core.errors import ModelError
from alexdeploy.core.events import Notice
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.serving.events import ModelFailed, ModelRefused, ModelUnloaded, ServerStopped, ServerStopping

OPTIONS = ("--backend", "onnxruntime", "--threads", "1", "--port", "0", "--grpc-port", "0")


def test_a_port_that_is_taken_is_an_error_before_any_model_is_loaded(tiny_model: ModelFolder, program: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for option in ("--port", "--grpc-port"):
            words = ["serve", tiny_model.path, *OPTIONS]
            words[words.index(option) + 1] = port
            result = program(*words)
            assert (result.exit_code, result.stdout) == (2, "")
            assert f"{option} {port} of 127.0.0.1 cannot be used" in result.stderr
            assert "; ready in" not in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tls-cert", "cert.pem"), "--tls-cert and --tls-key"),
        (("--tls-cert", "nosuch.pem", "--tls-key", "nosuch.pem"), "nosuch.pem"),
        (("--token-file", "nosuch"), "nosuch"),
        (("--host", "no.such.host.invalid"), "error: --host no.such.host.invalid cannot be used"),
        # An address for documentation (RFC 5737), which no machine has.
        (("--host", "192.0.2.1"), "error: --host 192.0.2.1 cannot be used"),
        (("--views", "5", "--tencrop"), "--tencrop"),
    ],
)
def test_wrong_options_are_errors(tiny_model: ModelFolder, program: Run, words: tuple[str, ...], message: str) -> None:
    result = program("serve", tiny_model.path, *OPTIONS, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_model_that_cannot_be_loaded_at_the_start_is_one_error(tiny_model: ModelFolder, program: Run) -> None:
    result = program("serve", tiny_model.path, *OPTIONS, "--max-memory-mib", "1")
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.count("of memory") == 1
    assert result.stderr.startswith("error: ")


def test_only_this_machine_reaches_a_loopback_address() -> None:
    assert all(map(serve._is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(serve._is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_only_a_loopback_address_without_tokens_has_names_of_its_own() -> None:
    assert serve._hosts(None, "127.0.0.1", has_tokens=False) == ()
    assert serve._hosts(None, "127.0.0.1", has_tokens=True) is None
    assert serve._hosts(None, "0.0.0.0", has_tokens=False) is None
    assert serve._hosts("photos.example, *", "10.0.0.1", has_tokens=True) == ("photos.example", "*", "10.0.0.1")


@pytest.mark.parametrize("module", serve._PACKAGES)
def test_without_the_extra_the_hint_installs_it(program: Run, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == module else find_spec(name))
    result = program("serve")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"serve needs the package {serve._PACKAGES[module]}, which is not installed" in result.stderr
    assert "pip install 'alexdeploy[serve]'" in result.stderr


def test_what_happens_to_a_model_is_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    for event in (
        ModelRefused(name="a", error=ModelError("no graph"), is_served=True),
        ModelRefused(name="b", error=OSError("no disk"), is_served=False),
        ModelFailed(name="a", reason="its process ended"),
        ModelUnloaded(name="a"),
        ServerStopping(num_requests=2, seconds=30.0),
        ServerStopped(all_answered=False),
        Notice(message="told"),
    ):
        serve._report(event)
    assert capsys.readouterr().err.splitlines() == [
        "warning: a was not loaded, what was loaded before goes on: no graph",
        "warning: b was not loaded: no disk",
        "warning: a does not answer any more, and is opened again: its process ended",
        "a: unloaded",
        "stopping: 2 requests in flight, at most 30 s for their answers",
        "stopped before every request was answered",
        "told",
    ]
