"""The metrics of a server, as Prometheus's own parser reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import smooth_images
from prometheus_client.parser import text_string_to_metric_families

from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.batcher import BatcherOptions, JobTimes
from alexdeploy.inference.writers import short_artifact
from alexdeploy.placement.options import PredictOptions
from alexdeploy.serving.metrics import Metrics
from alexdeploy.serving.models import Repository, ServingOptions

OPTIONS = ServingOptions(
    predict=PredictOptions(backend="onnxruntime", batch_size=3, num_threads=1), batcher=BatcherOptions(max_delay_ms=0)
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(metrics: Metrics) -> Samples:
    text = metrics.exposition().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def recorded(folder: ModelFolder, record: Callable[[Metrics, Repository], None]) -> Samples:
    """The metrics of a started server of one model after `record`."""

    async def run() -> Samples:
        repository = Repository([folder], OPTIONS)
        metrics = Metrics(repository)
        assert value(read(metrics), "alexdeploy_ready") == 0
        await repository.start()
        try:
            record(metrics, repository)
            return read(metrics)
        finally:
            await repository.close()

    return asyncio.run(run())


def test_requests_are_counted_by_status_and_their_times_by_stage(tiny_model: ModelFolder) -> None:
    times = JobTimes(queue_ns=2_000_000, decode_ns=3_000_000, compute_ns=40_000_000)

    def record(metrics: Metrics, repository: Repository) -> None:
        for _ in range(3):
            metrics.record("http", "tiny", "200", total_ns=46_000_000, times=times)
        metrics.record("grpc", "tiny", "OK", total_ns=2_000_000_000, times=times)
        metrics.record("http", "tiny", "503", kind="busy", total_ns=1_000, times=None)
        # What clients make up does not become labels.
        for number in range(5):
            metrics.record("http", f"made-up-{number}", "404", kind="not_found", total_ns=1_000, times=None)

    found = recorded(tiny_model, record)
    assert value(found, "alexdeploy_requests_total", model="tiny", protocol="http", status="200") == 3
    assert value(found, "alexdeploy_requests_total", model="tiny", protocol="grpc", status="OK") == 1
    assert value(found, "alexdeploy_requests_total", model="", protocol="http", status="404") == 5
    assert value(found, "alexdeploy_errors_total", model="tiny", kind="busy") == 1
    assert value(found, "alexdeploy_errors_total", model="", kind="not_found") == 5
    # The first failure is an increase only if there was a 0 before.
    assert value(found, "alexdeploy_errors_total", model="tiny", kind="internal") == 0
    sums = {"queue": 0.008, "decode": 0.012, "compute": 0.16, "total": 2.138}
    for stage, seconds in sums.items():
        assert value(found, "alexdeploy_request_seconds_count", model="tiny", stage=stage) == 4
        assert value(found, "alexdeploy_request_seconds_sum", model="tiny", stage=stage) == pytest.approx(seconds)
    assert value(found, "alexdeploy_request_seconds_bucket", model="tiny", stage="total", le="0.05") == 3
    assert value(found, "alexdeploy_request_seconds_bucket", model="tiny", stage="total", le="2.5") == 4


def test_the_model_its_batches_and_the_process_are_there(tiny_model: ModelFolder) -> None:
    def record(metrics: Metrics, repository: Repository) -> None:
        model = repository.get("tiny")
        images = list(smooth_images(2))
        for batch in ([images[0]], images, images):
            model.batcher.submit(batch).future.result()
            model.statistics.record_success(len(batch), JobTimes(), output_ns=0, total_ns=1)

    found = recorded(tiny_model, record)
    assert value(found, "alexdeploy_ready") == 1
    artifact = short_artifact(tiny_model.sum_path().read_text().split()[0])
    facts = {"version": "1", "artifact": artifact, "backend": "onnxruntime", "device": "cpu", "precision": "fp32"}
    assert value(found, "alexdeploy_model_info", model="tiny", views="1", **facts) == 1
    assert value(found, "alexdeploy_images_total", model="tiny") == 5
    assert value(found, "alexdeploy_queue_images", model="tiny") == 0
    assert value(found, "alexdeploy_running_images", model="tiny") == 0
    assert value(found, "alexdeploy_batch_images_sum", model="tiny") == 5
    assert value(found, "alexdeploy_batch_images_bucket", model="tiny", le="1.0") >= 1
    assert value(found, "alexdeploy_batch_images_bucket", model="tiny", le="3.0") == value(
        found, "alexdeploy_batch_images_count", model="tiny"
    )
    assert value(found, "alexdeploy_model_loads_total", model="tiny", result="ok") == 1
    assert value(found, "alexdeploy_model_loads_total", model="tiny", result="refused") == 0
    if Path("/proc/self/stat").exists():
        assert value(found, "process_resident_memory_bytes") > 1e7
