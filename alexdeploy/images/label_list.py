"""Lists of images and labels: `name label`, or CSV with commas, semicolons or tabs, with a header or without."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alexdeploy.core.errors import DataError
from alexdeploy.images.known_classes import KnownClasses
from alexdeploy.images.listing import is_image_name
from alexdeploy.images.sources import printable_path
from alexdeploy.images.text_lists import list_lines

LIST_FORM = "Lines are `name index`, the first class being 0, or `name class`; or CSV with a name and a label."

_NAME_HEADERS = (
    *("filename", "filepath", "file", "imagename", "imagepath", "imagefile", "image", "img", "path", "name"),
    *("imageid", "photo", "picture", "id"),
)
_LABEL_HEADERS = (
    *("label", "class", "target", "category", "classname", "labelname", "classid", "labelid", "categoryid"),
    *("classindex", "wnid", "synset", "groundtruth", "predictionstring", "y"),
)
"""Header names of the two columns, without case, blanks and underscores; if there are several, the first is used."""

_SAMPLE_LINES = 100


class _Form(NamedTuple):
    """The format of a list. Without a `separator`, any blank may separate name and label."""

    separator: str | None
    name: int = 0
    label: int = 1
    has_header: bool = False
    others: tuple[int, ...] = ()
    """Further columns that may contain the label, as index or name of the class."""
    num_columns: int | None = None
    """None if everything after the name is the label: ImageNet's class names contain commas, often unquoted."""


def read_label_list(path: str | os.PathLike[str], classes: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The images in a list, as normalized paths, each with the index of its class.

    Raises DataError for an invalid line, an unknown class, an index that contradicts the number in the name of its
    class or another column, and an image with two lines.
    """
    known = KnownClasses(classes)
    first_lines: dict[str, int] = {}
    form, lines = _open_list(path)
    for number, line in lines:
        place = f"{os.fspath(path)}:{number}"
        if form.separator is None:
            image, label = _parse_line(line, known, place)
        else:
            image, text, *others = _cells(line, form, place)
            label = _index(text, known, place)
            _check_others(text, label, others, known, place)
        normal = os.path.normpath(image)
        if normal in first_lines:
            raise DataError(
                f"{place}: {printable_path(image)!r} is already in line {first_lines[normal]}; expected each "
                "image once.",
                hint="Remove one of the lines.",
            )
        first_lines[normal] = number
        yield normal, label


def label_texts(path: str | os.PathLike[str]) -> Iterator[str]:
    """The label text of each image in a list: the label column, the text after the image, or the last word."""
    form, lines = _open_list(path)
    for number, line in lines:
        if form.separator is not None:
            yield _cells(line, form, f"{os.fspath(path)}:{number}")[1]
        else:
            starts = _label_starts(line)
            yield line[starts[-1] :] if starts else line.split()[-1]


def _open_list(path: str | os.PathLike[str]) -> tuple[_Form, Iterator[tuple[int, str]]]:
    """The format of the list, and its lines without the header."""
    lines = list_lines(path)
    head = list(itertools.islice(lines, _SAMPLE_LINES))
    form = _find_form([line for _, line in head])
    return form, itertools.chain(head[form.has_header :], lines)


def _find_form(lines: Sequence[str]) -> _Form:
    if not lines:
        return _Form(None)
    for separator in ("\t", ",", ";"):
        header = _split(lines[0], separator)
        if header is not None and (columns := _columns(header)):
            name, label, *others = columns
            return _Form(separator, name, label, True, tuple(others), len(header))
    if len(words := lines[0].split()) == 2 and _columns(words):
        return _Form(None, has_header=True)
    if all(map(_has_image_before_blank, lines)):
        return _Form(None)
    for separator in ("\t", ",", ";"):
        if (form := _try(lines, separator)) is not None:
            return form
    quoted = all(line.startswith('"') for line in lines)
    return (_try(lines, " ") if quoted else None) or _Form(None)


def _try(lines: Sequence[str], separator: str) -> _Form | None:
    """The form of a list without a header if `separator` is its separator, recognized by the names."""
    rows = [_split(line, separator) for line in lines]
    cells = [row for row in rows if row is not None and len(row) > 1]
    if len(cells) < len(rows):
        return None
    counts = {len(row) for row in cells}
    num_columns = 2 if counts == {2} else None
    if all(is_image_name(row[0]) for row in cells):
        return _Form(separator, num_columns=num_columns)
    if num_columns is None:
        return None
    if all(is_image_name(row[1]) for row in cells):
        return _Form(separator, 1, 0, num_columns=2)
    # A blank in a name without suffix probably precedes the label, which then contains the separator.
    return (
        None
        if any(re.search(r"\s", row[0]) and '"' not in line for row, line in zip(cells, lines, strict=True))
        else _Form(separator, num_columns=2)
    )


def _columns(header: Sequence[str]) -> tuple[int, ...] | None:
    """The columns of names, of labels, and of possible further labels; None if `header` is not a header."""
    words = [re.sub(r"[\W_]", "", cell.casefold()) for cell in header]
    names, labels = (
        sorted((known.index(word), column) for column, word in enumerate(words) if word in known)
        for known in (_NAME_HEADERS, _LABEL_HEADERS)
    )
    if not (names and labels):
        return None
    # In image,category_id,name the last column is the name of the class.
    maybe = [column for _, column in names[1:] if words[column] == "name"]
    return (names[0][1], *(column for _, column in labels), *maybe)


def _split(line: str, separator: str) -> list[str] | None:
    """The cells of a line, stripped; None if its quotes are not valid CSV."""
    try:
        (row,) = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        return None
    return [cell.strip() for cell in row]


def _cells(line: str, form: _Form, place: str) -> tuple[str, ...]:
    """The name, the label, and other possible labels."""
    assert form.separator is not None
    cells = _split(line, form.separator)
    if cells is None:
        raise DataError(f"{place}: a quote is not closed, or there is text beside it.", hint='A " in a name is "".')
    if form.num_columns is None and len(cells) > 1:
        rest = line.split(form.separator, 1)[1].strip() if '"' not in line else f"{form.separator} ".join(cells[1:])
        return cells[0], rest
    if form.num_columns != len(cells):
        raise DataError(
            f"{place}: found {len(cells)} columns; expected {form.num_columns or 2}, as in the lines before.",
            hint=f'Quote a field that contains a separator: "a{form.separator}b"',
        )
    if not cells[form.name]:
        raise DataError(f"{place}: no image name found.", hint=LIST_FORM)
    return cells[form.name], cells[form.label], *(cells[column] for column in form.others)


def _has_image_before_blank(line: str) -> bool:
    return '"' not in line and bool(_label_starts(line))


def _label_starts(line: str) -> list[int]:
    """The positions where the label may begin: after a blank that follows the name of an image."""
    return [
        blank.end()
        for blank in re.finditer(r"\s+", line)
        if line[blank.end()] not in ",;" and is_image_name(line[: blank.start()])
    ]


def _parse_line(line: str, known: KnownClasses, place: str) -> tuple[str, int]:
    """The name of an image and the index of its class.

    Both may contain blanks, so any blank may separate them. The text before it should look like an image name, the text
    after it must be a class; if there are several choices, the longest class is used.
    """
    splits = [(line[: blank.start()], line[blank.end() :]) for blank in re.finditer(r"\s+", line)]
    if not splits:
        raise DataError(f"{place}: found only {printable_path(line)!r}; expected a label after it.", hint=LIST_FORM)
    by_class = [(name, index) for name, text in splits if (index := known.find(text)) is not None]
    by_class = [choice for choice in by_class if is_image_name(choice[0])] or by_class
    name, text = splits[-1]
    if by_class and (not is_number(text) or by_class[0][0] != name):
        return by_class[0]
    return name, _index(text, known, place)


def _index(text: str, known: KnownClasses, place: str) -> int:
    """The index of the class named `text` in a list; `text` may be the index itself."""
    found = known.find(text)
    if not is_number(text):
        if found is not None:
            return found
        raise DataError(
            f"{place}: the label {printable_path(text)!r} is not a class of the model{known.nearest(text)}.",
            hint=f"{LIST_FORM}\n{known.describe()}",
        )
    index = int(text)
    if found is not None and known.is_padded:
        return found
    if found is not None and found != index:
        raise DataError(
            f"{place}: {text!r} is the name of class {found}, and class {index} has another name.",
            hint="If class names are numbers, put the images into class folders.",
        )
    if readings := known.numbered_otherwise(index):
        raise DataError(
            f"{place}: found the label {text!r}, which is {' or '.join(readings)}; "
            "the classes are not numbered by index.",
            hint=f"Write the names of the classes, or put the images into class folders.\n{known.describe()}",
        )
    if index >= len(known.names):
        raise DataError(
            f"{place}: found the index {index}; expected 0 to {len(known.names) - 1}, as the model has "
            f"{len(known.names)} classes.",
            hint=LIST_FORM,
        )
    return index


def _check_others(text: str, label: int, others: Sequence[str], known: KnownClasses, place: str) -> None:
    """Raise DataError if one column has the index of a class and another the name of another class."""
    for other in others:
        if is_number(text) == is_number(other):
            continue
        index = int(other) if is_number(other) else known.find(other)
        if index is not None and index != label:
            raise DataError(
                f"{place}: two columns give different labels: {printable_path(text)!r} is "
                f"class {label}, {printable_path(other)!r} is class {index}.",
                hint="Remove the wrong column. The first class has index 0.",
            )


def is_number(text: str) -> bool:
    """Whether a label is a number: one with more digits is an identifier."""
    return re.fullmatch(r"[0-9]{1,9}", text) is not None
