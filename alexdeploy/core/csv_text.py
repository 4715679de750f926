"""The one form of CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable


def csv_line(values: Iterable[object]) -> str:
    """One line of any CSV file of this program: commas, a newline, quotes only where a value needs them, None empty.

    The columns are those of JSON lines; a list of objects becomes field_1 or field_NAME for each object.
    """
    # The writer quotes a lone \r or \n only if it is in the line terminator, so both must be.
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue()[:-2] + "\n"
