"""POST /predict: images as they are, or in a form, to the rows that the command `predict` writes."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from alexdeploy.core.errors import ModelError
from alexdeploy.inference.answer import make_row
from alexdeploy.serving.errors import InvalidRequestError
from alexdeploy.serving.infer import classify, log_fault
from alexdeploy.serving.page import views_of

if TYPE_CHECKING:
    from alexdeploy.inference.batcher import JobTimes
    from alexdeploy.serving.models import ServedModel

File = tuple[str, bytes | memoryview]
"""Name and contents."""

_KNOWN = ("model", "top_k", "views")
_REMOVED_BY_CURL = re.compile(rb"[\r\n\0]")
_MAX_SHOWN = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """What the address asks for; `model` None: the only one."""

    model: str | None = None
    top_k: int = 5
    with_views: bool = False


def read_query(given: Mapping[str, str]) -> Query:
    """Raises InvalidRequestError for a name or a value that is unknown."""
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        raise InvalidRequestError(f"unknown parameter {_shown(unknown[0])}; expected {', '.join(_KNOWN)}")
    top_k, views = given.get("top_k", "5"), given.get("views", "false").lower()
    if not (top_k.isascii() and top_k.isdigit() and len(top_k) < 7 and int(top_k)):
        raise InvalidRequestError(f"top_k is {_shown(top_k)}, expected a number of classes from 1 on")
    if views not in ("true", "false", "1", "0"):
        raise InvalidRequestError(
            f"views is {_shown(views)}, expected true or false: whether rows have the answer of each view. How many "
            "there are is set for the whole server"
        )
    return Query(model=given.get("model"), top_k=int(top_k), with_views=views in ("true", "1"))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


def files_of(body: memoryview, content_type: str | None, max_files: int | None) -> list[File]:
    """The files of a form, or the body itself under the name "body".

    Raises InvalidRequestError if there is none, if there are more than `max_files`, or for a field that is no file.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        if not len(body):
            raise InvalidRequestError("the body is empty: send an image, or a form with images")
        return [("body", body)]
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidRequestError("multipart/form-data without a boundary")
    form = _Form(max_files)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError as exc:
        raise InvalidRequestError(f"the form cannot be read: {exc}") from None
    if not form.is_complete:
        raise InvalidRequestError("the form is not complete")
    if not form.files:
        raise InvalidRequestError("the form has no file: curl -F file=@photo.jpg URL")
    return form.files


async def predict(
    model: ServedModel, files: Sequence[File], query: Query, *, client: str
) -> tuple[list[dict[str, Any]], JobTimes]:
    """One row per file, in order; a file that is no image has a row with its error. Raises RequestError."""
    began = time.perf_counter_ns()
    try:
        answer = await classify(model, [data for _, data in files], client=client)
        computed = time.perf_counter_ns()
        rows = []
        for index, ((name, _), outcome) in enumerate(zip(files, answer.outcomes, strict=True)):
            named = replace(outcome, index=index, source=name)
            row = make_row(named, model.info, min(query.top_k, len(model.classes)), model.name).to_dict()
            if query.with_views and outcome.view_classes is not None:
                row["views"] = views_of(outcome.view_classes, model.info, model.predictor.preprocessing)
            rows.append(row)
    except BaseException as error:
        model.statistics.record_failure(time.perf_counter_ns() - began)
        if isinstance(error, ModelError):
            raise log_fault(model, error) from None
        raise
    ended = time.perf_counter_ns()
    model.statistics.record_success(len(files), answer.times, output_ns=ended - computed, total_ns=ended - began)
    return rows, answer.times


def note_on_curl(body: memoryview, content_type: str | None) -> str:
    """What to say beside the error of an image that `curl -d` has damaged, else "".

    It removes line ends and zeros, and one of these is in nearly every file.
    """
    kind, _ = parse_options_header(content_type)
    if kind != b"application/x-www-form-urlencoded" or _REMOVED_BY_CURL.search(body):
        return ""
    return "; curl sends a file as it is with --data-binary @FILE, and not with -d"


class _Form:
    """The files of a multipart form, as the parser reports them."""

    def __init__(self, max_files: int | None) -> None:
        self.files: list[File] = []
        self._max_files = max_files
        self.is_complete = False
        self._name, self._value = b"", b""
        self._file_name: str | None = None
        self._field = ""
        self._parts: list[bytes] = []

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._begin_header,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._end_form,
        }

    def _begin(self) -> None:
        self._file_name, self._field, self._parts = None, "", []

    def _begin_header(self) -> None:
        self._name, self._value = b"", b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            name = options.get(b"filename")
            self._file_name = None if name is None else name.decode("utf-8", "replace")
            self._field = options.get(b"name", b"").decode("utf-8", "replace")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._parts.append(data[start:end])

    def _end(self) -> None:
        if self._file_name is None:
            raise InvalidRequestError(
                f"the field {_shown(self._field)} of the form is no file: curl -F file=@photo.jpg URL; "
                f"parameters are in the URL: /predict?top_k=3"
            )
        if len(self.files) == self._max_files:
            raise InvalidRequestError(f"the form has more than {self._max_files} files, the most that may wait")
        self.files.append((self._file_name, b"".join(self._parts)))

    def _end_form(self) -> None:
        self.is_complete = True
