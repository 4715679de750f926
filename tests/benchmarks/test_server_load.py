"""What is measured of a server, on a tiny model, and the tables of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import write_pictures

from alexdeploy.core.model_folder import ModelFolder
from benchmarks.endurance import EnduranceOptions, measure_endurance
from benchmarks.latency_plot import draw_latencies
from benchmarks.load import Load, send
from benchmarks.peer_triton import open_triton
from benchmarks.report import markdown
from benchmarks.server import Alone, open_server, write_requests
from benchmarks.serving import ServingOptions, measure_serving
from benchmarks.tables import endurance_table, triton_table
from benchmarks.targets import bars

pytest.importorskip("uvicorn")


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[str, ...]:
    return tuple(sorted(map(str, write_pictures(tmp_path / "pictures", 4).iterdir())))


def silent(text: str) -> None:
    """Nothing is said."""


def test_requests_with_pixels_and_with_files_are_answered_and_counted(
    tiny_model: ModelFolder, pictures: tuple[str, ...], tmp_path: Path
) -> None:
    requests = write_requests(tiny_model, pictures, tmp_path / "requests")
    assert {kind: len(paths) for kind, paths in requests.items()} == {"pixels": 4, "JPEG": 4}
    with open_server(tiny_model, 1) as server:
        before, seconds = server.batch_sizes(), server.cpu_seconds()
        answers = [send(Load(port=server.port, files=files, seconds=0.2, num_clients=2)) for files in requests.values()]
        batches = server.batch_sizes() - before
        assert server.cpu_seconds() > seconds
    assert [set(each.statuses) for each in answers] == [{200}, {200}]
    assert sum(size * count for size, count in batches.items()) == sum(len(each.latencies_ms) for each in answers)


@pytest.mark.slow
def test_engine_and_decoder_alone_take_more_for_more_images(tiny_model: ModelFolder, pictures: tuple[str, ...]) -> None:
    with Alone(tiny_model, 1, pictures) as alone:
        alone.engine_seconds(Counter({8: 4}))
        assert alone.engine_seconds(Counter({8: 200})) > alone.engine_seconds(Counter({8: 2})) > 0
        assert alone.decode_seconds(200) > alone.decode_seconds(2) > 0


@pytest.mark.slow
def test_all_figures_of_a_server_are_measured_and_drawn(
    tiny_model: ModelFolder, pictures: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("benchmarks.serving.VIEWS", (1,))
    found = measure_serving(tiny_model, tmp_path, ServingOptions(files=pictures, num_rounds=2, seconds=0.2), silent)
    assert {name: len(values) for name, values in found["server_ms"].items()} == {"pixels 1": 2, "JPEG 1": 2}
    assert {name: len(values) for name, values in found["alone_ms"].items()} == {"pixels 1": 2, "JPEG 1": 2}
    assert {name: len(values) for name, values in found["rates"].items()} == dict.fromkeys(
        ("serve 1", "predict 1", "threads 1", "tasks 1"), 2
    )
    assert list(found["latencies"]["1"]) == ["0.25", "0.5", "0.75", "1.0"]
    draw_latencies(found, tmp_path / "latency.svg")
    assert (tmp_path / "latency.svg").read_text(encoding="utf-8").count("p99") == 1


def figures() -> dict[str, Any]:
    costs = {"pixels 1": [5.0, 6.0], "JPEG 1": [8.0, 8.0], "JPEG 10": [41.0, 41.0]}
    latency = {"requests_per_second": 50.0, "statuses": {"200": 99, "503": 1}, "p50_ms": 10.0, "p99_ms": 40.25}
    return {
        "model": "flowers",
        "num_rounds": 2,
        "num_files": 64,
        "num_clients": [16, 64],
        "server_ms": costs,
        "alone_ms": {"pixels 1": [4.0, 6.0], "JPEG 1": [7.5, 7.5], "JPEG 10": [40.0, 40.0]},
        "rates": {
            f"{kind} {views}": [rate]
            for views, rates in ((1, (90.0, 120.0, 117.0, 108.0)), (10, (24.0, 24.0, 24.0, 24.0)))
            for kind, rate in zip(("serve", "predict", "threads", "tasks"), rates, strict=True)
        },
        "latencies": {"1": {"0.25": latency}, "10": {"0.25": latency}},
        "machine": {"load_start": 1.0, "load_end": 2.0},
    }


def test_costs_are_compared_within_a_round_and_throughput_with_predict() -> None:
    found = {bar.name: bar for bar in bars({"serving": figures()})}
    pixels = found["serve, pixels, one view, CPU over the same without a server"]
    assert (pixels.found, pixels.is_met) == (pytest.approx((1.25 + 1.0) / 2), False)
    ten = found["serve, JPEG, 10 views, CPU over the same without a server"]
    assert (ten.found, ten.is_met) == (pytest.approx(1.025), True)
    rate = found["serve, one view, share of the images/s of predict"]
    assert (rate.found, rate.is_met) == (pytest.approx(0.75), False)


def test_tables_of_a_server_say_what_was_refused() -> None:
    facts = {"gpus": [], "processor": "A CPU", "num_processors": 2, "versions": {}, "load_start": 1.0, "load_end": 2.0}
    part = figures() | {"date": "2026-01-01T", "commit": "abc1234", "command": "", "machine": facts}
    text = markdown({"serving": part})
    assert "| serve, pixels, one view | 5.50 | 5.00 to 6.00 | 5.00 | 1.125 |" in text
    assert "| serve, one view | 90.0 | 90.0 to 90.0 | 0.75 |" in text
    assert "| aclassify, tasks, one view | 108 | 108 to 108 | 0.90 |" in text
    assert "| 10 views | 25% | 50.0 | 10.0 | 40.2 | 1.0% |" in text


@pytest.mark.slow
def test_a_server_that_is_overloaded_loses_a_replica_and_is_killed_is_measured(
    tiny_model: ModelFolder, pictures: tuple[str, ...], tmp_path: Path
) -> None:
    options = EnduranceOptions(files=pictures, num_requests=20, num_restarts=1, seconds=0.3)
    found = measure_endurance(tiny_model, tmp_path, options, silent)
    assert set(found["overload"]["statuses"]) <= {"200", "503"}
    assert found["overload"]["bound_ms"] > 0
    assert min(found["overload"]["resident_bytes"] + found["long"]["resident_bytes"]) > 1e6
    assert found["long"]["statuses"]["200"] >= 20
    assert found["killed"]["num_replicas"][0] == 2
    assert set(found["killed"]["statuses"]) == {"200"}
    assert len(found["restart_seconds"]) == 1


def test_endurance_is_judged_by_what_failed_and_by_growth() -> None:
    memory = {"resident_bytes": [200_000_000, 208_000_000]}
    overload = {"requests_per_second": 400.0, "seconds": 60.0, "statuses": {"0": 2, "200": 90, "503": 98}}
    part = {
        "model": "flowers",
        "overload": {**overload, "p50_ms": 300.0, "p99_ms": 450.0, "bound_ms": 400.0, **memory},
        "long": {"statuses": {"200": 100_000}, "resident_bytes": [200_000_000, 260_000_000]},
        "killed": {"statuses": {"200": 50, "500": 3}, "num_replicas": [2, 2], "longest_ms": 80.0},
        "restart_seconds": [1.5, 1.7, 2.5],
        "machine": {"load_start": 1.0, "load_end": 2.0},
    }
    found = {bar.name: (bar.found, bar.is_met) for bar in bars({"endurance": part})}
    assert found == {
        "serve, at twice the throughput, answers other than 200 and 503": (2, False),
        "serve, at twice the throughput, p99 of the answers, times the queue's bound": (1.125, False),
        "serve, at twice the throughput, MB more at the end": (8.0, True),
        "serve, 100,000 requests, MB more at the end": (60.0, False),
        "serve, requests that failed in those, and as a replica was killed": (3, False),
        "serve, seconds from the start to ready after kill -9": (1.7, True),
    }
    text = "\n".join(endurance_table(part))
    assert "| many requests | 100,000 times 200 | | 200 to 260 |" in text
    assert "Ready 1.70 s after the start, 1.50 to 2.50" in text


def test_triton_is_compared_within_a_round() -> None:
    costs = {"serve 1": [5.0, 5.8], "triton 1": [5.0, 5.0], "serve 16": [4.2, 4.4], "triton 16": [4.0, 4.0]}
    part = {
        "model": "flowers",
        "num_rounds": 2,
        "version": "0.7.0",
        "server_ms": costs,
        "machine": {"load_start": 1.0, "load_end": 2.0},
    }
    found = {bar.name: (bar.found, bar.is_met) for bar in bars({"triton": part})}
    assert found == {
        "serve, ONNX Runtime, 1 client, CPU over Triton's": (pytest.approx(1.08), True),
        "serve, ONNX Runtime, 16 clients, CPU over Triton's": (pytest.approx(1.075), False),
    }
    assert "| 16 | 4.30 | 4.20 to 4.40 | 4.00 | 4.00 to 4.00 | 1.075 |" in list(triton_table(part))


def test_an_environment_without_triton_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nvidia-pytriton"):
        open_triton(tmp_path, tmp_path, "flowers_graph", tmp_path)
