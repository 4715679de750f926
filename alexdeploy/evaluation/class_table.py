"""Precision, recall and F1 of every class: a table for a page, and a file with those of all configurations."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from alexdeploy.core.csv_text import csv_line
from alexdeploy.core.files import atomic_write
from alexdeploy.core.metrics import frequent_confusions
from alexdeploy.evaluation.results import Evaluation
from alexdeploy.evaluation.rows import column_key
from alexdeploy.evaluation.scoring import ClassScore, Score
from alexdeploy.reports import page

_FIGURES = ("num_errors", "num_answers", "precision", "recall", "f1", "average_precision")


def class_table(found: Evaluation, score: Score) -> str:
    """All classes that have images, sortable."""
    mistakes: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
    for entry in score.confusion:
        mistakes[entry.true][entry.true, entry.predicted] = entry.count
    header = ["class", "images", "wrong", "precision", "recall", "F1", "AP", "most often taken for"]
    rows = [
        (
            row.name,
            row.num_images,
            row.num_errors,
            *map(_number, (row.precision, row.recall, row.f1, row.average_precision)),
            ", ".join(
                f"{found.classes[predicted]} {count}"
                for _, predicted, count in frequent_confusions(mistakes[row.index], 2)
            ),
        )
        for row in score.classes
    ]
    return page.table(header, rows, numbers=range(1, 7), is_sortable=True)


def write_classes(found: Evaluation, path: Path) -> None:
    """A line of CSV for each class that has images, with columns for each configuration. Raises OutputError."""
    columns = [f"{name}_{column_key(score.configuration)}" for score in found.scores for name in _FIGURES]
    with atomic_write(path) as file:
        file.write(csv_line(["index", "class", "num_images", *columns]).encode())
        for rows in zip(*(score.classes for score in found.scores), strict=True):
            cells = [cell for row in rows for cell in _cells(row)]
            file.write(csv_line([rows[0].index, rows[0].name, rows[0].num_images, *cells]).encode())


def _cells(row: ClassScore) -> tuple[object, ...]:
    return row.num_errors, row.num_answers, row.precision, row.recall, row.f1, row.average_precision


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
