"""The journal by itself: what it holds, what it recognises as damaged, who may write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.images.sources import Source
from alexdeploy.inference import journal
from alexdeploy.inference.journal import (
    Header,
    Journal,
    check_journal,
    check_no_more,
    check_setting,
    journal_path,
    read_header,
    read_journal,
)

HEADER = Header(command="predict", settings={"batch_size": 4})
RECORDS = [b'{"index":%d,"name":"r\xc3\xb8d"}' % number for number in range(20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv.partial"


def write_all(opened: Journal) -> None:
    opened.cut(0, 0)
    for record in RECORDS:
        opened.write(record)


def test_records_are_read_back_as_they_were_written(path: Path) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
        assert list(opened.records()) == RECORDS
    assert read_header(path, "predict") == HEADER
    assert [record for record, _ in read_journal(path, "predict")] == RECORDS


def test_each_offset_is_where_a_journal_can_be_cut(path: Path) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
    for number, (_, end) in enumerate(read_journal(path, "predict"), start=1):
        content = path.read_bytes()[:end]
        assert content.endswith(b"}\n")
        assert content.count(b"\n") == number + 1


def test_any_byte_of_any_record_that_changes_ends_what_can_be_read(path: Path) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
    content = path.read_bytes()
    ends = [end for _, end in read_journal(path, "predict")]
    first = len(HEADER.to_line())
    for offset in range(first, ends[2]):
        damaged = bytearray(content)
        damaged[offset] ^= 0x01
        path.write_bytes(damaged)
        intact = sum(end <= offset for end in ends)
        assert [record for record, _ in read_journal(path, "predict")] == RECORDS[:intact], offset


def damage(path: Path, offset: int) -> None:
    """Change one byte where it is, as something that writes into the file would."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x01]))


@pytest.mark.parametrize(
    ("offset", "said"), [(len(HEADER.to_line()) + 40, "0 of 20 records can be read"), (3, "header is damaged")]
)
def test_a_byte_that_changes_during_the_run_is_an_output_error(path: Path, offset: int, said: str) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
        damage(path, offset)
        with pytest.raises(OutputError, match=said):
            list(opened.records())
    assert path.exists()


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_size_that_changes_during_the_run_is_an_output_error(path: Path, size: int) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
        expected = path.stat().st_size
        os.truncate(path, size)
        with pytest.raises(OutputError, match=f"it has {size:,} bytes, expected {expected:,}"):
            opened.sync()
        os.truncate(path, 0)
        opened.write(RECORDS[0])
    # Appended, not written behind a hole of zeros.
    assert b"\0" not in path.read_bytes()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_journal_that_is_removed_during_the_run_is_an_output_error(path: Path, replaced: bool) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
        path.rename(path.with_name("moved"))
        if replaced:
            path.write_bytes(b"")
        with pytest.raises(OutputError, match="removed or replaced"):
            list(opened.records())
    # It is somebody else's file now, and stays.
    assert path.exists() == replaced


def test_the_journal_of_another_command_is_not_touched(path: Path) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
    with pytest.raises(UsageError, match="not the journal of an interrupted evaluate"):
        read_header(path, "evaluate")


def test_two_processes_do_not_write_one_journal(path: Path) -> None:
    pytest.importorskip("fcntl")
    with Journal(path, HEADER), pytest.raises(UsageError, match="another process"):
        Journal(path, HEADER).__enter__()


def test_records_are_synced_every_few_seconds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, synced = [0.0], []
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(journal.os, "fsync", lambda descriptor: synced.append(clock[0]))
    with Journal(path, HEADER) as opened:
        opened.cut(0, 0)
        for clock[0] in (0.5, 1.0, 1.9, 2.1, 3.0, 4.0, 4.2):
            opened.write(RECORDS[0])
        assert synced == [2.1, 4.2]


def test_a_journal_is_on_the_disk_before_it_is_read_back_and_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(journal.os, "fsync", lambda descriptor: synced.append(path.stat().st_size))
    with Journal(path, HEADER) as opened:
        write_all(opened)
        assert synced == []
        list(opened.records())
        assert synced == [path.stat().st_size]
    assert synced == [path.stat().st_size] * 2


def test_a_journal_is_cut_where_it_was_intact_and_goes_on_there_without_a_second_header(path: Path) -> None:
    with Journal(path, HEADER) as opened:
        write_all(opened)
    damage(path, path.stat().st_size - 5)
    *_, (_, end) = read_journal(path, "predict")
    with Journal(path, HEADER) as opened:
        opened.cut(end, 19)
        opened.write(b'{"index":19,"again":true}')
        assert list(opened.records()) == [*RECORDS[:19], b'{"index":19,"again":true}']
    assert path.read_bytes().count(b'"journal"') == 1


def test_a_run_without_records_leaves_no_journal_and_no_folder_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "rows.csv.partial"
    with Journal(path, HEADER) as opened:
        opened.cut(0, 0)
        assert list(opened.records()) == []
        assert path.exists()
    assert path.parent.is_dir()
    assert not path.exists()


def test_rows_of_an_earlier_version_have_no_header_and_are_read_with_those_that_were_appended(path: Path) -> None:
    plain = b'{"index":0,"label":"rose"}\n{"index":1,"label":"tulip"}\n'
    path.write_bytes(plain)
    assert read_header(path, "predict") is None
    with Journal(path, HEADER) as opened:
        opened.cut(len(plain), 2)
        opened.write(b'{"index":2}')
    found = list(read_journal(path, "predict"))
    assert [record for record, _ in found] == [
        b'{"index":0,"label":"rose"}',
        b'{"index":1,"label":"tulip"}',
        b'{"index":2}',
    ]
    assert [end for _, end in found] == [27, len(plain), path.stat().st_size]
    # Only predict had such files, and a damaged line that had a checksum is no row.
    with pytest.raises(UsageError, match="not the journal of an interrupted embed"):
        read_header(path, "embed")
    damage(path, path.stat().st_size - 4)
    assert len(list(read_journal(path, "predict"))) == 2


@pytest.mark.parametrize("content", [b"", b'{"jour', b'{"journal":2,"command":"predict","settings":{}}'])
def test_a_header_that_was_not_written_to_its_end_has_no_records_behind_it(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read_header(path, "predict") is None
    assert list(read_journal(path, "predict")) == []


@pytest.mark.parametrize(
    "content",
    [
        b"index,label\n0,rose\n",
        b'{"journal":3,"command":"predict","settings":{}}\n',
        b'{"journal":2,"command":"predict"}\n',
        b'{"journal":' + b" " * (1 << 20),
    ],
)
def test_another_file_at_its_place_is_not_cut(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not the journal of an interrupted predict") as caught:
        read_header(path, "predict")
    assert caught.value.hint == "Move it, or choose another --output."
    assert path.read_bytes() == content


def test_rows_of_an_interrupted_run_are_not_begun_again_without_being_asked(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    assert journal_path(output) == tmp_path / "rows.csv.partial"
    check_journal(output, lambda path: pytest.fail("there is no journal"), resume=False)
    journal_path(output).write_bytes(b"...")
    with pytest.raises(UsageError, match=r"rows\.csv\.partial holds the first 3 rows of an interrupted run") as caught:
        check_journal(output, lambda path: path.read_bytes(), resume=False)
    assert caught.value.hint == f"To continue it, add --resume. To start over, delete {journal_path(output)}."
    check_journal(output, lambda path: path.read_bytes(), resume=True)
    check_journal(output, lambda path: [], resume=False)
    output.mkdir()
    with pytest.raises(UsageError, match="is a folder; expected a file"):
        check_journal(output, lambda path: [], resume=True)


def test_settings_and_inputs_that_are_not_those_of_the_rows_are_told_with_both() -> None:
    path = Path("rows.csv")
    check_setting(path, "batch size", 4, 4, "start over")
    with pytest.raises(UsageError, match=r"rows\.csv was written with batch size 4; this run has 8") as caught:
        check_setting(path, "batch size", 4, 8, "start over")
    assert caught.value.hint == "Use the original options, or start over."
    check_no_more(path, 20, None, "start over")
    with pytest.raises(UsageError, match=r"is finished with 20 rows, .* the next is 'x\.jpg'") as caught:
        check_no_more(path, 20, Source(name="x.jpg", data=b""), "start over")
    assert caught.value.hint == "Give the same inputs, or start over."
