"""Rows and the forms they are written in."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from alexdeploy.core.errors import UsageError
from alexdeploy.inference import writers
from alexdeploy.inference.row import Choice, Row
from alexdeploy.inference.writers import Shape, choose_format, read_records, text_format, write_rows

HOSTILE_NAMES = (
    "two\nlines.jpg",
    "carriage\rreturn.jpg",
    'quote".jpg',
    "comma,.jpg",
    "\x1b[31mred\x1b[0m.jpg",
    "[bold]markup[/bold].jpg",
    "naïve 写真.jpg",
    "-1+1.jpg",
    " spaces .jpg ",
    "",
)
SHAPE = Shape(classes=("cat", "dog", "fox"), top_k=2, num_views=10)


def make_row(index: int = 0, source: str = "a.jpg", *, error: str | None = None) -> Row:
    top = (
        Choice(label="cat", index=0, probability=float(str(np.float32(0.7)))),
        Choice(label="dog", index=1, probability=0.2),
    )
    return Row(
        index=index,
        source=source,
        top=() if error else top,
        views_agreeing=None if error else 9,
        num_views=10,
        model="tiny",
        backend="onnxruntime",
        precision="fp32",
        artifact="0123456789ab",
        error=error,
    )


def written(kind: writers.Format, rows: list[Row]) -> bytes:
    file = io.BytesIO()
    write_rows(rows, file, kind, SHAPE)
    return file.getvalue()


def test_a_row_in_json_has_every_field_in_order() -> None:
    assert make_row().to_json().decode() == (
        '{"index":0,"source":"a.jpg","label":"cat","probability":0.7,'
        '"top":[{"label":"cat","index":0,"probability":0.7},{"label":"dog","index":1,"probability":0.2}],'
        '"views_agreeing":9,"num_views":10,"model":"tiny","backend":"onnxruntime","precision":"fp32",'
        '"artifact":"0123456789ab","error":null}'
    )


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("error", [None, "it is\nbroken"])
def test_a_row_survives_json(name: str, error: str | None) -> None:
    row = make_row(source=name, error=error)
    assert b"\n" not in row.to_json()
    assert Row.from_json(row.to_json()) == row
    assert json.loads(row.to_json())["source"] == name


def test_jsonl_is_one_object_a_line() -> None:
    lines = written("jsonl", [make_row(index, name) for index, name in enumerate(HOSTILE_NAMES)]).splitlines()
    assert [json.loads(line)["source"] for line in lines] == list(HOSTILE_NAMES)


def test_hostile_names_survive_csv() -> None:
    rows = [make_row(index, name) for index, name in enumerate(HOSTILE_NAMES)]
    records = list(csv.DictReader(io.StringIO(written("csv", rows).decode(), newline="")))
    assert [record["source"] for record in records] == list(HOSTILE_NAMES)
    assert all(record["artifact"] == "0123456789ab" for record in records)


def test_csv_has_flat_columns_and_leaves_those_of_an_error_empty() -> None:
    assert written("csv", [make_row(), make_row(1, error="is empty")]).decode() == (
        "index,source,label,probability,label_1,index_1,probability_1,label_2,index_2,probability_2,views_agreeing,"
        "num_views,model,backend,precision,artifact,error\n"
        "0,a.jpg,cat,0.7,cat,0,0.7,dog,1,0.2,9,10,tiny,onnxruntime,fp32,0123456789ab,\n"
        "1,a.jpg,,,,,,,,,,10,tiny,onnxruntime,fp32,0123456789ab,is empty\n"
    )


def test_csv_has_the_columns_of_jsonl_and_those_of_each_choice() -> None:
    row = make_row()
    record = next(csv.DictReader(io.StringIO(written("csv", [row]).decode(), newline="")))
    flat = row.to_dict()
    flat |= {f"{field}_{n}": value for n, each in enumerate(flat.pop("top"), 1) for field, value in each.items()}
    assert record == {key: "" if value is None else str(value) for key, value in flat.items()}


def test_parquet_holds_what_jsonl_holds() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [make_row(index, name) for index, name in enumerate(HOSTILE_NAMES)] + [make_row(10, error="is empty")]
    table = pq.read_table(io.BytesIO(written("parquet", rows)))
    found = table.to_pylist()
    assert table.schema.names == list(rows[0].to_dict())
    for row, record in zip(rows, found, strict=True):
        expected = row.to_dict()
        for choice in [expected, *expected["top"]]:
            if choice["probability"] is not None:
                choice["probability"] = float(np.float32(choice["probability"]))
        assert record == expected


def test_parquet_is_written_in_groups_and_not_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(writers, "_ROWS_PER_GROUP", 4)
    data = written("parquet", [make_row(index) for index in range(10)])
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 3


def test_parquet_without_pyarrow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'alexdeploy\[parquet\]'"):
        writers.check_format("parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_finished_file_is_read_back(kind: writers.Format, tmp_path: Path) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "out"
    rows = [make_row(index, name) for index, name in enumerate(HOSTILE_NAMES)] + [make_row(10, error="is\nempty")]
    path.write_bytes(written(kind, rows))
    assert list(read_records(path, kind)) == [row.record for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_that_is_no_output_is_not_read_as_one(kind: writers.Format, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"my,diary\nof,today\n")
    with pytest.raises(UsageError, match="no finished"):
        list(read_records(path, kind))


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jsonl", "jsonl"), ("a.CSV", "csv"), ("a.parquet", "parquet"), ("a.txt", "table")]
)
def test_the_suffix_chooses_the_format(name: str, kind: str) -> None:
    assert choose_format(Path(name)) == kind


def test_an_unknown_suffix_is_refused_with_the_cure() -> None:
    with pytest.raises(UsageError, match="--format"):
        choose_format(Path("results.xls"))


def test_parquet_has_no_lines() -> None:
    with pytest.raises(UsageError, match="--output"):
        text_format("parquet", SHAPE)
