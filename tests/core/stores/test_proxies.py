"""Proxies as the environment names them, and certificates: who is asked, who gets which password."""

from __future__ import annotations

import base64
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import web_server
from web_server import WebServer

from alexdeploy.core.stores import http as http_store
from alexdeploy.core.stores import objects
from alexdeploy.core.stores.http import HttpStore
from alexdeploy.core.stores.retrying import Deadline

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def store() -> Iterator[HttpStore]:
    """A store of its own: it asks the environment for the proxy of a host once."""
    made = HttpStore()
    yield made
    made.close()


def read(store: HttpStore, url: str) -> bytes:
    return store.read(url, 1000, Deadline(30.0))


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


@pytest.mark.parametrize("form", ["http://{}", "{}", "http://{}/", "HTTP://{}"])
def test_a_proxy_is_asked_for_the_whole_url(
    web: WebServer, store: HttpStore, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    web.files["a/x.jpg"] = b"picture"
    monkeypatch.setenv("http_proxy", form.format(web.url.removeprefix("http://")))
    assert read(store, "http://photos.test:8080/a/x.jpg?size=1") == b"picture"
    ((target, headers),) = web.requests
    assert (target, headers["Host"]) == ("http://photos.test:8080/a/x.jpg?size=1", "photos.test:8080")
    assert not {"Authorization", "Proxy-Authorization"} & set(headers)


def test_the_proxys_password_is_for_the_proxy_and_the_servers_for_the_server(
    web: WebServer, store: HttpStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["x.jpg"] = b"picture"
    web.steps["old.jpg"] = [web_server.redirect("http://other.test/x.jpg")]
    monkeypatch.setenv("http_proxy", web.url.replace("://", "://proxy:pass%3Aword@"))
    assert read(store, "http://me:secret@photos.test/old.jpg") == b"picture"
    (first, first_headers), (second, second_headers) = web.requests
    assert (first, second) == ("http://photos.test/old.jpg", "http://other.test/x.jpg")
    assert first_headers["Proxy-Authorization"] == second_headers["Proxy-Authorization"] == basic("proxy:pass:word")
    assert first_headers["Authorization"] == basic("me:secret")
    assert "Authorization" not in second_headers


def test_hosts_that_need_no_proxy_are_asked_themselves(
    web: WebServer, store: HttpStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["x.jpg"] = b"picture"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert read(store, f"{web.url}/x.jpg") == b"picture"
    assert web.requests[0][0] == "/x.jpg"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "the proxy answered 403 Forbidden"),
        (407, "the proxy answered 407 Proxy Authentication Required"),
        (502, "the proxy answered 502 Bad Gateway, also when asked again"),
    ],
)
def test_a_proxy_that_lets_nobody_through_to_a_server_is_told(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, status: int, reason: str
) -> None:
    address = f"photos{status}.test:443"
    web.steps[address] = [web_server.status(status)] * 3
    monkeypatch.setenv("https_proxy", web.url.replace("://", "://proxy:pass@"))
    with pytest.raises(OSError) as caught:  # noqa: PT011
        objects.read_object(f"https://me:secret@photos{status}.test/x.jpg", 100)
    assert caught.value.strerror == reason
    assert [target for target, _ in web.requests] == [address] * (3 if status == 502 else 1)
    # The server's password waits for the server.
    assert {headers["Proxy-Authorization"] for _, headers in web.requests} == {basic("proxy:pass")}
    assert not any("Authorization" in headers for _, headers in web.requests)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "https://127.0.0.1:3128", "http://:3128"])
def test_a_proxy_that_does_not_speak_http_is_an_error_with_the_form_that_is_expected(
    web: WebServer, store: HttpStore, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        read(store, f"{web.url}/x.jpg")
    assert caught.value.strerror == (
        f"http_proxy names a proxy of the kind {proxy.partition(':')[0]}://; expected http://HOST:PORT"
    )
    assert web.requests == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that nobody has signed, and its key, in one file."""
    path = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    options = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", path]
    try:
        subprocess.run([*command.split(), *options], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl here to make a certificate")
    path.write_bytes(path.read_bytes() + (tmp_path / "key.pem").read_bytes())
    return path


def test_a_certificate_counts_if_it_is_trusted_here(
    web: WebServer, store: HttpStore, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["x.jpg"] = b"picture"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # Handshakes in the threads of the connections, not where they are accepted.
    web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
    url = f"{web.url.replace('http://', 'https://')}/x.jpg"
    http_store._tls.cache_clear()
    with pytest.raises(OSError, match=r"the server's certificate is not valid: self.signed certificate"):
        read(store, url)
    assert web.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    http_store._tls.cache_clear()
    try:
        assert read(store, url) == b"picture"
    finally:
        http_store._tls.cache_clear()


def test_a_server_that_asks_for_patience_gets_it_up_to_a_minute(web: WebServer, store: HttpStore) -> None:
    for wait, seconds in (("7", 7.0), ("3600", 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)):
        web.steps["x.jpg"] = [web_server.status(429, {"Retry-After": wait})]
        with pytest.raises(http_store.PassingError) as caught:
            read(store, f"{web.url}/x.jpg")
        assert caught.value.wait_seconds == seconds
