"""Results on disk that survive a kill: rows go to a journal beside the output until the run is complete.

The journal of `OUT` is `OUT.partial`: a header line, then rows as JSON lines whatever the format of OUT. OUT is written
from a complete journal and renamed, so that OUT is the old file or the new one; an interrupted run goes on from its
journal.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from alexdeploy.core.artifacts import atomic_write, output_error
from alexdeploy.core.errors import InputError, UsageError
from alexdeploy.core.locks import take_lock
from alexdeploy.core.reading import open_regular
from alexdeploy.images.sources import Source
from alexdeploy.inference.pipeline import NO_ANSWER, BatchRule
from alexdeploy.inference.results import Format, Record, Row, Shape, read_records, short_artifact, write_rows

if TYPE_CHECKING:
    from alexdeploy.inference.predict import Predictor

SYNC_SECONDS = 2.0
"""Longest time that rows stay in the system's memory, where a power cut loses them."""

_MAX_HEADER_BYTES = 1 << 12

_BEGINNINGS = (b'{"journal":', b'{"index":0,')
"""Of a journal: with its header, and without one, as earlier versions wrote it and as a finished .jsonl is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What fixes the answers and is in no row. `journal` is the version of this format."""

    journal: int = 1
    batch_size: int

    def to_line(self) -> bytes:
        return msgspec.json.encode(self) + b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run wrote. `num_kept` of the rows came from the journal of the run before."""

    num_rows: int = 0
    num_errors: int = 0
    num_kept: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What stays of a journal: `num_rows` rows in its first `num_bytes`; `sources` are still to be done."""

    num_bytes: int
    num_rows: int
    num_errors: int
    sources: Iterator[Source]


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def has_finished(output: Path, kind: Format, *, resume: bool) -> bool:
    """Whether a run that would `resume` finds a finished file, to be compared with what it is asked for.

    To be asked before anything costly is begun. Raises UsageError if `output` cannot be written to, if a run that
    would begin anew would lose rows, or if the finished file cannot be read back.
    """
    journal = journal_path(output)
    if output.is_dir():
        raise UsageError(f"--output {output} is a folder; expected a file")
    num_rows = sum(1 for _ in read_rows(journal)) if journal.exists() else 0
    if num_rows and not resume:
        raise UsageError(
            f"{journal} holds the first {num_rows} rows of an interrupted run",
            cure=f"Go on with them: add --resume. Or delete {journal} to begin anew.",
        )
    if not resume or not output.exists() or journal.exists():
        return False
    if next(read_records(output, kind), None) is None:
        raise UsageError(
            f"{output} exists and holds no rows, so it is not the end of an interrupted run",
            cure="Leave out --resume to make it.",
        )
    return True


def check_finished(predictor: Predictor, sources: Iterable[Source], output: Path, kind: Format) -> Summary:
    """Compare a finished file, row by row, with the inputs, the model and the options of now.

    Nothing runs; the predictor is open, since replicas tell only then what they are. Raises UsageError saying what
    differs.
    """
    waiting = iter(sources)
    num_rows = num_errors = 0
    anew = "leave out --resume to make it again"
    for record in read_records(output, kind):
        _check_settings(output, record, predictor, anew)
        _check_source(output, record, num_rows, next(waiting, None), anew)
        num_rows += 1
        num_errors += record.error is not None
    more = next(waiting, None)
    if more is not None:
        raise UsageError(
            f"{output} is finished with {num_rows} rows; the inputs of now go on with {more.name!r}",
            cure=f"Give the same inputs, or {anew}.",
        )
    return Summary(num_rows=num_rows, num_errors=num_errors, num_kept=num_rows)


def predict_to_file(
    predictor: Predictor,
    sources: Iterable[Source],
    output: Path,
    kind: Format,
    *,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Summary:
    """Write one row per source to `output`, going on after the rows of its journal if there is one.

    The journal must belong to the same inputs, model and options, else UsageError says what differs. A run
    that was cut off and went on gives the same bytes as one that was not. Raises OutputError, and keeps the
    rows in the journal, when they cannot be written.
    """
    info = predictor.info
    with Journal(journal_path(output), _Header(batch_size=info.batch_size).to_line()) as journal:
        kept = _walk_kept_rows(journal.path, iter(sources), predictor)
        journal.cut(kept.num_bytes)
        num_rows, num_errors = kept.num_rows, kept.num_errors
        rows = predictor.predict_sources(kept.sources, first_index=kept.num_rows)
        with contextlib.closing(rows):
            for row in rows:
                journal.write(row)
                num_rows += 1
                num_errors += row.error is not None
                on_row(row)
        journal.sync()
        shape = Shape(classes=info.classes, top_k=predictor.top_k, num_views=info.num_views)
        _complete(journal.path, output, kind, shape)
    return Summary(num_rows=num_rows, num_errors=num_errors, num_kept=kept.num_rows)


class Journal:
    """A file of rows that only grows. Held by one process at a time, where the system has locks for it.

    `header` is written together with the first row, so that a run without rows leaves no journal.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self.path = path
        self._header = header
        self._pending = b""
        self._descriptor = -1
        self._synced_at = 0.0

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        if not take_lock(self._descriptor, self.path):
            os.close(self._descriptor)
            raise UsageError(f"another process is writing {self.path}", cure="Wait for it, or choose another --output.")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An interrupted run ends here too. If the disk is what interrupted it, there is nothing more to say.
        with contextlib.suppress(OSError):
            os.fsync(self._descriptor)
            if os.fstat(self._descriptor).st_size == 0:
                self.path.unlink()
        os.close(self._descriptor)

    def cut(self, num_bytes: int) -> None:
        """Keep only the first `num_bytes`, and write after them."""
        try:
            os.ftruncate(self._descriptor, num_bytes)
            os.lseek(self._descriptor, num_bytes, os.SEEK_SET)
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        self._pending = b"" if num_bytes else self._header
        self._synced_at = time.monotonic()

    def write(self, row: Row) -> None:
        """Hand a row to the system, so that a kill of this process does not lose it."""
        rest = memoryview(self._pending + row.to_json() + b"\n")
        self._pending = b""
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Bring what was written to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as exc:
            raise output_error(self.path, exc) from exc
        self._synced_at = time.monotonic()


def read_rows(path: Path) -> Iterator[tuple[Row, int]]:
    """The rows of a journal, each with the offset of its end in the file, up to the first line that is not whole.

    Raises UsageError if the file is something else, which must not be cut or removed.
    """
    try:
        with open_regular(path) as file:
            _read_header(path, file)
            end = file.tell()
            for line in file:
                try:
                    row = Row.from_json(line)
                except ValueError:
                    return
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield row, end
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc


def _read_header(path: Path, file: BinaryIO) -> _Header | None:
    """Read up to the first row. None without a header, and with one that was cut off, after which there are no rows."""
    start = file.read(max(map(len, _BEGINNINGS)))
    begins = [beginning for beginning in _BEGINNINGS if start.startswith(beginning[: len(start)])]
    file.seek(0)
    if begins == [_BEGINNINGS[0]]:
        line = file.readline(_MAX_HEADER_BYTES)
        if not line.endswith(b"\n") and len(line) < _MAX_HEADER_BYTES:
            return None
        with contextlib.suppress(ValueError):
            return msgspec.json.decode(line, type=_Header)
        begins = []
    if not begins:
        raise UsageError(
            f"{path} is in the way: it is not the journal of an interrupted predict",
            cure="Move it, or choose another --output.",
        )
    return None


def _walk_kept_rows(path: Path, sources: Iterator[Source], predictor: Predictor) -> _Kept:
    """Compare the journal with the inputs of now, row by row, up to the last batch that is there whole.

    A batch that was cut off is done again, with the images it had: run in a batch of another size, an image
    can get an answer that differs in the last bit.
    """
    rule = BatchRule(predictor.info.batch_size)
    num_errors = 0
    kept = (0, 0, 0)
    again: list[Source] = []
    anew = f"delete {path} to begin anew"
    with open_regular(path) as file:
        header = _read_header(path, file)
    if header is not None:
        _check_setting(path, "batch size", header.batch_size, predictor.info.batch_size, anew)
    for index, (row, end) in enumerate(read_rows(path)):
        source = next(sources, None)
        _check_settings(path, row.record, predictor, anew)
        _check_source(path, row.record, index, source, anew)
        if source is not None:
            again.append(source)
        num_errors += row.error is not None
        rule.ends_after(good=row.error is None or row.error.startswith(NO_ANSWER))
        if rule.num_images == 0:
            again.clear()
            kept = (end, index + 1, num_errors)
    num_bytes, num_rows, num_errors = kept
    return _Kept(num_bytes=num_bytes, num_rows=num_rows, num_errors=num_errors, sources=_chain(again, sources))


def _chain(first: list[Source], then: Iterator[Source]) -> Iterator[Source]:
    # Unlike itertools.chain it passes on close(), and an archive that is being read is closed at once.
    yield from first
    yield from then


def _check_settings(path: Path, record: Record, predictor: Predictor, anew: str) -> None:
    info = predictor.info
    top_k = predictor.top_k if record.error is None else 0
    for name, found, expected in (
        ("backend", record.backend, info.backend),
        ("precision", record.precision, info.precision),
        ("number of views", record.num_views, info.num_views),
        ("artifact", record.artifact, short_artifact(info.artifact)),
        ("top-k", record.num_choices, top_k),
    ):
        _check_setting(path, name, found, expected, anew)


def _check_setting(path: Path, name: str, found: object, expected: object, anew: str) -> None:
    if found != expected:
        raise UsageError(
            f"{path} was written with {name} {found}; this run has {expected}",
            cure=f"Run it with the options it was begun with, or {anew}.",
        )


def _check_source(path: Path, record: Record, index: int, source: Source | None, anew: str) -> None:
    now = "nothing" if source is None else repr(source.name)
    if record.index != index or source is None or record.source != source.name:
        raise UsageError(
            f"the inputs are not those that {path} was begun with: "
            f"row {index} there is {record.source!r} (index {record.index}), now it is {now}",
            cure=f"Give the same inputs, or {anew}.",
        )


def _complete(journal: Path, output: Path, kind: Format, shape: Shape) -> None:
    """Make the output of a complete journal."""
    with atomic_write(output) as file:
        write_rows((row for row, _ in read_rows(journal)), file, kind, shape)
    with contextlib.suppress(OSError):
        journal.unlink()
