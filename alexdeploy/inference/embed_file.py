"""Features in a file, as predict's rows: written from a complete journal, resumed, compared with a finished file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from alexdeploy.core.errors import UsageError
from alexdeploy.images.sources import Source
from alexdeploy.inference.embedder import Embedder
from alexdeploy.inference.feature_files import read_rows, write_features
from alexdeploy.inference.feature_row import FeatureRow
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
from alexdeploy.inference.predict_file import Summary
from alexdeploy.inference.writers import short_artifact

_COMMAND: Final = "embed"


def has_finished(output: Path, *, resume: bool) -> bool:
    """Whether a run with `resume` finds a finished file, to be compared with the current inputs and options.

    Call it before any costly work. Raises UsageError if `output` cannot be written to, or if starting over would lose
    rows.
    """
    journal = journal_path(output)
    check_journal(output, lambda path: read_journal(path, _COMMAND), resume=resume)
    return resume and output.exists() and not journal.exists()


def check_finished(embedder: Embedder, sources: Iterable[Source], output: Path) -> Summary:
    """Compare a finished file, row by row, with the current inputs, model and options; no inference runs.

    The embedder must be open. Raises UsageError naming the difference.
    """
    waiting = iter(sources)
    num_rows = num_errors = 0
    remedy = "make it again: --overwrite instead of --resume"
    for row in read_rows(output):
        _check_row(output, row, num_rows, embedder, next(waiting, None), remedy)
        num_rows += 1
        num_errors += row.error is not None
    check_no_more(output, num_rows, next(waiting, None), remedy)
    return Summary(num_rows=num_rows, num_errors=num_errors, num_kept=num_rows)


def embed_to_file(
    embedder: Embedder,
    sources: Iterable[Source],
    output: Path,
    *,
    on_row: Callable[[FeatureRow], None] = lambda row: None,
) -> Summary:
    """Write one row per source to `output`, .parquet or .npy, continuing after the rows of its journal if there is one.

    The journal must belong to the same inputs, model and options; otherwise UsageError names the difference. A
    resumed run gives the same bytes as an uninterrupted one. Raises OutputError when rows cannot be written, and
    keeps those in the journal.
    """
    info = embedder.info
    header = Header(command=_COMMAND, settings={"batch_size": info.batch_size})
    with Journal(journal_path(output), header) as journal:
        num_bytes, num_kept, num_errors, left = _walk_kept_rows(journal.path, iter(sources), embedder)
        journal.cut(num_bytes, num_kept)
        num_rows = num_kept
        with contextlib.closing(embedder.embed_sources(left, first_index=num_kept)) as rows:
            for row in rows:
                journal.write(row.to_json())
                num_rows += 1
                num_errors += row.error is not None
                on_row(row)
        facts = {
            "layer": embedder.layer,
            "shape": info.feature_shape,
            "num_views": info.num_views,
            "model": embedder.model_name,
            "backend": info.backend,
            "precision": info.precision,
            "artifact": info.artifact,
        }
        write_features(map(FeatureRow.from_json, journal.records()), output, num_rows, info.num_outputs, facts)
        with contextlib.suppress(OSError):
            journal.path.unlink()
    return Summary(num_rows=num_rows, num_errors=num_errors, num_kept=num_kept)


def _walk_kept_rows(
    path: Path, sources: Iterator[Source], embedder: Embedder
) -> tuple[int, int, int, Iterator[Source]]:
    """Compare the journal with the inputs up to its last complete batch: its bytes, rows, errors, and what is left.

    A partial batch is run again with its original images: in a batch of another size, the last bits can differ.
    """
    rule = BatchRule(embedder.info.batch_size)
    num_errors = 0
    kept = (0, 0, 0)
    again: list[Source] = []
    remedy = f"delete {path} to start over"
    header = read_header(path, _COMMAND)
    if header is not None:
        check_setting(path, "batch size", header.settings.get("batch_size"), embedder.info.batch_size, remedy)
    for index, (record, end) in enumerate(read_journal(path, _COMMAND)):
        row = FeatureRow.from_json(record)
        source = next(sources, None)
        _check_row(path, row, index, embedder, source, remedy)
        if source is not None:
            again.append(source)
        num_errors += row.error is not None
        rule.ends_after(good=row.error is None or row.error.startswith(NO_ANSWER))
        if rule.num_images == 0:
            again.clear()
            kept = (end, index + 1, num_errors)
    return (*kept, _chain(again, sources))


def _chain(first: list[Source], then: Iterator[Source]) -> Iterator[Source]:
    # Unlike itertools.chain it passes on close(), so an archive that is being read is closed at once.
    yield from first
    yield from then


def _check_row(path: Path, row: FeatureRow, index: int, embedder: Embedder, source: Source | None, remedy: str) -> None:
    info = embedder.info
    for name, found, expected in (
        ("layer", row.layer, embedder.layer),
        ("backend", row.backend, info.backend),
        ("precision", row.precision, info.precision),
        ("number of views", row.num_views, info.num_views),
        ("model", row.model, embedder.model_name),
        ("artifact", row.artifact, short_artifact(info.artifact)),
    ):
        check_setting(path, name, found, expected, remedy)
    if row.index != index or source is None or row.source != source.name:
        now = "nothing" if source is None else repr(source.name)
        raise UsageError(
            f"the inputs are not those that {path} was begun with: "
            f"row {index} there is {row.source!r} (index {row.index}), now it is {now}",
            hint=f"Give the same inputs, or {remedy}.",
        )
