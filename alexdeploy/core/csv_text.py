"""The one form of CSV files."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPECIAL = re.compile(r'[,"\r\n]')


def csv_line(values: Iterable[object]) -> str:
    """One line of any CSV file of this program: commas, a newline, quotes only where a value needs them, None empty.

    The columns are those of JSON lines; a list of objects becomes field_1 or field_NAME for each object.
    """
    # Not csv.writer: that of Python 3.10 refuses NUL, which names of classes in a file may have. A lone empty value is
    # quoted, since an empty line has no values.
    return (",".join(map(_field, values)) or '""') + "\n"


def _field(value: object) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text
