"""What is measured of a server, on a tiny model, and the tables of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers import write_pictures

from alexdeploy.core.model_folder import ModelFolder
from benchmarks.latency_plot import draw_latencies
from benchmarks.load import Load, send
from benchmarks.report import markdown
from benchmarks.server import Alone, Server, write_requests
from benchmarks.serving import ServingOptions, measure_serving
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
    with Server(tiny_model, 1) as server:
        before, seconds = server.batch_sizes(), server.cpu_seconds()
        answers = [send(Load(port=server.port, files=files, seconds=0.2, num_clients=2)) for files in requests.values()]
        batches = server.batch_sizes() - before
        assert server.cpu_seconds() > seconds
    assert [set(each.statuses) for each in answers] == [{200}, {200}]
    assert sum(size * count for size, count in batches.items()) == sum(len(each.latencies_ms) for each in answers)


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
    assert {name: len(values) for name, values in found["rates"].items()} == {"serve 1": 2, "predict 1": 2}
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
        "rates": {"serve 1": [90.0], "predict 1": [120.0], "serve 10": [24.0], "predict 10": [24.0]},
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
    assert "| one view | 90.0 | 120 | 0.75 |" in text
    assert "| 10 views | 25% | 50.0 | 10.0 | 40.2 | 1.0% |" in text
