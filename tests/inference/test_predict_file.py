"""Output that survives a kill: the journal, going on from it, and the file it becomes."""

from __future__ import annotations

import csv
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from alexdeploy.core.errors import DeviceError, OutputError, UsageError
from alexdeploy.images.sources import Source
from alexdeploy.inference import predict_file
from alexdeploy.inference.journal import journal_path
from alexdeploy.inference.predict_file import Summary, check_finished, has_finished, predict_to_file, read_rows
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.inference.writers import Format

MakePredictor = Callable[..., Predictor]
MakeSources = Callable[..., Iterator[Source]]
COUNT = 30
HEADER = b'{"journal":2,"command":"predict","settings":{"batch_size":4}}\n'


def is_broken(index: int) -> bool:
    return index % 7 == 3


def indices(path: Path) -> list[int]:
    return [row.index for row, _ in read_rows(path)]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "rows.jsonl"


@pytest.fixture
def write(make_predictor: MakePredictor, make_sources: MakeSources, output: Path) -> Callable[..., Summary]:
    """Predict COUNT sources to `output`; `stop_after` interrupts it after so many rows."""

    def run(*, kind: Format = "jsonl", stop_after: int = -1, count: int = COUNT, **options: object) -> Summary:
        seen = 0

        def interrupt(row: Row) -> None:
            nonlocal seen
            seen += 1
            if seen == stop_after:
                raise KeyboardInterrupt

        with make_predictor(**({"batch_size": 4} | options)) as predictor:
            sources = make_sources(count, broken=is_broken)
            return predict_to_file(predictor, sources, output, kind, on_row=interrupt)

    return run


def test_a_run_leaves_the_output_and_no_journal(write: Callable[..., Summary], output: Path) -> None:
    assert write() == Summary(num_rows=30, num_errors=4, num_kept=0)
    assert indices(output) == list(range(30))
    assert os.listdir(output.parent) == [output.name]


def test_an_interrupted_run_leaves_its_rows_and_the_old_output(write: Callable[..., Summary], output: Path) -> None:
    output.parent.mkdir()
    output.write_text("the old one")
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=11)
    assert output.read_text() == "the old one"
    assert indices(journal_path(output)) == list(range(11))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "table"])
@pytest.mark.parametrize("stop_after", [1, 4, 5, 11, 29, 30])
def test_going_on_gives_the_bytes_of_a_run_that_was_not_interrupted(
    write: Callable[..., Summary], output: Path, kind: Format, stop_after: int
) -> None:
    write(kind=kind)
    expected = output.read_bytes()
    output.unlink()
    with pytest.raises(KeyboardInterrupt):
        write(kind=kind, stop_after=stop_after)
    summary = write(kind=kind)
    assert output.read_bytes() == expected
    assert (summary.num_rows, summary.num_errors) == (30, 4)
    assert stop_after - 6 < summary.num_kept <= stop_after


@pytest.mark.parametrize(("refused", "num_errors"), [("none", 4), ("blue", 13)])
def test_going_on_puts_the_same_images_into_the_same_batches(
    make_predictor: MakePredictor, make_sources: MakeSources, output: Path, refused: str, num_errors: int
) -> None:
    def is_refused(image: NDArray[np.uint8]) -> bool:
        """An engine of replicas answers all images of a batch but the one that each of them fails on."""
        return refused == "blue" and int(image.mean(axis=(0, 1)).argmax()) == 2

    def batches(stop_after: int) -> list[list[int]]:
        runs: list[list[int]] = []
        engine = {
            "before_run": lambda images: runs.append([int(image.mean() * 1000) for image in images]),
            "refuses": is_refused,
        }

        def interrupt(row: Row) -> None:
            if row.index == stop_after:
                raise KeyboardInterrupt

        with make_predictor(batch_size=4, engine=engine) as predictor:
            try:
                sources = make_sources(COUNT, broken=is_broken)
                predict_to_file(predictor, sources, output, "jsonl", on_row=interrupt)
            except KeyboardInterrupt:
                pass
        return runs

    whole = batches(-1)
    expected = output.read_bytes()
    assert sum(row.error is not None for row, _ in read_rows(output)) == num_errors
    batches(17)
    resumed = batches(-1)
    assert 0 < len(resumed) < len(whole)
    assert resumed == whole[-len(resumed) :]
    assert output.read_bytes() == expected


def test_the_batch_size_is_in_the_journal_and_not_in_the_output(write: Callable[..., Summary], output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=2)
    header, line, *_ = journal_path(output).read_bytes().splitlines(keepends=True)
    assert header == HEADER
    write()
    row, *_ = output.read_bytes().splitlines()
    assert line == b'{"crc":%d,"record":%s}\n' % (zlib.crc32(row), row)


@pytest.mark.parametrize("length", [0, 5, 11, len(HEADER) - 1])
def test_a_journal_cut_off_in_its_header_begins_again(write: Callable[..., Summary], output: Path, length: int) -> None:
    output.parent.mkdir()
    journal_path(output).write_bytes(HEADER[:length])
    assert write() == Summary(num_rows=30, num_errors=4, num_kept=0)


@pytest.mark.parametrize(
    "header",
    [
        HEADER.replace(b"predict", b"evaluate"),
        HEADER.replace(b"4", b"[4]"),
        HEADER.replace(b"2", b"3"),
        b'{"journal":2,\n',
        b'{"journal":' + b"1" * (1 << 20),
    ],
)
def test_a_journal_with_a_damaged_header_is_left_alone(
    write: Callable[..., Summary], output: Path, header: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=9)
    rows = journal_path(output).read_bytes().split(b"\n", 1)[1]
    journal_path(output).write_bytes(header + rows)
    with pytest.raises(UsageError, match="not the journal"):
        write()
    assert journal_path(output).read_bytes() == header + rows


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_an_incomplete_last_line_is_cut_off(write: Callable[..., Summary], output: Path, cut: int) -> None:
    write()
    expected = output.read_bytes()
    path = journal_path(output)
    path.write_bytes(expected[:-cut])
    write()
    assert output.read_bytes() == expected


def test_zeros_that_a_power_cut_left_are_cut_off(write: Callable[..., Summary], output: Path) -> None:
    write()
    expected = output.read_bytes()
    journal_path(output).write_bytes(expected[:2000] + bytes(500))
    write()
    assert output.read_bytes() == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_views": 10}, "number of views 1; this run has 10"),
        ({"precision": "fp16"}, "precision fp32; this run has fp16"),
        ({"top_k": 2}, "top-k 3; this run has 2"),
        ({"engine": {"artifact": "f" * 64}}, "artifact c0ffeec0ffee; this run has ffffffffffff"),
        ({"batch_size": 5}, "batch size 4; this run has 5"),
    ],
)
def test_a_journal_of_other_options_is_refused_by_name(
    write: Callable[..., Summary], output: Path, options: dict[str, object], named: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=2)
    before = journal_path(output).read_bytes()
    with pytest.raises(UsageError, match=named):
        write(**options)
    assert journal_path(output).read_bytes() == before


def forget_the_model(path: Path) -> None:
    """Make the journal at `path` one of the version before rows had `model`."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    old = [header]
    for line in lines:
        record = re.sub(rb'^\{"crc":\d+,"record":(.*)\}\n$', rb"\1", line).replace(b'"model":"colour",', b"")
        old.append(b'{"crc":%d,"record":%s}\n' % (zlib.crc32(record), record))
    path.write_bytes(b"".join(old))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_run_of_the_version_before_rows_named_their_model_is_resumed_to_rows_of_one_shape(
    write: Callable[..., Summary], output: Path, kind: Format
) -> None:
    write(kind=kind)
    expected = output.read_bytes()
    output.unlink()
    with pytest.raises(KeyboardInterrupt):
        write(kind=kind, stop_after=11)
    forget_the_model(journal_path(output))
    assert b"model" not in journal_path(output).read_bytes()
    assert write(kind=kind).num_kept > 0
    assert output.read_bytes() == expected


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_that_was_finished_before_rows_named_their_model_is_finished(
    write: Callable[..., Summary],
    make_predictor: MakePredictor,
    make_sources: MakeSources,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Format,
) -> None:
    write(kind=kind)
    if kind == "jsonl":
        output.write_bytes(output.read_bytes().replace(b'"model":"colour",', b""))
    elif kind == "csv":
        with output.open(newline="") as file:
            rows = [{key: value for key, value in row.items() if key != "model"} for row in csv.DictReader(file)]
        with output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq = pytest.importorskip("pyarrow.parquet")
        pq.write_table(pq.read_table(output).drop_columns(["model"]), output)
    assert has_finished(output, kind, resume=True)
    found = check_finished(make_predictor(batch_size=4), make_sources(COUNT, broken=is_broken), output, kind)
    assert found == Summary(num_rows=30, num_errors=4, num_kept=30)


def test_a_journal_of_another_model_with_the_same_graph_is_refused(write: Callable[..., Summary], output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=9)
    path = journal_path(output)
    renamed = []
    for line in path.read_bytes().splitlines(keepends=True)[1:]:
        record = re.sub(rb'^\{"crc":\d+,"record":(.*)\}\n$', rb"\1", line).replace(
            b'"model":"colour"', b'"model":"other"'
        )
        renamed.append(b'{"crc":%d,"record":%s}\n' % (zlib.crc32(record), record))
    path.write_bytes(HEADER + b"".join(renamed))
    with pytest.raises(UsageError, match="model other; this run has colour"):
        write()


def test_a_journal_of_other_inputs_is_refused_by_name(
    write: Callable[..., Summary], make_predictor: MakePredictor, make_sources: MakeSources, output: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=9)
    others = (Source(name=f"new-{source.name}", data=source.data) for source in make_sources(COUNT))
    with (
        make_predictor(batch_size=4) as predictor,
        pytest.raises(UsageError, match=r"row 0 there is '0\.jpg' \(index 0\), now it is 'new-0\.jpg'"),
    ):
        predict_to_file(predictor, others, output, "jsonl")


def test_a_journal_with_more_rows_than_inputs_is_refused(write: Callable[..., Summary]) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=9)
    with pytest.raises(UsageError, match="now it is nothing"):
        write(count=5)


def test_a_run_that_would_start_again_over_a_journal_is_refused(write: Callable[..., Summary], output: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(stop_after=9)
    with pytest.raises(UsageError, match="first 9 rows of an interrupted run") as caught:
        has_finished(output, "jsonl", resume=False)
    assert caught.value.hint is not None
    assert "--resume" in caught.value.hint
    assert not has_finished(output, "jsonl", resume=True)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_output_without_a_journal_is_finished_if_it_is_what_is_asked_for(
    write: Callable[..., Summary],
    make_predictor: MakePredictor,
    make_sources: MakeSources,
    output: Path,
    kind: Format,
) -> None:
    assert not has_finished(output, kind, resume=True)
    write(kind=kind)
    assert has_finished(output, kind, resume=True)
    assert not has_finished(output, kind, resume=False)
    found = check_finished(make_predictor(batch_size=4), make_sources(COUNT, broken=is_broken), output, kind)
    assert found == Summary(num_rows=30, num_errors=4, num_kept=30)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("options", "count", "named"),
    [
        ({"num_views": 10}, COUNT, "number of views 1; this run has 10"),
        ({"precision": "fp16"}, COUNT, "precision fp32; this run has fp16"),
        ({"top_k": 2}, COUNT, "top-k 3; this run has 2"),
        ({"engine": {"artifact": "f" * 64}}, COUNT, "artifact c0ffeec0ffee; this run has ffffffffffff"),
        ({}, COUNT - 1, r"row 29 there is '29\.jpg' \(index 29\), now it is nothing"),
        ({}, COUNT + 1, r"finished with 30 rows, but the inputs have more: the next is '30\.jpg'"),
    ],
)
def test_a_finished_file_of_another_run_is_refused_by_name(
    write: Callable[..., Summary],
    make_predictor: MakePredictor,
    make_sources: MakeSources,
    output: Path,
    kind: Format,
    options: dict[str, object],
    count: int,
    named: str,
) -> None:
    write(kind=kind)
    predictor = make_predictor(**({"batch_size": 4} | options))
    with pytest.raises(UsageError, match=named) as caught:
        check_finished(predictor, make_sources(count, broken=is_broken), output, kind)
    assert caught.value.hint is not None
    assert "--overwrite" in caught.value.hint


def test_inputs_are_compared_one_at_a_time(
    write: Callable[..., Summary], make_predictor: MakePredictor, make_sources: MakeSources, output: Path
) -> None:
    write()
    asked = 0

    def others() -> Iterator[Source]:
        nonlocal asked
        for source in make_sources(COUNT, broken=is_broken):
            asked += 1
            yield Source(name="other.jpg") if asked == 3 else source

    with pytest.raises(UsageError, match=r"row 2 there is '2\.jpg' \(index 2\), now it is 'other\.jpg'"):
        check_finished(make_predictor(batch_size=4), others(), output, "jsonl")
    assert asked == 3


@pytest.mark.parametrize(("kind", "content"), [("jsonl", ""), ("csv", ""), ("csv", "index,source,error\n")])
def test_a_file_without_rows_is_not_finished(output: Path, kind: Format, content: str) -> None:
    output.parent.mkdir()
    output.write_text(content)
    with pytest.raises(UsageError, match="holds no rows"):
        has_finished(output, kind, resume=True)


def test_a_table_cannot_be_resumed_once_it_is_there(write: Callable[..., Summary], output: Path) -> None:
    write(kind="table")
    with pytest.raises(UsageError, match="is a table"):
        has_finished(output, "table", resume=True)


def test_a_file_of_the_users_own_is_not_taken_for_a_journal(write: Callable[..., Summary], output: Path) -> None:
    output.parent.mkdir()
    journal_path(output).write_text("my diary\n")
    with pytest.raises(UsageError, match="not the journal"):
        write()
    assert journal_path(output).read_text() == "my diary\n"


def test_a_run_that_fails_before_its_first_row_leaves_nothing(write: Callable[..., Summary], output: Path) -> None:
    def fail(images: object) -> None:
        raise DeviceError("the device fell over")

    with pytest.raises(DeviceError):
        write(engine={"before_run": fail})
    assert os.listdir(output.parent) == []


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # In the label of the sixth row: JSON, and a row, as before.
    content[content.index(b'"label":"', content.index(b'"index":5,')) + 9] ^= 0x01
    path.write_bytes(content)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "table"])
@pytest.mark.parametrize(("harm", "num_left"), [(change_a_byte, 5), (empty, 0), (Path.unlink, None)])
def test_a_journal_harmed_during_the_run_is_an_output_error_and_no_output(
    make_predictor: MakePredictor,
    make_sources: MakeSources,
    write: Callable[..., Summary],
    output: Path,
    kind: Format,
    harm: Callable[[Path], None],
    num_left: int | None,
) -> None:
    write(kind=kind)
    expected = output.read_bytes()
    output.write_text("the old one")

    def on_row(row: Row) -> None:
        if row.index == 20:
            harm(journal_path(output))

    with make_predictor(batch_size=4) as predictor, pytest.raises(OutputError, match="during the run"):
        predict_to_file(predictor, make_sources(COUNT, broken=is_broken), output, kind, on_row=on_row)
    assert output.read_text() == "the old one"
    if num_left:
        assert indices(journal_path(output)) == list(range(num_left))
        assert write(kind=kind) == Summary(num_rows=30, num_errors=4, num_kept=num_left)
        assert output.read_bytes() == expected


def test_a_full_disk_keeps_what_was_written(write: Callable[..., Summary], output: Path) -> None:
    resource = pytest.importorskip("resource")
    write()
    expected = output.read_bytes()
    output.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"rows\.jsonl\.partial could not be written"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal_path(output).stat().st_size == 3000
    kept = indices(journal_path(output))
    assert kept == list(range(len(kept)))
    assert write().num_kept > 0
    assert output.read_bytes() == expected


def test_a_full_disk_at_the_conversion_keeps_the_journal(
    write: Callable[..., Summary], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(predict_file, "write_rows", full)
        with pytest.raises(OutputError, match="No space left"):
            write(kind="csv")
    assert os.listdir(output.parent) == [journal_path(output).name]
    assert write(kind="csv").num_rows == COUNT


def test_plain_rows_count_up_to_the_first_damaged_one(make_predictor: MakePredictor, tmp_path: Path) -> None:
    """Those of a finished file, or of a version before checksums."""
    with make_predictor() as predictor:
        first, second, third = predictor.predict_sources([Source(name=f"{n}.jpg", data=b"broken") for n in range(3)])
    path = tmp_path / "rows.jsonl.partial"
    path.write_bytes(first.to_json() + b"\n" + b'{"index":"one"}\n' + third.to_json() + b"\n")
    assert [(row.index, row.source) for row, _ in read_rows(path)] == [(0, "0.jpg")]
    path.write_bytes(first.to_json() + b"\n" + second.to_json() + b"\n")
    assert indices(path) == [0, 1]
