"""The lines of the access log."""

from __future__ import annotations

import io
import json
import os
from typing import Literal

import pytest

from alexdeploy.inference.batcher import JobTimes
from alexdeploy.serving.access_log import AccessLog, RequestRecord


def line(kind: Literal["json", "text"], **changes: object) -> str:
    record = RequestRecord(id="7", protocol="http", method="POST", path="/predict", client="10.0.0.1")
    for name, value in changes.items():
        setattr(record, name, value)
    stream = io.StringIO()
    AccessLog(kind, stream).write(record)
    text = stream.getvalue()
    assert text.count("\n") == 1
    return text


def test_a_line_of_json_has_the_times_of_each_stage_in_milliseconds() -> None:
    times = JobTimes(queue_ns=1_000_000, decode_ns=2_345_678, compute_ns=3_000_000)
    found = json.loads(line("json", status=200, model="m", artifact="c0ffee", rows=2, times=times, total_ns=7_000_000))
    del found["time"]
    assert found == {
        "id": "7",
        "protocol": "http",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "client": "10.0.0.1",
        "total_ms": 7.0,
        "model": "m",
        "artifact": "c0ffee",
        "rows": 2,
        "wait_ms": 1.0,
        "decode_ms": 2.346,
        "compute_ms": 3.0,
    }


@pytest.mark.parametrize("kind", ["json", "text"])
@pytest.mark.parametrize("name", ["path", "model"])
def test_what_clients_send_cannot_forge_a_line_or_fill_the_disk(kind: Literal["json", "text"], name: str) -> None:
    text = line(kind, **{name: "/a\n200 OK\x1b[2J" + "b" * 100_000})
    assert "\x1b" not in text
    assert len(text) < 1000


def test_a_reader_that_is_gone_does_not_stop_the_server() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    record = RequestRecord(id="7", protocol="http", method="GET", path="/", client="")
    stream = os.fdopen(writer, "w")
    AccessLog("json", stream).write(record)
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_probes_may_be_left_out_unless_they_fail() -> None:
    stream = io.StringIO()
    log = AccessLog("text", stream, with_probes=False)
    for path, is_probe, error in (("/metrics", True, ""), ("/v2/health/ready", True, "busy"), ("/predict", False, "")):
        record = RequestRecord(id="7", protocol="http", method="GET", path=path, client="", error=error)
        record.is_probe = is_probe
        log.write(record)
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["/v2/health/ready", "/predict"]
