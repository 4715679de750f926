"""The counters of the statistics extension, against totals made by hand."""

from __future__ import annotations

import threading
import time

from alexdeploy.inference.batcher import JobTimes
from alexdeploy.serving.statistics import ModelStatistics


def test_the_counters_are_the_sums_of_what_was_recorded() -> None:
    statistics = ModelStatistics()
    before = time.time_ns() // 1_000_000
    statistics.record_success(1, JobTimes(queue_ns=10, decode_ns=200, compute_ns=3_000), output_ns=4, total_ns=4_000)
    statistics.record_success(5, JobTimes(queue_ns=1, decode_ns=0, compute_ns=7_000), output_ns=6, total_ns=8_000)
    statistics.record_failure(90)
    statistics.record_batch(1, 3_000)
    statistics.record_batch(4, 5_000)
    statistics.record_batch(1, 2_000)
    found = statistics.as_json()
    assert before <= found.pop("last_inference") <= time.time_ns() // 1_000_000
    assert found == {
        "inference_count": 6,
        "execution_count": 3,
        "inference_stats": {
            "success": {"count": 2, "ns": 12_000},
            "fail": {"count": 1, "ns": 90},
            "queue": {"count": 2, "ns": 11},
            "compute_input": {"count": 2, "ns": 200},
            "compute_infer": {"count": 2, "ns": 10_000},
            "compute_output": {"count": 2, "ns": 10},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": 1,
                "compute_input": {"count": 2, "ns": 0},
                "compute_infer": {"count": 2, "ns": 5_000},
                "compute_output": {"count": 2, "ns": 0},
            },
            {
                "batch_size": 4,
                "compute_input": {"count": 1, "ns": 0},
                "compute_infer": {"count": 1, "ns": 5_000},
                "compute_output": {"count": 1, "ns": 0},
            },
        ],
    }


def test_a_model_that_was_never_asked_has_zeros() -> None:
    found = ModelStatistics().as_json()
    assert found["last_inference"] == found["inference_count"] == found["execution_count"] == 0
    assert found["batch_stats"] == []


def test_no_count_is_lost_between_threads() -> None:
    statistics = ModelStatistics()

    def record() -> None:
        for _ in range(2_000):
            statistics.record_batch(2, 3)
            statistics.record_failure(5)

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = statistics.as_json()
    assert found["execution_count"] == 16_000
    assert found["batch_stats"][0]["compute_infer"] == {"count": 16_000, "ns": 48_000}
    assert found["inference_stats"]["fail"] == {"count": 16_000, "ns": 80_000}
