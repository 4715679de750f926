"""Buckets behind fsspec: reading, listing in order and lazily, writing as a whole, and their faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from alexdeploy.core.errors import UsageError
from alexdeploy.core.reading import TooLargeError
from alexdeploy.core.stores import objects
from alexdeploy.core.stores.library import check_installed
from alexdeploy.core.stores.seekable import StoreFile

if TYPE_CHECKING:
    from bucket import Bucket


def test_an_object_is_read_once_where_its_size_is_known(bucket: type[Bucket]) -> None:
    bucket.objects["/b/x"] = bucket.objects["b/x"] = b"picture"
    assert objects.read_object("fault://b/x", 100, 7) == b"picture"
    assert [kind for kind, _ in bucket.calls] == ["read"]
    assert objects.read_object("fault://b/x", 100) == b"picture"


def test_faults_that_pass(bucket: type[Bucket]) -> None:
    from bucket import cut, fails

    bucket.objects["b/x"] = b"picture"
    for fault in (fails(OSError("500")), fails(ConnectionResetError()), fails(TimeoutError()), cut):
        bucket.steps["b/x"] = [fault, fault]
        assert objects.read_object("fault://b/x", 100, 7) == b"picture"
        assert not bucket.steps["b/x"]


def test_faults_that_do_not_pass(bucket: type[Bucket]) -> None:
    from bucket import cut, fails

    bucket.objects["b/x"] = b"picture"
    for fault, reason in (
        (
            fails(OSError("SlowDown at https://me:secret@h/x?sig=secret")),
            "the store failed: OSError: SlowDown at https://h/x",
        ),
        (fails(TimeoutError()), "no answer in time"),
        (cut, "3 bytes came of an object of 7"),
    ):
        bucket.steps["b/x"] = [fault] * 3
        with pytest.raises(OSError) as caught:  # noqa: PT011
            objects.read_object("fault://b/x", 100, 7)
        assert caught.value.strerror == f"{reason}, also when asked again"


def test_faults_that_are_not_tried_again(bucket: type[Bucket]) -> None:
    from bucket import fails

    bucket.objects["b/x"] = b"picture"
    for error, kind in ((PermissionError("secret"), PermissionError), (ValueError("no account"), OSError)):
        bucket.steps["b/x"] = [fails(error)]
        with pytest.raises(kind):
            objects.read_object("fault://b/x", 100, 7)
    with pytest.raises(FileNotFoundError):
        objects.read_object("fault://b/y", 100, 7)
    assert [kind for kind, _ in bucket.calls] == ["read"] * 3


def test_an_object_that_was_replaced_after_it_was_listed_is_read(bucket: type[Bucket]) -> None:
    bucket.objects["b/x"] = b"a larger picture"
    assert objects.read_object("fault://b/x", 100, 7) == b"a larger picture"


def test_too_much_is_not_read(bucket: type[Bucket]) -> None:
    bucket.objects["b/x"] = bytes(101)
    for known in (101, None):
        with pytest.raises(TooLargeError, match="has 101 bytes; the limit is 100"):
            objects.read_object("fault://b/x", 100, known)
    assert not [kind for kind, _ in bucket.calls if kind == "read"]


def test_objects_are_listed_in_the_order_of_their_whole_names_one_folder_at_a_time(bucket: type[Bucket]) -> None:
    names = ["b/d/a-b", "b/d/a/x", "b/d/a/y/z", "b/d/a0", "b/d/B", "b/d/ä", "b/d2/x"]
    bucket.objects.update(dict.fromkeys(names, b"1"))
    found = objects.list_objects("fault://b/d")
    assert next(found).url == "fault://b/d/B"
    assert bucket.calls == [("list", "b/d")]
    urls = ["fault://b/d/B", *(entry.url for entry in found)]
    assert urls == sorted((f"fault://{name}" for name in names[:-1]), key=os.fsencode)


def test_a_folder_is_listed_again_when_that_fails(bucket: type[Bucket]) -> None:
    from bucket import fails

    bucket.objects["b/d/x"] = b"1"
    bucket.steps["b/d"] = [fails(OSError("503"))]
    assert [entry.url for entry in objects.list_folder("fault://b/d/")] == ["fault://b/d/x"]


def test_an_object_appears_whole_or_not_at_all(bucket: type[Bucket], tmp_path: Path) -> None:
    from bucket import fails

    (tmp_path / "rows").write_bytes(b"rows" * 1000)
    bucket.objects["b/rows"] = b"old"
    bucket.steps["b/rows"] = [fails(OSError("500"))] * 3
    with pytest.raises(OSError, match="500"):
        objects.write_object("fault://b/rows", tmp_path / "rows")
    assert bucket.objects["b/rows"] == b"old"
    objects.write_object("fault://b/rows", tmp_path / "rows")
    assert bucket.objects["b/rows"] == b"rows" * 1000
    assert objects.has_object("fault://b/rows")
    assert not objects.has_object("fault://b/others")


def test_an_object_is_a_file_that_reads_ahead(bucket: type[Bucket]) -> None:
    data = bytes(range(256)) * (20 << 12)
    bucket.objects["b/x"] = data
    with StoreFile("fault://b/x") as file:
        assert file.seek(-10, os.SEEK_END) == len(data) - 10
        assert file.read(100) == data[-10:]
        file.seek(0)
        parts = []
        while part := file.read(300_000):
            parts.append(part)
        assert b"".join(parts) == data
        assert len(file._blocks) <= 9
    reads = [kind for kind, _ in bucket.calls if kind == "read"]
    # The last block twice: at first for its own sake, then in its turn.
    assert len(reads) == 21


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for url, extra in (("s3://b/x", "s3"), ("gs://b/x", "gcs"), ("az://c/x", "azure")):
        with pytest.raises(UsageError, match="not installed") as caught:
            check_installed(url)
        assert caught.value.hint == f"Install it: pip install 'alexdeploy[{extra}]'"


def test_fsspec_is_not_imported_for_local_files() -> None:
    code = "import sys, alexdeploy, alexdeploy.images.sources, alexdeploy.inference.predictor as p; "
    code += "sys.exit(any(name in sys.modules for name in ('fsspec', 's3fs', 'http.client')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
