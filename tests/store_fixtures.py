"""Fixtures of stores, for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from web_server import WebServer, web_server

from alexdeploy.core.stores import objects, urls
from alexdeploy.core.stores.retrying import RetryPolicy
from alexdeploy.core.stores.urls import Scheme


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A web server on loopback; the machine's proxies are not asked."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with web_server() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without long pauses."""
    policy = RetryPolicy(num_attempts=3, first_wait_seconds=0.001, longest_wait_seconds=0.002, total_seconds=30.0)
    monkeypatch.setattr(objects, "POLICY", policy)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, impatient: None) -> Iterator[type]:
    """An empty store in memory, fault://bucket/key, whose retries are quick."""
    pytest.importorskip("fsspec", reason="buckets are read by fsspec")
    from bucket import Bucket

    monkeypatch.setitem(urls.SCHEMES, "fault", Scheme("fault", "fsspec", "s3"))
    Bucket.clear()
    yield Bucket
    Bucket.clear()
