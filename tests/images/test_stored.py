"""URLs as inputs: objects, prefixes, patterns, lists and archives, in order; no credentials in any name."""

from __future__ import annotations

import io
import itertools
import re
import tarfile
import tracemalloc
import zipfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from endless_listing import endless_listing
from web_server import WebServer

from alexdeploy.core.errors import ImageError, UsageError
from alexdeploy.images import sources as sources_module
from alexdeploy.images.named import check_named
from alexdeploy.images.sources import Source, iter_sources, read_inputs

if TYPE_CHECKING:
    from bucket import Bucket


def _outcome(source: Source) -> bytes | str:
    try:
        return source.read()
    except ImageError as exc:
        return exc.message


def _outcomes(*inputs: str) -> dict[str, bytes | str]:
    return {source.name: _outcome(source) for source in iter_sources(inputs)}


def _zip(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    return file.getvalue()


def _tar(mode: str, *names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return file.getvalue()


def test_a_prefix_is_a_folder(bucket: type[Bucket]) -> None:
    for name in ("d/a/1.jpg", "d/2.png", "d/note.txt", "d/.hidden/3.jpg", "d2/4.jpg", "d/x.zip"):
        bucket.objects[f"b/{name}"] = name.encode()
    given = read_inputs(["fault://b/d"])
    assert [(source.name, source.read()) for source in given] == [
        ("fault://b/d/2.png", b"d/2.png"),
        ("fault://b/d/a/1.jpg", b"d/a/1.jpg"),
    ]
    assert str(given.skipped) == "2 files that are not images (.txt 1, .zip 1) and 1 hidden or system name"
    assert given.count() is None


def test_an_object_is_itself(bucket: type[Bucket]) -> None:
    bucket.objects.update({"b/x.jpg": b"1", "b/no-suffix": b"2"})
    assert _outcomes("fault://b/x.jpg", "fault://b/no-suffix") == {"fault://b/x.jpg": b"1", "fault://b/no-suffix": b"2"}


def test_what_is_not_there_has_a_row(bucket: type[Bucket]) -> None:
    from bucket import fails

    bucket.objects["b/d/note.txt"] = b"1"
    bucket.steps["b/secret"] = [fails(PermissionError("secret"))]
    expected = {
        "fault://b/x.jpg": "not found: no such object",
        "fault://b/none": "not found: no such object",
        "fault://b/none/": "no images below this prefix",
        "fault://b/d": "no images below this prefix",
        "fault://b/*.jpg": "no object matches the pattern",
        "fault://b/secret": "cannot be listed: permission denied by the store",
        "ftp://host/x.jpg": "ftp://host/x.jpg: ftp:// is not read here",
    }
    found = _outcomes(*expected)
    assert {name: re.split("[;\n]", str(text))[0] for name, text in found.items()} == expected


def test_an_object_that_vanishes_after_it_was_listed(bucket: type[Bucket]) -> None:
    bucket.objects["b/d/x.jpg"] = b"1"
    (source,) = iter_sources(["fault://b/d"])
    bucket.objects.clear()
    assert _outcome(source) == "vanished after it was listed"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("d/*.jpg", "d/1.jpg d/10.jpg"),
        ("d/?.jpg", "d/1.jpg"),
        ("d/[0-9].*", "d/1.jpg d/2.png"),
        ("d/[!1].*", "d/2.png"),
        ("*/a/*", "d/a/3.jpg"),
        ("**/*.jpg", "d/1.jpg d/10.jpg d/a/3.jpg e.jpg"),
        ("d/**", "d/1.jpg d/10.jpg d/2.png d/a/3.jpg"),
        ("d/**/3.jpg", "d/a/3.jpg"),
        ("**.jpg", "e.jpg"),
    ],
)
def test_patterns_match_as_in_a_shell(bucket: type[Bucket], pattern: str, found: str) -> None:
    bucket.objects.update({f"b/{name}": b"1" for name in ("d/1.jpg", "d/2.png", "d/10.jpg", "d/a/3.jpg", "e.jpg")})
    names = " ".join(source.name.removeprefix("fault://b/") for source in iter_sources([f"fault://b/{pattern}"]))
    assert names == found


def test_lists_may_be_in_stores_and_name_urls(bucket: type[Bucket], web: WebServer, tmp_path: Path) -> None:
    bucket.objects.update({"b/d/x.jpg": b"1", "b/d/e/y.jpg": b"2"})
    bucket.objects["b/d/list.txt"] = f"x.jpg\ne\n../up.jpg\n/etc/x.jpg\n{web.url}/z.jpg\nfile:///etc/z.jpg\n".encode()
    web.files["z.jpg"] = b"3"
    (tmp_path / "here.jpg").write_bytes(b"4")
    (tmp_path / "list.txt").write_text(f"fault://b/d/x.jpg\nhere.jpg\nfile://{tmp_path}/here.jpg\n")
    below = "is not below the folder of the list, which is in a store"
    assert _outcomes("@fault://b/d/list.txt") == {
        "fault://b/d/x.jpg": b"1",
        "fault://b/d/e/y.jpg": b"2",
        "../up.jpg": below,
        "/etc/x.jpg": below,
        f"{web.url}/z.jpg": b"3",
        "fault://b/d/file:/etc/z.jpg": "not found: no such object",
    }
    assert _outcomes(f"@{tmp_path}/list.txt") == {"fault://b/d/x.jpg": b"1", f"{tmp_path}/here.jpg": b"4"}
    assert _outcomes("@fault://b/none.txt") == {
        "@fault://b/none.txt": "the list cannot be read: not found: no such object"
    }


def test_a_list_on_a_web_server_needs_its_password(web: WebServer) -> None:
    web.files.update({"d/list.txt": b"a b.jpg\n", "d/a b.jpg": b"1"})
    url = web.url.replace("://", "://me:secret@")
    assert _outcomes(f"@{url}/d/list.txt?sig=secret") == {f"{web.url}/d/a%20b.jpg": b"1"}
    assert all("Authorization" in headers for _, headers in web.requests)


def test_names_and_errors_have_no_credentials(web: WebServer) -> None:
    url = web.url.replace("://", "://me:secret@")
    found = _outcomes(f"{url}/x.jpg?sig=secret", f"{url}/d/?sig=secret", "s3://key:secret@bucket/x.jpg")
    assert list(found) == [f"{web.url}/x.jpg?...", f"{web.url}/d/?...", "s3://bucket/x.jpg"]
    assert "secret" not in str(found)


def test_a_web_server_has_no_folders(web: WebServer) -> None:
    assert "has no folders" in str(_outcomes(web.url, f"{web.url}/d/"))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_of_archives_are_streamed(bucket: type[Bucket], web: WebServer, kind: str) -> None:
    names = ("a/1.jpg", "2.png", "note.txt")
    data = _zip(*names) if kind == "zip" else _tar("w:gz" if kind == "tar.gz" else "w", *names)
    bucket.objects[f"b/x.{kind}"] = web.files[f"x.{kind}"] = data
    expected = {"a/1.jpg": b"a/1.jpg", "2.png": b"2.png"}
    shown_names = {f"fault://b/x.{kind}": f"fault://b/x.{kind}", f"{web.url}/x.{kind}?sig=1": f"{web.url}/x.{kind}?..."}
    for url, shown in shown_names.items():
        assert _outcomes(url) == {f"{shown}!{name}": data for name, data in expected.items()}
    assert _outcomes(f"fault://b/*.{kind}") == {f"fault://b/x.{kind}!{name}": data for name, data in expected.items()}


def test_an_archive_that_breaks_keeps_its_members_so_far(bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    from bucket import cut, fails

    from alexdeploy.core.stores import seekable

    monkeypatch.setattr(seekable, "_BLOCK_BYTES", 4096)
    names = [f"{number}.jpg" for number in range(40)]
    bucket.objects["b/x.tar"] = _tar("w", *names)
    bucket.steps["b/x.tar"] = [fails(OSError("503")), cut]
    assert list(_outcomes("fault://b/x.tar").values()) == [name.encode() for name in names]
    bucket.steps["b/x.tar"] = [lambda data: data] + [fails(PermissionError("secret"))] * 20
    found = _outcomes("fault://b/x.tar")
    assert found.pop("fault://b/x.tar") == "the archive is truncated or damaged here: permission denied"
    assert list(found.values()) == [name.encode() for name in names[: len(found)]]
    assert _outcomes("fault://b/none.zip") == {
        "fault://b/none.zip": "not a readable zip archive, or truncated: not found"
    }


def test_a_web_server_without_parts_gives_no_archives(web: WebServer) -> None:
    web.files["x.zip"] = _zip("1.jpg")
    web.gives_parts = False
    assert "the server does not give parts of files" in str(_outcomes(f"{web.url}/x.zip"))


def test_raw_files_and_large_objects_are_refused(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "MAX_FILE_BYTES", 10)
    web.files.update({"x.nef": b"1", "x.jpg": bytes(11)})
    assert list(_outcomes(f"{web.url}/x.nef?s=1", f"{web.url}/x.jpg").values()) == [
        "is a camera raw file (.nef), not read here; convert it to JPEG",
        "has 11 bytes; the limit is 10",
    ]


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"1")
    url = (tmp_path / "a b.jpg").as_uri()
    check_named([url])
    assert _outcomes(url) == {str(tmp_path / "a b.jpg"): b"1"}
    with pytest.raises(UsageError, match="not exist"):
        check_named([f"{url}.png"])


def test_urls_are_checked_before_any_work() -> None:
    check_named(["https://host/x.jpg", "@https://host/list.txt"])
    for text in ("ftp://host/x.jpg", "@ftp://host/x.txt", "s3:/bucket/x.jpg", "s3://me:secret@bucket/x"):
        with pytest.raises(UsageError) as caught:
            check_named([text])
        assert "secret" not in caught.value.text


def test_a_listing_is_taken_page_by_page_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = endless_listing(monkeypatch)
    sources = iter(read_inputs(["s3://b/d/"]))
    assert next(sources).name == "s3://b/d/0000000000.jpg"
    assert listing.num_pages == 1
    peaks = []
    for number in (10_000, 50_000):
        tracemalloc.start()
        last = deque(itertools.islice(sources, number), maxlen=1)[0]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert last.name == "s3://b/d/0000060000.jpg"
    assert listing.num_pages == 61
    # A page has about 400 kB.
    assert peaks[1] < peaks[0] + (1 << 20)
