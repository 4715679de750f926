"""URLs: which are read, and that what is written has no credentials."""

from __future__ import annotations

import pytest

from alexdeploy.core.errors import UsageError
from alexdeploy.core.stores import urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a b/x.jpg", "https://host/a b/x.jpg"),
        ("https://user:secret@host:8443/x.jpg", "https://host:8443/x.jpg"),
        ("https://ghp_secret@host/x.jpg", "https://host/x.jpg"),
        ("https://host/x.jpg?X-Amz-Signature=secret&id=1", "https://host/x.jpg?..."),
        ("https://user:secret@host/x.jpg?sig=secret#secret", "https://host/x.jpg?..."),
        ("https://host/x.jpg#secret", "https://host/x.jpg"),
        ("HTTPS://user:secret@host/x.jpg", "HTTPS://host/x.jpg"),
        ("s3://key:secret@bucket/x.jpg", "s3://bucket/x.jpg"),
        ("s3://bucket/what?.jpg", "s3://bucket/what?.jpg"),
        ("az://container/x.jpg?sv=1&sig=secret", "az://container/x.jpg"),
        ("abfs://container@account.dfs.core.windows.net/x.jpg", "abfs://container@account.dfs.core.windows.net/x.jpg"),
        ("folder/x.jpg", "folder/x.jpg"),
    ],
)
def test_what_is_shown_of_a_url_has_no_credentials(url: str, shown: str) -> None:
    assert urls.printable_url(url) == shown


def test_messages_of_libraries_lose_credentials() -> None:
    text = "GET https://me:secret@host/a?X-Amz-Signature=secret failed, see 'https://h/b?sig=secret' and az://c/x?sig=secret"
    shown = urls.scrubbed(text)
    assert "secret" not in shown
    assert "https://host/a failed" in shown


@pytest.mark.parametrize(
    "url", ["ftp://host/x.jpg", "zip://a.zip::s3://bucket/x", "s3:///x.jpg", "s3://k:s@bucket/x", "gopher://h"]
)
def test_other_schemes_and_places_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        urls.scheme_of(url)


def test_urls_are_told_from_paths() -> None:
    assert [urls.is_url(text) for text in ("s3://b/x", "HTTP://h", "C://x", "a/b", "file:///x", "://x", "")] == [
        True,
        True,
        *[False] * 5,
    ]
    assert urls.local_path("file:///tmp/a%20b.jpg") == "/tmp/a b.jpg"
    assert urls.local_path("file://localhost/x.jpg") == "/x.jpg"
    assert urls.local_path("file://other/x.jpg") == "file://other/x.jpg"
    assert urls.local_path("a%20b.jpg") == "a%20b.jpg"


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", ".", ""])
def test_names_stay_below_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not below"):
        urls.join_url("s3://bucket/folder", name)


def test_names_are_joined_as_each_store_writes_them() -> None:
    assert urls.join_url("s3://b/f/", "./a b?.jpg") == "s3://b/f/a b?.jpg"
    assert urls.join_url("https://h/f", "a b?.jpg") == "https://h/f/a%20b%3F.jpg"
    assert urls.folder_of("https://u:p@h/f/list.txt?sig=1") == "https://u:p@h/f"
    assert urls.folder_of("s3://b/list.txt") == "s3://b"


def test_a_request_has_no_characters_that_http_forbids() -> None:
    assert urls.requested("https://u:p@Höst/ä b\n?q=1 2#f") == "https://xn--hst-sna/%C3%A4%20b?q=1%202"


def test_a_path_made_of_a_url_is_named() -> None:
    with pytest.raises(UsageError, match="is a path made of a URL"):
        urls.check_not_collapsed("s3:/bucket/x.jpg")
    urls.check_not_collapsed("s3://bucket/x.jpg")
