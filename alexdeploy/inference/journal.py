"""Results on disk that survive a kill: records go to a journal beside the output until the run is complete.

The journal of `OUT` is `OUT.partial`, JSON lines for every format of OUT: a header with the settings that fix the
results, then one record per line with its checksum. OUT is written from a complete journal and renamed, so OUT is
always the old or the new file. An interrupted run resumes from its journal.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal

import msgspec

from alexdeploy.core.errors import InputError, OutputError, UsageError
from alexdeploy.core.files import check_output, output_error
from alexdeploy.core.locks import take_lock
from alexdeploy.core.reading import open_regular

if TYPE_CHECKING:
    from alexdeploy.images.sources import Source

SYNC_SECONDS = 2.0
"""Longest time that records stay in the system's page cache, where a power cut loses them."""

_MAX_HEADER_BYTES = 1 << 20

_HEADER_START = b'{"journal":'
_PLAIN_START = b'{"index":0,'
"""The first bytes of a journal without header and checksums: from an earlier version, or a finished predict .jsonl."""

Command = Literal["predict", "evaluate", "embed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """`settings` fix the results and are not part of any record. `journal` is the version of this format."""

    journal: Literal[2] = 2
    command: Command
    settings: dict[str, str | int]

    def to_line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


class _Line(msgspec.Struct):
    """A record of the journal and the CRC-32 of its bytes."""

    crc: int
    record: msgspec.Raw


_HEADERS = msgspec.json.Decoder(Header)
_LINES = msgspec.json.Decoder(_Line)


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


class Journal:
    """An append-only file of records. Locked by one process at a time where the system supports locks for the file.

    The header is written together with the first record, so a run without records leaves no journal.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self._header = header
        self._pending = b""
        self._descriptor = -1
        self._synced_at = 0.0
        self._num_bytes = self._num_records = 0

    def __enter__(self) -> Journal:
        # O_APPEND: if another process truncates the file, no hole of zeros appears in it.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, flags, 0o666)
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        if not take_lock(self._descriptor, self.path):
            os.close(self._descriptor)
            raise UsageError(f"another process is writing {self.path}", hint="Wait for it, or choose another --output.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupted run ends here too. If a disk error interrupted it, it has already been reported.
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
            if os.fstat(self._descriptor).st_size == 0 and self._is_at_path():
                self.path.unlink()
        os.close(self._descriptor)

    def cut(self, num_bytes: int, num_records: int) -> None:
        """Truncate to the first `num_bytes`, which contain `num_records`, and append after them."""
        try:
            os.ftruncate(self._descriptor, num_bytes)
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        self._num_bytes, self._num_records = num_bytes, num_records
        self._pending = b"" if num_bytes else self._header.to_line()
        self._synced_at = time.monotonic()

    def write(self, record: bytes) -> None:
        """Hand a record, JSON without a newline, to the system, so that killing this process does not lose it."""
        line = b'%s{"crc":%d,"record":%s}\n' % (self._pending, zlib.crc32(record), record)
        rest = memoryview(line)
        self._pending = b""
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        self._num_bytes += len(line)
        self._num_records += 1
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Flush all records to the disk. Raises OutputError if the file was removed, or its size changed."""
        try:
            os.fsync(self._descriptor)
            size = os.fstat(self._descriptor).st_size
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        if not self._is_at_path():
            raise OutputError(f"{self.path} was removed or replaced by something else during the run")
        if size != self._num_bytes:
            raise self._damaged(f"it has {size:,} bytes, expected {self._num_bytes:,}")
        self._synced_at = time.monotonic()

    def records(self) -> Iterator[bytes]:
        """Read back all written records. Raises OutputError, at the end at the latest, if some are lost."""
        self.sync()
        if not self._num_records:
            return
        num_records = 0
        try:
            for record, _ in read_journal(self.path, self._header.command):
                num_records += 1
                yield record
        except (InputError, UsageError) as exc:
            raise OutputError(
                f"{self.path} was changed by something else during the run: its header is damaged",
                hint=f"Delete {self.path} and run it again.",
            ) from exc
        if num_records != self._num_records:
            raise self._damaged(f"{num_records:,} of {self._num_records:,} records can be read")

    def _is_at_path(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except OSError:
            return False

    def _damaged(self, problem: str) -> OutputError:
        return OutputError(
            f"{self.path} was changed by something else during the run: {problem}",
            hint="--resume goes on after the records that are intact.",
        )


def read_header(path: Path, command: Command) -> Header | None:
    """The header of a journal. None if it has none, or a truncated one, after which there are no records.

    Raises UsageError if the file is not a journal of `command` and so must not be truncated or removed.
    """
    with _open(path) as file:
        return _read_header(path, file, command)


def read_journal(path: Path, command: Command) -> Iterator[tuple[bytes, int]]:
    """The records of a journal, each with the offset of its end in the file, up to the first damaged line.

    Raises UsageError as `read_header` does.
    """
    with _open(path) as file:
        header = _read_header(path, file, command)
        end = file.tell()
        for line in file:
            record = _intact_record(line, is_plain=header is None)
            if record is None:
                return
            end += len(line)
            yield record, end


def check_journal(output: Path, rows: Callable[[Path], Iterable[object]], *, resume: bool) -> None:
    """Raise UsageError if no rows can be written to `output`, or if starting over would lose `rows` of its journal."""
    journal = journal_path(output)
    check_output(journal)
    if output.is_dir():
        raise UsageError(f"--output {output} is a folder; expected a file")
    num_rows = sum(1 for _ in rows(journal)) if journal.exists() else 0
    if num_rows and not resume:
        raise UsageError(
            f"{journal} holds the first {num_rows} rows of an interrupted run",
            hint=f"To continue it, add --resume. To start over, delete {journal}.",
        )


def check_no_more(output: Path, num_rows: int, source: Source | None, remedy: str) -> None:
    """Raise UsageError if there is a `source` after those of the finished `output`; `remedy` is what to do."""
    if source is not None:
        raise UsageError(
            f"{output} is finished with {num_rows} rows, but the inputs have more: the next is {source.name!r}",
            hint=f"Give the same inputs, or {remedy}.",
        )


def check_setting(path: Path, name: str, found: object, expected: object, remedy: str) -> None:
    """Raise UsageError if the setting recorded in `path` differs from this run's."""
    if found != expected:
        raise UsageError(
            f"{path} was written with {name} {found}; this run has {expected}",
            hint=f"Use the original options, or {remedy}.",
        )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_regular(path) as file:
            yield file
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc


def _read_header(path: Path, file: BinaryIO, command: Command) -> Header | None:
    start = file.read(len(_HEADER_START))
    file.seek(0)
    if not start:
        return None
    if _HEADER_START.startswith(start):
        line = file.readline(_MAX_HEADER_BYTES)
        if not line.endswith(b"\n") and len(line) < _MAX_HEADER_BYTES:
            return None
        with contextlib.suppress(ValueError):
            header = _HEADERS.decode(line)
            if header.command == command:
                return header
    elif command == "predict" and _PLAIN_START.startswith(start):
        return None
    raise UsageError(
        f"{path} is in the way: it is not the journal of an interrupted {command}",
        hint="Move it, or choose another --output.",
    )


def _intact_record(line: bytes, *, is_plain: bool) -> bytes | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = _LINES.decode(line)
    except (ValueError, RecursionError):
        # A damaged line with a checksum is not accepted as a plain row. Plain rows, of an earlier version, may be
        # followed by checksummed ones that a later version appended.
        return line[:-1] if is_plain and line.startswith(b'{"index":') else None
    record = bytes(found.record)
    return record if zlib.crc32(record) == found.crc else None
