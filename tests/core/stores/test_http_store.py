"""HTTP against a real server on loopback that answers wrongly in every way."""

from __future__ import annotations

import pytest
import web_server
from web_server import WebServer

from alexdeploy.core.reading import TooLargeError
from alexdeploy.core.stores import objects
from alexdeploy.core.stores.retrying import RetryPolicy

pytestmark = pytest.mark.usefixtures("impatient")


def test_a_file_is_read_over_one_connection(web: WebServer) -> None:
    web.files["a b.jpg"] = b"picture"
    clients = set()
    for _ in range(3):
        assert objects.read_object(f"{web.url}/a b.jpg", 100) == b"picture"
    clients = {headers["Host"] for _, headers in web.requests}
    assert len(web.requests) == 3
    assert len(clients) == 1


@pytest.mark.parametrize(
    "step",
    [web_server.status(500), web_server.status(503, {"Retry-After": "0"}), web_server.reset, web_server.truncated],
    ids=["500", "503", "reset", "truncated"],
)
def test_what_passes_is_tried_again(web: WebServer, step: web_server.Answer) -> None:
    web.files["x.jpg"] = bytes(1000)
    web.steps["x.jpg"] = [step, step]
    assert objects.read_object(f"{web.url}/x.jpg", 1000) == bytes(1000)
    assert len(web.requests) == 3


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (web_server.status(500), "the server answered 500 Internal Server Error, also when asked again"),
        (web_server.truncated, "the connection ended after 500 of 1,000 bytes, also when asked again"),
    ],
    ids=["500", "truncated"],
)
def test_what_does_not_pass_is_an_error_with_its_reason(web: WebServer, step: web_server.Answer, reason: str) -> None:
    web.files["x.jpg"] = bytes(1000)
    web.steps["x.jpg"] = [step] * 3
    with pytest.raises(OSError) as caught:  # noqa: PT011
        objects.read_object(f"{web.url}/x.jpg", 1000)
    assert caught.value.strerror == reason


def test_what_will_not_pass_is_not_tried_again(web: WebServer) -> None:
    web.steps["forbidden.jpg"] = [web_server.status(403)]
    web.steps["teapot.jpg"] = [web_server.status(418)]
    for name, kind in (("missing", FileNotFoundError), ("forbidden", PermissionError), ("teapot", OSError)):
        with pytest.raises(kind):
            objects.read_object(f"{web.url}/{name}.jpg", 100)
    assert len(web.requests) == 3


def test_too_much_is_not_read(web: WebServer) -> None:
    web.files["x.jpg"] = bytes(1001)
    with pytest.raises(TooLargeError, match=r"has 1,001 bytes; the limit is 1,000"):
        objects.read_object(f"{web.url}/x.jpg", 1000)
    web.steps["x.jpg"] = [web_server.endless]
    with pytest.raises(TooLargeError, match=r"has more than 100,000 bytes"):
        objects.read_object(f"{web.url}/x.jpg", 100_000)


def test_a_server_that_drips_is_too_slow(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "POLICY", RetryPolicy(num_attempts=2, first_wait_seconds=0.0, total_seconds=0.2))
    web.files["x.jpg"] = bytes(100_000)
    web.steps["x.jpg"] = [web_server.drip] * 2
    with pytest.raises(OSError, match="too slow"):
        objects.read_object(f"{web.url}/x.jpg", 100_000)


def test_no_server_is_an_error_without_the_password(web: WebServer) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        objects.read_object("http://me:secret@127.0.0.1:9/x.jpg?sig=secret", 100)
    assert caught.value.strerror == "no connection: connection refused, also when asked again"


def test_redirects_are_followed_within_http(web: WebServer) -> None:
    web.files["x.jpg"] = b"picture"
    web.steps["old.jpg"] = [web_server.redirect("/x.jpg")]
    assert objects.read_object(f"{web.url}/old.jpg", 100) == b"picture"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "s3://bucket/x", ""])
def test_redirects_to_other_schemes_are_not_followed(web: WebServer, target: str) -> None:
    web.steps["x.jpg"] = [web_server.redirect(target)]
    with pytest.raises(OSError, match="the server redirects"):
        objects.read_object(f"{web.url}/x.jpg", 100)
    assert len(web.requests) == 1


def test_redirects_end(web: WebServer) -> None:
    web.steps["x.jpg"] = [web_server.redirect("/x.jpg")] * 20
    with pytest.raises(OSError, match="redirects more than 5 times"):
        objects.read_object(f"{web.url}/x.jpg", 100)


def test_a_password_goes_to_its_own_server_alone(web: WebServer) -> None:
    web.files["x.jpg"] = b"picture"
    other = web.url.replace("127.0.0.1", "localhost")
    web.steps["old.jpg"] = [web_server.redirect(f"{other}/x.jpg")]
    url = web.url.replace("://", "://me:pass%20word@")
    assert objects.read_object(f"{url}/old.jpg", 100) == b"picture"
    first, second = (headers for _, headers in web.requests)
    assert first["Authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    assert "Authorization" not in second


def test_parts_of_a_file(web: WebServer) -> None:
    web.files["x.zip"] = bytes(range(200))
    assert objects.object_size(f"{web.url}/x.zip") == 200
    assert objects.read_range(f"{web.url}/x.zip", 10, 20) == bytes(range(10, 20))
    web.gives_parts = False
    with pytest.raises(OSError, match="does not give parts"):
        objects.read_range(f"{web.url}/x.zip", 10, 20)


def test_an_idle_connection_that_the_server_closed_is_opened_again(web: WebServer) -> None:
    web.files["x.jpg"] = b"picture"

    def close_after(handler: web_server.Handler, data: bytes) -> None:
        handler.reply(200, data)
        handler.close_connection = True

    web.steps["x.jpg"] = [close_after]
    assert [objects.read_object(f"{web.url}/x.jpg", 100) for _ in range(2)] == [b"picture"] * 2
