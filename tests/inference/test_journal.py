"""The journal by itself: what it holds, what it recognises as damaged, who may write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alexdeploy.core.errors import OutputError, UsageError
from alexdeploy.inference import journal
from alexdeploy.inference.journal import Header, Journal, read_header, read_journal

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
