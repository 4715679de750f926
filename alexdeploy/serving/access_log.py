"""One line for each request: who asked for what, what answered, and how long each part took."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TextIO

import msgspec

from alexdeploy.core.printable import escape

if TYPE_CHECKING:
    from alexdeploy.inference.batcher import JobTimes

LogFormat = Literal["json", "text"]
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_TEXT = 200
"""Characters of what clients send: the path, and the name of a model."""


@dataclass(kw_only=True, slots=True)
class RequestRecord:
    """What is known of one request.

    `status` is the HTTP status, or the number of the gRPC status code; `model` the one that was asked for; `given_id`
    the client's id, whatever is in it.
    """

    id: str
    protocol: Literal["http", "grpc"]
    method: str
    path: str
    client: str
    status: int = 0
    error: str = ""
    given_id: str = ""
    model: str = ""
    artifact: str = ""
    rows: int = 0
    times: JobTimes | None = None
    is_inference: bool = False
    is_probe: bool = False
    began_ns: int = field(default_factory=time.perf_counter_ns)
    total_ns: int = 0

    def answered(self, model: str, artifact: str, rows: int, times: JobTimes | None) -> None:
        """Set what answered, and how long it took."""
        self.model, self.artifact, self.rows, self.times = model, artifact, rows, times

    def end(self) -> None:
        self.total_ns = time.perf_counter_ns() - self.began_ns

    def as_dict(self) -> dict[str, Any]:
        """Milliseconds that were waited, decoded and computed are there if a model answered."""
        found: dict[str, Any] = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "id": self.id,
            "protocol": self.protocol,
            "method": self.method,
            "path": self.path[:_MAX_TEXT],
            "status": self.status,
            "client": self.client,
            "total_ms": _ms(self.total_ns),
        }
        if self.error:
            found["error"] = self.error
        if self.model:
            found["model"] = self.model[:_MAX_TEXT]
        if self.artifact:
            found |= {"artifact": self.artifact, "rows": self.rows}
        if self.times is not None:
            found |= {
                "wait_ms": _ms(self.times.queue_ns),
                "decode_ms": _ms(self.times.decode_ns),
                "compute_ms": _ms(self.times.compute_ns),
            }
        return found


def safe_id(text: str | None) -> str | None:
    """A client's id for a request, if it can stand in a header and a log."""
    return text if text is not None and _SAFE_ID.fullmatch(text) else None


class AccessLog:
    """One line for each record: to `stream`, else to the logger "alexdeploy.access" at level INFO.

    A stream costs a fourth of what a logger does. What cannot be written, as to a full disk or a closed pipe, is
    dropped. Without `with_probes`, requests for health and metrics have no line, unless they were refused.
    """

    def __init__(self, kind: LogFormat, stream: TextIO | None = None, *, with_probes: bool = True) -> None:
        self._kind, self._stream, self._with_probes = kind, stream, with_probes
        self._log = logging.getLogger("alexdeploy.access")

    def write(self, record: RequestRecord) -> None:
        if record.is_probe and not record.error and not self._with_probes:
            return
        if self._stream is None and not self._log.isEnabledFor(logging.INFO):
            return
        found = record.as_dict()
        line = msgspec.json.encode(found).decode() if self._kind == "json" else _text(found)
        if self._stream is None:
            self._log.info("%s", line)
            return
        with suppress(OSError):
            self._stream.write(f"{line}\n")
            self._stream.flush()


def _text(found: dict[str, Any]) -> str:
    head = f"{found.pop('time')} {found.pop('method')} {found.pop('path')} {found.pop('status')}"
    return escape(" ".join((head, *(f"{name}={value}" for name, value in found.items()))))


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)


@contextmanager
def logged_to(logger: str, stream: TextIO, level: int, form: str = "%(message)s") -> Iterator[None]:
    """Have a logger and those below it write to a stream, and nowhere else, while the block runs."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(form))
    log = logging.getLogger(logger)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
