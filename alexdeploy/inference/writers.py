"""One row per input, and its output formats: JSON lines, CSV, Parquet and a table for people."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from alexdeploy.core.csv_text import csv_line
from alexdeploy.core.errors import UsageError
from alexdeploy.core.packages import missing_package
from alexdeploy.core.reading import open_regular
from alexdeploy.inference.row import Record, Row
from alexdeploy.inference.table import table_header, table_layout, table_line

Format = Literal["table", "jsonl", "csv", "parquet"]

ARTIFACT_DIGITS = 12
"""Hexadecimal digits of an artifact's SHA-256 that a row carries."""

_FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "table",
}
_ROWS_PER_GROUP = 2_000
"""Rows of one Parquet row group; a group is held in memory while it is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFormat:
    """A line-based format: the text before the rows, and the text of one row."""

    header: str
    line: Callable[[Row], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Properties common to all rows of a run, on which columns depend."""

    classes: tuple[str, ...]
    top_k: int
    num_views: int
    width: int = 120
    """Characters of a line of the table."""


def short_artifact(artifact: str) -> str:
    """The first ARTIFACT_DIGITS of a SHA-256, or of each one joined by "+", where replicas run different files."""
    return "+".join(each[:ARTIFACT_DIGITS] for each in artifact.split("+"))


def choose_format(path: Path) -> Format:
    """The format for the suffix of `path`. Raises UsageError for an unknown suffix."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"the suffix of {path.name!r} names no format; known are {', '.join(_FORMATS)}",
            hint="Say which: --format jsonl, csv, parquet or table",
        )
    return _FORMATS[path.suffix.lower()]


def check_format(kind: Format) -> None:
    """Raise UsageError if a package that `kind` needs is not installed."""
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise missing_package("pyarrow", "Parquet", "parquet")


def text_format(kind: Format, shape: Shape) -> TextFormat:
    """The TextFormat of `kind`, one of the line-based formats."""
    if kind == "jsonl":
        return TextFormat(header="", line=_jsonl_line)
    if kind == "csv":
        return TextFormat(header=_csv_header(shape.top_k), line=functools.partial(_csv_line, top_k=shape.top_k))
    if kind == "table":
        layout = table_layout(shape.classes, shape.top_k, shape.num_views, shape.width)
        return TextFormat(header=table_header(layout), line=functools.partial(table_line, layout))
    raise UsageError(f"{kind} is not made of lines", hint="Write it to a file: --output FILE")


def write_rows(rows: Iterable[Row], file: IO[bytes], kind: Format, shape: Shape) -> None:
    """Write a whole result file. Holds one row at a time, or one row group of a Parquet file."""
    if kind == "parquet":
        _write_parquet(rows, file)
        return
    form = text_format(kind, shape)
    file.write(form.header.encode())
    for row in rows:
        file.write(form.line(row).encode())


def read_records(path: Path, kind: Format) -> Iterator[Record]:
    """Read a finished file back, one row or one row group at a time.

    Raises UsageError if the file is not of the format `kind`, and for a table, which cannot be read back.
    """
    if kind == "table":
        raise UsageError(
            f"{path} is a table, which --resume cannot read back to see whether it is what is asked for",
            hint="Make it again with --overwrite instead of --resume, or write --format jsonl, csv or parquet.",
        )
    readers = {"jsonl": _jsonl_records, "csv": _csv_records, "parquet": _parquet_records}
    try:
        yield from readers[kind](path)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as exc:
        raise UsageError(
            f"{path} exists and is no finished {kind} output of predict: {exc}",
            hint="Choose another --output, or replace the file: --overwrite instead of --resume.",
        ) from exc


def _jsonl_records(path: Path) -> Iterator[Record]:
    with open_regular(path) as file:
        for line in file:
            yield Row.from_json(line).record


def _csv_records(path: Path) -> Iterator[Record]:
    with io.TextIOWrapper(open_regular(path), encoding="utf-8", newline="") as text:
        reader = csv.DictReader(text)
        choices = [name for name in reader.fieldnames or () if name.startswith("probability_")]
        for fields in reader:
            yield Record(
                index=int(fields["index"]),
                source=fields["source"],
                num_choices=sum(bool(fields[name]) for name in choices),
                num_views=int(fields["num_views"]),
                model=fields.get("model") or None,
                backend=fields["backend"],
                precision=fields["precision"],
                artifact=fields["artifact"],
                error=fields["error"] or None,
            )


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow.parquet as pq

    names = [field.name for field in dataclasses.fields(Record) if field.name != "num_choices"]
    with open_regular(path) as file, pq.ParquetFile(file) as parquet:
        # Files of earlier versions have no model.
        columns = [name for name in names if name != "model" or name in parquet.schema_arrow.names]
        for batch in parquet.iter_batches(batch_size=_ROWS_PER_GROUP, columns=[*columns, "top"]):
            for fields in batch.to_pylist():
                yield Record(num_choices=len(fields["top"]), **{name: fields.get(name) for name in names})


def _jsonl_line(row: Row) -> str:
    return row.to_json().decode() + "\n"


def _csv_header(top_k: int) -> str:
    choices = (f"{field}_{n}" for n in range(1, top_k + 1) for field in ("label", "index", "probability"))
    tail = ("views_agreeing", "num_views", "model", "backend", "precision", "artifact", "error")
    return csv_line(("index", "source", "label", "probability", *choices, *tail))


def _csv_line(row: Row, top_k: int) -> str:
    choices = [value for choice in row.top for value in (choice.label, choice.index, choice.probability)]
    missing = [None] * (3 * (top_k - len(row.top)))
    tail = (row.views_agreeing, row.num_views, row.model, row.backend, row.precision, row.artifact, row.error)
    return csv_line((row.index, row.source, row.label, row.probability, *choices, *missing, *tail))


def rows_table(rows: Iterable[Row]) -> Any:
    """Rows as a pyarrow.Table, with the columns of Parquet files. Raises UsageError without pyarrow."""
    check_format("parquet")
    import pyarrow as pa

    choice = pa.struct([("label", pa.string()), ("index", pa.int32()), ("probability", pa.float32())])
    schema = pa.schema(
        [
            ("index", pa.int64()),
            ("source", pa.string()),
            ("label", pa.string()),
            ("probability", pa.float32()),
            ("top", pa.list_(choice)),
            ("views_agreeing", pa.int32()),
            ("num_views", pa.int32()),
            ("model", pa.string()),
            ("backend", pa.string()),
            ("precision", pa.string()),
            ("artifact", pa.string()),
            ("error", pa.string()),
        ]
    )
    return pa.Table.from_pylist([row.to_dict() for row in rows], schema)


def _write_parquet(rows: Iterable[Row], file: IO[bytes]) -> None:
    schema = rows_table(()).schema
    import pyarrow.parquet as pq

    iterator = iter(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(iterator, _ROWS_PER_GROUP)):
            writer.write_table(rows_table(group))
