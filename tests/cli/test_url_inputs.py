"""URLs on the command line: rows from a web server and from moto's S3, and messages without credentials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE
from PIL import Image
from program import Run
from web_server import Handler, WebServer, reset, status, truncated

from alexdeploy.core.model_folder import ModelFolder


@pytest.fixture
def pictures(tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: models/tiny, and d/ with photographs and broken files."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "d"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        blocks = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        blocks.resize((320, 240), Image.Resampling.NEAREST).save(folder / f"{number:02}.jpg")
    (folder / "05.jpg").write_bytes(b"no picture")
    return folder


def _rows(text: str, prefix: str) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in text.splitlines()]
    return [{**row, "source": row["source"].removeprefix(prefix)} for row in rows]


@pytest.fixture
def predict(program: Run, pictures: Path) -> Callable[..., object]:
    return lambda *words: program("predict", "--backend", "onnxruntime", "--format", "jsonl", *words)


def test_a_list_of_urls_gives_the_rows_of_the_files(predict, pictures: Path, web: WebServer) -> None:
    names = sorted(path.name for path in pictures.iterdir())
    web.files.update({name: (pictures / name).read_bytes() for name in names})
    web.steps["03.jpg"] = [status(503)]
    Path("list.txt").write_text("".join(f"{web.url}/{name}\n" for name in names))
    local, remote = predict("d"), predict("@list.txt")
    assert (remote.exit_code, local.exit_code) == (3, 3)
    assert _rows(remote.stdout, f"{web.url}/") == _rows(local.stdout, "d/")


def test_one_url_is_one_image(predict, pictures: Path, web: WebServer) -> None:
    web.files["x.jpg"] = (pictures / "01.jpg").read_bytes()
    result = predict(f"{web.url.replace('://', '://me:secret@')}/x.jpg?sig=secret")
    assert result.exit_code == 0
    (row,) = result.rows
    assert row["source"] == f"{web.url}/x.jpg?..."
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    "url", ["ftp://me:secret@host/x.jpg", "s3://me:secret@bucket/x.jpg", "zip://x.jpg::s3://bucket/a.zip"]
)
def test_other_urls_are_usage_errors_without_credentials(predict, url: str) -> None:
    result = predict(url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "secret" not in result.stderr


def test_a_missing_package_is_a_usage_error(predict, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else found(name))
    result = predict("gs://bucket/photographs/")
    assert result.exit_code == 2
    assert "pip install 'alexdeploy[gcs]'" in result.stderr


def gone(handler: Handler, data: bytes) -> None:
    handler.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")


def other_length(handler: Handler, data: bytes) -> None:
    """A whole answer with half of the bytes."""
    handler.reply(200, data[: len(data) // 2])


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_no_fault_of_a_store_loses_an_image(
    predict, pictures: Path, web: WebServer, impatient: None, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    names = sorted(path.name for path in pictures.iterdir())
    web.files.update({f"photographs/{name}": (pictures / name).read_bytes() for name in names})
    passing = {"00": status(500), "01": status(503), "02": reset, "03": truncated, "04": status(429)}
    for name, fault in passing.items():
        web.steps[f"photographs/{name}.jpg"] = [fault, fault]
    lasting = {"06": status(500), "07": gone, "08": status(403), "09": reset, "10": truncated}
    for name, fault in lasting.items():
        web.steps[f"photographs/{name}.jpg"] = [fault] * 20
    if scheme == "s3":
        pytest.importorskip("s3fs", reason="s3:// needs s3fs")
        from alexdeploy.core.stores import library

        monkeypatch.setattr(library, "_opened", {})
        for name in ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", web.url if name == "ENDPOINT_URL" else "secret")
        # By HTTP nothing says which length is right.
        web.steps["photographs/11.jpg"] = [other_length, other_length]
        web.listed_sizes["photographs/04.jpg"] = 7
        prefix, given = "s3://photographs/", ["s3://photographs/"]
    else:
        prefix = f"{web.url}/photographs/"
        given = [f"{prefix}{name}" for name in names]
    expected = {row["source"]: row for row in _rows(predict("d").stdout, "d/")}
    found = predict(*given)
    rows = {row["source"]: row for row in _rows(found.stdout, prefix)}
    assert (found.exit_code, list(rows)) == (3, names)
    assert "secret" not in found.stdout + found.stderr
    for name, row in rows.items():
        if name.removesuffix(".jpg") in lasting:
            assert row["error"], name
        else:
            assert row == expected[name]
    errors = {name: str(rows[f"{name}.jpg"]["error"]) for name in lasting}
    assert errors["07"].startswith("vanished after" if scheme == "s3" else "not found")
    assert errors["08"].startswith("permission denied")
    assert all("also when asked again" in errors[name] for name in ("06", "09", "10"))


@pytest.fixture(scope="module")
def _moto() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    server = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[server]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(_moto: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """boto3's client of an S3 on loopback with an empty bucket named photographs."""
    import boto3

    from alexdeploy.core.stores import library

    for name, value in {
        "AWS_ENDPOINT_URL": _moto,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(library, "_opened", {})
    client = boto3.client("s3")
    client.create_bucket(Bucket="photographs")
    yield client
    for found in client.list_objects_v2(Bucket="photographs").get("Contents", ()):
        client.delete_object(Bucket="photographs", Key=found["Key"])
    client.delete_bucket(Bucket="photographs")


@pytest.mark.parametrize("given", ["s3://photographs/d", "s3://photographs/d/", "s3://photographs/*/*.jpg"])
def test_rows_of_a_bucket_are_those_of_the_folder(predict, pictures: Path, s3, monkeypatch, given: str) -> None:
    from alexdeploy.core.stores import library

    monkeypatch.setattr(library, "_PAGE_SIZE", 5)
    for path in pictures.iterdir():
        s3.put_object(Bucket="photographs", Key=f"d/{path.name}", Body=path.read_bytes())
    s3.put_object(Bucket="photographs", Key="d/", Body=b"")
    local, remote = predict("d"), predict(given)
    assert (remote.exit_code, local.exit_code) == (3, 3)
    assert _rows(remote.stdout, "s3://photographs/d/") == _rows(local.stdout, "d/")


def test_wrong_credentials_are_rows_without_them(predict, s3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    result = predict("s3://photographs/d/x.jpg")
    assert result.exit_code == 3
    assert "no valid credentials" in result.rows[0]["error"]


def test_nothing_is_left_open_at_the_end(pictures: Path, web: WebServer) -> None:
    web.files["x.jpg"] = (pictures / "01.jpg").read_bytes()
    command = [sys.executable, "-W", "error", "-X", "dev", "-c"]
    code = "import sys; from alexdeploy.core.stores.objects import read_object; read_object(sys.argv[1], 1 << 20)"
    done = subprocess.run([*command, code, f"{web.url}/x.jpg"], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_evaluate_and_inspect_read_a_bucket(
    program: Run, pictures: Path, bucket: type, tiny_model: ModelFolder
) -> None:
    for name in tiny_model.spec().classes[:2]:
        bucket.objects[f"b/labelled/{name}/1.jpg"] = (pictures / "01.jpg").read_bytes()
    for path in tiny_model.path.iterdir():
        if path.is_file():
            bucket.objects[f"b/models/tiny/{path.name}"] = path.read_bytes()
    url = "fault://b/models/tiny"
    result = program("evaluate", "fault://b/labelled", "--model", url, "--backend", "onnxruntime", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["num_images"] == 2
    assert program("inspect", url).exit_code == 0
    for command in ("export", "build"):
        refused = program(command, "--model", url)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert "files are written to local models" in refused.stderr
