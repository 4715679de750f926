"""Predict's rows in a file: written from a complete journal, resumed, and compared with a finished file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import atomic_write
from alexdeploy.images.sources import Source
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
from alexdeploy.inference.pipeline import NO_ANSWER, BatchRule
from alexdeploy.inference.row import Record, Row
from alexdeploy.inference.writers import Format, Shape, read_records, short_artifact, write_rows

if TYPE_CHECKING:
    from alexdeploy.inference.pictures import Pictures
    from alexdeploy.inference.predictor import Predictor

_COMMAND: Final = "predict"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run wrote. `num_kept` of the rows came from the previous run's journal."""

    num_rows: int = 0
    num_errors: int = 0
    num_kept: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """The usable part of a journal: `num_rows` rows in its first `num_bytes`; `sources` are still to be done."""

    num_bytes: int
    num_rows: int
    num_errors: int
    sources: Iterator[Source]


def has_finished(output: Path, kind: Format, *, resume: bool) -> bool:
    """Whether a run with `resume` finds a finished file, to be compared with the current inputs and options.

    Call it before any costly work. Raises UsageError if `output` cannot be written to, if starting over would lose
    rows, or if the finished file cannot be read back.
    """
    journal = journal_path(output)
    check_journal(output, read_rows, resume=resume)
    if not resume or not output.exists() or journal.exists():
        return False
    if next(read_records(output, kind), None) is None:
        raise UsageError(
            f"{output} exists and holds no rows, so it is not the end of an interrupted run",
            hint="To replace it: --overwrite instead of --resume.",
        )
    return True


def check_finished(predictor: Predictor, sources: Iterable[Source], output: Path, kind: Format) -> Summary:
    """Compare a finished file, row by row, with the current inputs, model and options.

    No inference runs. The predictor must be open, because replicas report their artifacts only then. Raises
    UsageError naming the difference.
    """
    waiting = iter(sources)
    num_rows = num_errors = 0
    remedy = "make it again: --overwrite instead of --resume"
    for record in read_records(output, kind):
        _check_settings(output, record, predictor, remedy)
        _check_source(output, record, num_rows, next(waiting, None), remedy)
        num_rows += 1
        num_errors += record.error is not None
    check_no_more(output, num_rows, next(waiting, None), remedy)
    return Summary(num_rows=num_rows, num_errors=num_errors, num_kept=num_rows)


def predict_to_file(
    predictor: Predictor,
    sources: Iterable[Source],
    output: Path,
    kind: Format,
    *,
    on_row: Callable[[Row], None] = lambda row: None,
    pictures: Pictures | None = None,
) -> Summary:
    """Write one row per source to `output`, continuing after the rows of its journal if there is one.

    `pictures`, which must be open, get the images with their rows, those of the journal too.

    The journal must belong to the same inputs, model and options; otherwise UsageError names the difference. A
    resumed run gives the same bytes as an uninterrupted one. Raises OutputError when rows cannot be written, and
    keeps those in the journal.
    """
    info = predictor.info
    header = Header(command=_COMMAND, settings={"batch_size": info.batch_size})
    with Journal(journal_path(output), header) as journal:
        kept = _walk_kept_rows(journal.path, iter(sources), predictor, pictures)
        journal.cut(kept.num_bytes, kept.num_rows)
        num_rows, num_errors = kept.num_rows, kept.num_errors
        rows = predictor.predict_sources(kept.sources, first_index=kept.num_rows, pictures=pictures)
        with contextlib.closing(rows):
            for row in rows:
                journal.write(row.to_json())
                num_rows += 1
                num_errors += row.error is not None
                on_row(row)
        shape = Shape(classes=info.classes, top_k=predictor.top_k, num_views=info.num_views)
        _complete(journal, output, kind, shape, predictor.model_name)
    return Summary(num_rows=num_rows, num_errors=num_errors, num_kept=kept.num_rows)


def read_rows(path: Path) -> Iterator[tuple[Row, int]]:
    """The rows of a journal, each with the offset of its end in the file, up to the first damaged line.

    Raises UsageError if the file is not a journal, and so must not be truncated or removed.
    """
    for record, end in read_journal(path, _COMMAND):
        try:
            row = Row.from_json(record)
        # Journals of earlier versions have no checksums.
        except ValueError:
            return
        yield row, end


def _walk_kept_rows(path: Path, sources: Iterator[Source], predictor: Predictor, pictures: Pictures | None) -> _Kept:
    """Compare the journal with the current inputs, row by row, up to the last complete batch.

    A partial batch is run again with its original images: in a batch of another size, an image's answer can
    differ in the last bit.
    """
    rule = BatchRule(predictor.info.batch_size)
    num_errors = 0
    kept = (0, 0, 0)
    again: list[tuple[Row, Source]] = []
    remedy = f"delete {path} to start over"
    header = read_header(path, _COMMAND)
    if header is not None:
        check_setting(path, "batch size", header.settings.get("batch_size"), predictor.info.batch_size, remedy)
    for index, (row, end) in enumerate(read_rows(path)):
        source = next(sources, None)
        _check_settings(path, row.record, predictor, remedy)
        _check_source(path, row.record, index, source, remedy)
        if source is not None:
            again.append((row, source))
        num_errors += row.error is not None
        rule.ends_after(good=row.error is None or row.error.startswith(NO_ANSWER))
        if rule.num_images == 0:
            if pictures is not None:
                for each in again:
                    pictures.show_kept(*each, predictor.info)
            again.clear()
            kept = (end, index + 1, num_errors)
    num_bytes, num_rows, num_errors = kept
    return _Kept(
        num_bytes=num_bytes,
        num_rows=num_rows,
        num_errors=num_errors,
        sources=_chain([source for _, source in again], sources),
    )


def _chain(first: list[Source], then: Iterator[Source]) -> Iterator[Source]:
    # Unlike itertools.chain it passes on close(), so an archive that is being read is closed at once.
    yield from first
    yield from then


def _check_settings(path: Path, record: Record, predictor: Predictor, remedy: str) -> None:
    info = predictor.info
    top_k = predictor.top_k if record.error is None else 0
    for name, found, expected in (
        ("backend", record.backend, info.backend),
        ("precision", record.precision, info.precision),
        ("number of views", record.num_views, info.num_views),
        # A journal of an earlier version names no model; its artifact identifies it.
        ("model", record.model or predictor.model_name, predictor.model_name),
        ("artifact", record.artifact, short_artifact(info.artifact)),
        ("top-k", record.num_choices, top_k),
    ):
        check_setting(path, name, found, expected, remedy)


def _check_source(path: Path, record: Record, index: int, source: Source | None, remedy: str) -> None:
    now = "nothing" if source is None else repr(source.name)
    if record.index != index or source is None or record.source != source.name:
        raise UsageError(
            f"the inputs are not those that {path} was begun with: "
            f"row {index} there is {record.source!r} (index {record.index}), now it is {now}",
            hint=f"Give the same inputs, or {remedy}.",
        )


def _complete(journal: Journal, output: Path, kind: Format, shape: Shape, model: str) -> None:
    """Write the output from a complete journal. Raises OutputError if the journal lost rows; both files then stay.

    Rows of a run begun by an earlier version have no `model`; here all rows get it.
    """
    rows = map(Row.from_json, journal.records())
    with atomic_write(output) as file:
        write_rows((row if row.model else replace(row, model=model) for row in rows), file, kind, shape)
    with contextlib.suppress(OSError):
        journal.path.unlink()
