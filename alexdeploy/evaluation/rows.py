"""A row per evaluated image, as JSON lines or CSV: its label and each configuration's answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from alexdeploy.core.csv_text import csv_line
from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import atomic_write, check_output
from alexdeploy.engines.base import Configuration
from alexdeploy.evaluation.precision_recall import MIN_PROBABILITY, NUM_LEVELS
from alexdeploy.evaluation.results import ImageResult, Plan
from alexdeploy.inference.journal import Header, Journal, check_setting, journal_path, read_header, read_journal
from alexdeploy.inference.pipeline import NO_ANSWER, BatchRule

_SUFFIXES = (".jsonl", ".csv")
_COMMAND: Final = "evaluate"
_RESULTS = msgspec.json.Decoder(ImageResult)


def check_rows_path(path: Path, *, resume: bool) -> None:
    """Raise UsageError unless rows can be written to `path`. Call it before any costly work."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"the suffix of {path.name!r} names no format of rows; known are {', '.join(_SUFFIXES)}",
            hint="Call it so: --output rows.jsonl",
        )
    journal = journal_path(path)
    check_output(journal)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; expected a file")
    num_rows = sum(1 for _ in read_journal(journal, _COMMAND)) if journal.exists() else 0
    if num_rows and not resume:
        raise UsageError(
            f"{journal} holds the first {num_rows} rows of an interrupted run",
            hint=f"To continue it, add --resume. To start over, delete {journal}.",
        )
    if resume and path.exists() and not journal.exists():
        raise UsageError(
            f"{path} is complete, nothing to resume", hint="To replace it: --overwrite instead of --resume."
        )


class RowsFile:
    """Rows go to a journal until the evaluation is complete, then to `path`. Raises OutputError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_path = journal_path(path)
        self._stack = ExitStack()

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def kept(self, plan: Plan) -> Iterator[ImageResult]:
        """Open the journal and yield its rows, up to the last complete batch.

        New rows are appended after them. Raises UsageError if the journal belongs to another model or other options.
        """
        settings: dict[str, str | int] = {
            "contract": plan.contract_sha256,
            "configurations": ", ".join(map(str, plan.configurations)),
            "artifacts": ", ".join(plan.artifacts),
            "batch size": plan.batch_size,
            "number of images": plan.num_images,
            "probabilities": f"{NUM_LEVELS} levels from {MIN_PROBABILITY}",
        }
        self._plan = plan
        self._journal = self._stack.enter_context(
            Journal(self.journal_path, Header(command=_COMMAND, settings=settings))
        )
        header = read_header(self.journal_path, _COMMAND)
        remedy = f"delete {self.journal_path} to start over"
        if header is not None:
            for name, expected in settings.items():
                check_setting(self.journal_path, name, header.settings.get(name), expected, remedy)
        rule = BatchRule(plan.batch_size)
        num_bytes = num_kept = 0
        batch: list[ImageResult] = []
        for record, end in read_journal(self.journal_path, _COMMAND):
            image = _RESULTS.decode(record)
            batch.append(image)
            rule.ends_after(good=image.error is None or image.error.startswith(NO_ANSWER))
            if rule.num_images == 0:
                yield from batch
                num_bytes, num_kept = end, num_kept + len(batch)
                batch.clear()
        self._journal.cut(num_bytes, num_kept)

    def write(self, image: ImageResult) -> None:
        self._journal.write(msgspec.json.encode(image))

    def complete(self) -> None:
        """Write the file from the journal, then remove the journal."""
        configurations = self._plan.configurations
        is_csv = self.path.suffix.lower() == ".csv"
        with atomic_write(self.path) as file:
            if is_csv:
                fields = ("label", "index", "probability")
                columns = [f"{field}_{column_key(each)}" for each in configurations for field in fields]
                file.write(csv_line(["index", "source", "label", "label_index", *columns, "model", "error"]).encode())
            for image in map(_RESULTS.decode, self._journal.records()):
                if is_csv:
                    file.write(csv_line(_cells(image, self._plan)).encode())
                else:
                    file.write(msgspec.json.encode(_to_dict(image, self._plan)) + b"\n")
        with contextlib.suppress(OSError):
            self.journal_path.unlink()


def _cells(image: ImageResult, plan: Plan) -> list[object]:
    classes = plan.classes
    cells = [cell for each in image.answers for cell in (classes[each.label], each.label, each.probability)]
    missing = [None] * (3 * len(plan.configurations) - len(cells))
    return [image.index, image.source, classes[image.label], image.label, *cells, *missing, plan.model, image.error]


def column_key(configuration: Configuration) -> str:
    """The end of the names of a configuration's columns in CSV."""
    return f"{configuration.backend}_{configuration.precision}_{configuration.num_views}"


def _to_dict(image: ImageResult, plan: Plan) -> dict[str, object]:
    classes = plan.classes
    return {
        "index": image.index,
        "source": image.source,
        "label": classes[image.label],
        "label_index": image.label,
        "answers": [
            {
                "backend": configuration.backend,
                "precision": configuration.precision,
                "num_views": configuration.num_views,
                "label": classes[answer.label],
                "index": answer.label,
                "probability": answer.probability,
            }
            for configuration, answer in zip(plan.configurations, image.answers, strict=False)
        ],
        "model": plan.model,
        "error": image.error,
    }
