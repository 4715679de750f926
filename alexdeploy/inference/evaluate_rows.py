"""A row per evaluated image: its label and what each configuration took it for, as JSON lines or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from alexdeploy.core.artifacts import atomic_write, check_output
from alexdeploy.core.errors import UsageError
from alexdeploy.inference.evaluate import ImageResult
from alexdeploy.inference.scoring import Configuration

_SUFFIXES = (".jsonl", ".csv")


def check_rows_path(path: Path) -> None:
    """Raise UsageError unless rows can be written to `path`. To be asked before anything costly is begun."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"the suffix of {path.name!r} names no format of rows; known are {', '.join(_SUFFIXES)}",
            cure="Call it so: --output rows.jsonl",
        )
    check_output(path)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; expected a file")


@contextmanager
def open_rows(
    path: Path, classes: Sequence[str], configurations: Sequence[Configuration]
) -> Iterator[Callable[[ImageResult], None]]:
    """A function that writes one row; `path` appears, or is replaced, when the block ends well. Raises OutputError."""
    is_csv = path.suffix.lower() == ".csv"
    with atomic_write(path) as file:
        if is_csv:
            columns = [f"{_key(c)}.{field}" for c in configurations for field in ("label", "probability")]
            file.write(_csv_line(["index", "source", "label", *columns, "error"]))

        def write(image: ImageResult) -> None:
            if is_csv:
                cells = [cell for answer in image.answers for cell in (classes[answer.label], answer.probability)]
                missing = [None] * (2 * len(configurations) - len(cells))
                line = [image.index, image.source, classes[image.label], *cells, *missing, image.error]
                file.write(_csv_line(line))
            else:
                file.write(msgspec.json.encode(_to_dict(image, classes, configurations)) + b"\n")

        yield write


def _key(configuration: Configuration) -> str:
    return f"{configuration.backend}-{configuration.precision}-{configuration.num_views}"


def _csv_line(cells: Sequence[object]) -> bytes:
    text = io.StringIO()
    # Every text in quotation marks: a name may hold a line end of any kind.
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _to_dict(image: ImageResult, classes: Sequence[str], configurations: Sequence[Configuration]) -> dict[str, object]:
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
                "label_index": answer.label,
                "probability": answer.probability,
            }
            for configuration, answer in zip(configurations, image.answers, strict=False)
        ],
        "error": image.error,
    }
