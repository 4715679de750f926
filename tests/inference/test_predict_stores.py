"""predict over stores that fail: every input has one row, the same as from a disk or an error, in bounded time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import web_server
from colour import COLOURS, PICTURES
from web_server import WebServer

from alexdeploy.core.errors import UsageError
from alexdeploy.images.sources import iter_sources
from alexdeploy.inference.predict_file import predict_to_file
from alexdeploy.inference.predictor import Predictor

if TYPE_CHECKING:
    from bucket import Bucket

NUM_IMAGES = 200


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of pictures of three colours, and a file that is none."""
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        (folder / f"{number:04}.jpg").write_bytes(PICTURES[COLOURS[number % 3]])
    (folder / "0100.jpg").write_bytes(b"no picture")
    return folder


def _rows(predictor: Predictor, given: str, prefix: str) -> list[dict[str, object]]:
    with predictor:
        rows = [row.to_dict() for row in predictor.predict([given])]
    return [{**row, "source": str(row["source"]).removeprefix(prefix)} for row in rows]


def test_rows_from_a_failing_bucket_are_those_from_a_disk(
    bucket: type[Bucket], pictures: Path, make_predictor: Callable[..., Predictor]
) -> None:
    from bucket import cut, fails

    faults = (fails(OSError("500")), fails(ConnectionResetError()), fails(TimeoutError()), cut)
    for number, path in enumerate(sorted(pictures.iterdir())):
        name = f"b/d/{path.name}"
        bucket.objects[name] = path.read_bytes()
        if number % 5 == 0:
            bucket.steps[name] = [faults[number // 5 % 4]] * 2
    options = {"batch_size": 8, "num_threads": 2}
    local = _rows(make_predictor(**options), str(pictures), f"{pictures}/")
    assert _rows(make_predictor(**options), "fault://b/d", "fault://b/d/") == local
    assert sum(row["error"] is not None for row in local) == 1
    assert not any(bucket.steps.values())


def test_what_stays_broken_is_one_row_each(
    bucket: type[Bucket], pictures: Path, make_predictor: Callable[..., Predictor]
) -> None:
    from bucket import cut, fails

    names = [f"b/d/{path.name}" for path in sorted(pictures.iterdir())]
    bucket.objects.update(dict.fromkeys(names, PICTURES["red"]))
    for name in names[::10]:
        bucket.steps[name] = [fails(OSError("500"))] * 3
    for name in names[1::10]:
        bucket.steps[name] = [fails(FileNotFoundError())]
    for name in names[2::10]:
        bucket.steps[name] = [cut] * 3
    rows = _rows(make_predictor(batch_size=8, num_threads=2), "fault://b/d", "fault://")
    assert [row["source"] for row in rows] == names
    errors = [row["error"] for row in rows]
    assert {str(error).split(" came")[0] for error in errors[2::10]} == {f"{len(PICTURES['red']) // 2:,} bytes"}
    assert set(errors[::10]) == {"the store failed: OSError: 500, also when asked again"}
    assert set(errors[1::10]) == {"vanished after it was listed"}
    assert all(error is None for number, error in enumerate(errors) if number % 10 > 2)


@pytest.mark.usefixtures("impatient")
def test_rows_from_a_failing_web_server_are_those_from_a_disk(
    web: WebServer, pictures: Path, tmp_path: Path, make_predictor: Callable[..., Predictor]
) -> None:
    faults = (web_server.status(500), web_server.status(429), web_server.reset, web_server.truncated)
    names = sorted(path.name for path in pictures.iterdir())
    for number, name in enumerate(names):
        web.files[name] = (pictures / name).read_bytes()
        web.steps[name] = [faults[number % 4]] if number % 5 == 0 else []
    (tmp_path / "list.txt").write_text("".join(f"{web.url}/{name}\n" for name in names))
    local = _rows(make_predictor(batch_size=8, num_threads=2), str(pictures), f"{pictures}/")
    found = _rows(make_predictor(batch_size=8, num_threads=2), f"@{tmp_path}/list.txt", f"{web.url}/")
    assert found == local


def test_an_interrupted_run_is_resumed_without_asking_the_store_again(
    bucket: type[Bucket], pictures: Path, tmp_path: Path, make_predictor: Callable[..., Predictor]
) -> None:
    bucket.objects.update({f"b/d/{path.name}": path.read_bytes() for path in pictures.iterdir()})

    def run(output: Path, *, stop_after: int | None = None) -> None:
        def stop(row: object) -> Iterator[None]:
            nonlocal stop_after
            if stop_after is not None:
                stop_after -= 1
                if stop_after == 0:
                    raise UsageError("stopped")

        with make_predictor(batch_size=8, num_threads=2) as predictor:
            predict_to_file(predictor, iter_sources(["fault://b/d"]), output, "jsonl", on_row=stop)

    run(tmp_path / "whole.jsonl")
    with pytest.raises(UsageError, match="stopped"):
        run(tmp_path / "parts.jsonl", stop_after=100)
    bucket.calls.clear()
    run(tmp_path / "parts.jsonl")
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len([kind for kind, _ in bucket.calls if kind == "read"]) == NUM_IMAGES - 96


@pytest.mark.usefixtures("impatient")
def test_neither_rows_nor_the_journal_have_credentials(
    web: WebServer, tmp_path: Path, make_predictor: Callable[..., Predictor]
) -> None:
    web.files["x.jpg"] = PICTURES["red"]
    url = web.url.replace("://", "://me:secret@")
    given = [f"{url}/x.jpg?sig=secret", f"{url}/none.jpg?sig=secret"]

    def look(row: object) -> None:
        journal = (tmp_path / "rows.jsonl.partial").read_text()
        assert web.url in journal
        assert "secret" not in journal

    with make_predictor() as predictor:
        predict_to_file(predictor, iter_sources(given), tmp_path / "rows.jsonl", "jsonl", on_row=look)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["source"], row["label"], row["error"]) for row in rows] == [
        (f"{web.url}/x.jpg?...", "red", None),
        (f"{web.url}/none.jpg?...", None, "not found: no such object"),
    ]
