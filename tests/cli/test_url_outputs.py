"""--output to a bucket: the object appears whole or not at all, and runs are resumed from the local journal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers import write_pictures
from program import Run

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference import predict_file

if TYPE_CHECKING:
    from bucket import Bucket

ROWS = "fault://b/runs/rows.jsonl"


@pytest.fixture
def predict(
    program: Run, tiny_model: ModelFolder, bucket: type[Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The command in a folder with models/tiny and ten pictures, with a state folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALEXDEPLOY_STATE", str(tmp_path / "state"))
    write_pictures(tmp_path / "d", 10)
    return lambda *words: program("predict", "d", "--backend", "onnxruntime", "--batch-size", "2", *words)


def _left() -> list[str]:
    return sorted(path.name for path in Path("state").rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_object_is_the_file_that_would_have_been_written(predict: Run, bucket: type[Bucket], kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    assert predict("-o", f"rows.{kind}").exit_code == 0
    result = predict("-o", f"fault://b/runs/rows.{kind}")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"wrote fault://b/runs/rows.{kind}: 10 rows" in result.stderr
    assert bucket.objects == {f"b/runs/rows.{kind}": Path(f"rows.{kind}").read_bytes()}
    assert _left() == []


def test_an_object_is_replaced_only_with_overwrite(predict: Run, bucket: type[Bucket]) -> None:
    bucket.objects["b/runs/rows.jsonl"] = b"others"
    assert predict("-o", ROWS).exit_code == 2
    assert bucket.objects["b/runs/rows.jsonl"] == b"others"
    assert predict("-o", ROWS, "--overwrite").exit_code == 0
    assert bucket.objects["b/runs/rows.jsonl"].count(b"\n") == 10


def test_an_interrupted_run_is_resumed(predict: Run, bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict("-o", "rows.jsonl").exit_code == 0
    written = predict_file.Journal.write

    def interrupted(journal: predict_file.Journal, record: bytes) -> None:
        if b'"index":5' in record:
            raise KeyboardInterrupt
        written(journal, record)

    with monkeypatch.context() as patch:
        patch.setattr(predict_file.Journal, "write", interrupted)
        stopped = predict("-o", ROWS)
    assert stopped.exit_code == 130
    assert not bucket.objects
    assert _left() == ["rows.jsonl.partial"]
    assert predict("-o", ROWS).exit_code == 2
    resumed = predict("-o", ROWS, "--resume")
    assert resumed.exit_code == 0
    assert "10 images, 4 of them from before" in resumed.stderr
    assert bucket.objects == {"b/runs/rows.jsonl": Path("rows.jsonl").read_bytes()}
    again = predict("-o", ROWS, "--resume")
    assert again.exit_code == 0
    assert f"{ROWS} is complete, nothing to resume" in again.stderr
    Path("d/000.png").unlink()
    assert "the inputs are not those" in predict("-o", ROWS, "--resume").stderr


def test_rows_that_a_store_did_not_take_are_written_later(predict: Run, bucket: type[Bucket]) -> None:
    from bucket import fails

    bucket.steps["b/runs/rows.jsonl"] = [fails(OSError("500"))] * 3
    failed = predict("-o", ROWS)
    assert failed.exit_code == 6
    assert not bucket.objects
    (kept,) = re.findall(r"All rows are in (.*/rows\.jsonl)\.", failed.stderr)
    assert len(Path(kept).read_text().splitlines()) == 10
    assert "--resume" in predict("-o", ROWS).stderr
    assert predict("-o", ROWS, "--resume").exit_code == 0
    assert bucket.objects["b/runs/rows.jsonl"].count(b"\n") == 10
    assert _left() == []


def test_evaluate_writes_its_rows_to_a_bucket(predict: Run, program: Run, bucket: type[Bucket]) -> None:
    from bucket import fails

    for name in ("class-0", "class-1"):
        write_pictures(Path("data") / name, 2)
    words = ("evaluate", "data", "--backend", "onnxruntime", "--views", "1", "-o", ROWS)
    bucket.steps["b/runs/rows.jsonl"] = [fails(OSError("500"))] * 3
    assert program(*words).exit_code == 6
    assert program(*words, "--resume").exit_code == 0
    rows = [json.loads(line) for line in bucket.objects["b/runs/rows.jsonl"].splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert program(*words).exit_code == 2
    assert program(*words, "--resume").exit_code == 2
    assert program(*words, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    "output", ["https://host/rows.jsonl", "fault://b/", "ftp://host/rows.jsonl", "fault://b/rows.unknown"]
)
def test_other_outputs_are_usage_errors(predict: Run, bucket: type[Bucket], output: str) -> None:
    assert predict("-o", output).exit_code == 2
    assert not bucket.objects
