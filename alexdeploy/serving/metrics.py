"""What a server has done and what it is doing, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from alexdeploy.inference.writers import short_artifact

if TYPE_CHECKING:
    from alexdeploy.inference.batcher import JobTimes
    from alexdeploy.serving.models import Repository

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

Protocol = Literal["http", "grpc"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets of latencies: an image takes some milliseconds, and a full queue some seconds."""

_STAGES = ("queue", "decode", "compute", "total")

_ALARMING = ("busy", "internal")
"""Errors that are counted from 0 for every model: a counter that begins at 1 has no increase for Prometheus."""


class Metrics:
    """The metrics of one server. Recording is safe for any thread."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "alexdeploy_requests", "Requests for inference.", ("model", "protocol", "status"), registry=registry
        )
        self._errors = Counter("alexdeploy_errors", "Requests without an answer.", ("model", "kind"), registry=registry)
        self._latency = Histogram(
            "alexdeploy_request_seconds",
            "Time of answered requests by stage: waiting in the queue, decoding, in the engine, and in total.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        # Looking up children by their labels costs more than what is then added.
        self._counters: dict[tuple[str, str, str], Counter] = {}
        self._stages: dict[str, tuple[Histogram, ...]] = {}
        registry.register(_RepositoryCollector(repository))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def record(
        self, protocol: Protocol, model: str, status: str, *, kind: str = "", total_ns: int, times: JobTimes | None
    ) -> None:
        """Count a request for inference. `times` are those of the answer; without one, `kind` is that of the error.

        `status` is the HTTP status or the name of the gRPC code. A `model` that is not known is counted as "".
        """
        if model not in self._repository:
            model = ""
        key = (model, protocol, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(*key)
        counter.inc()
        if times is None:
            self._errors.labels(model, kind).inc()
            return
        stages = self._stages.get(model)
        if stages is None:
            stages = self._stages[model] = tuple(self._latency.labels(model, stage) for stage in _STAGES)
        for stage, ns in zip(stages, (times.queue_ns, times.decode_ns, times.compute_ns, total_ns), strict=True):
            stage.observe(ns / 1e9)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format, of CONTENT_TYPE."""
        for model in self._repository.models:
            for kind in _ALARMING:
                self._errors.labels(model.name, kind)
        return generate_latest(self._registry)


class _RepositoryCollector(Collector):
    """What the repository knows already is read when Prometheus asks, and costs requests nothing."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        models = self._repository.models
        yield GaugeMetricFamily("alexdeploy_ready", "Whether the server is ready.", self._repository.is_ready)
        info = InfoMetricFamily("alexdeploy_model", "The models that answer.", labels=["model"])
        waiting = GaugeMetricFamily("alexdeploy_queue_images", "Images that wait.", labels=["model"])
        running = GaugeMetricFamily("alexdeploy_running_images", "Images in the engine.", labels=["model"])
        images = CounterMetricFamily("alexdeploy_images", "Images of answered requests.", labels=["model"])
        batches = HistogramMetricFamily("alexdeploy_batch_images", "Images in a run of the engine.", labels=["model"])
        for model in models:
            facts = {
                "version": model.version,
                "artifact": short_artifact(model.info.artifact),
                "backend": model.info.backend,
                "device": model.info.device,
                "precision": model.info.precision,
                "views": str(model.info.num_views),
            }
            info.add_metric([model.name], facts)
            waiting.add_metric([model.name], model.batcher.num_waiting)
            running.add_metric([model.name], model.batcher.num_running)
            images.add_metric([model.name], model.statistics.num_images)
            batches.add_metric([model.name], *_buckets(model.statistics.batch_sizes, model.info.batch_size))
        loads = CounterMetricFamily(
            "alexdeploy_model_loads", "Exports that were loaded or refused.", labels=["model", "result"]
        )
        for name, (num_loads, num_refusals) in self._repository.num_loads().items():
            loads.add_metric([name, "ok"], num_loads)
            loads.add_metric([name, "refused"], num_refusals)
        yield from (info, waiting, running, images, batches, loads)


def _buckets(counts: dict[int, int], batch_size: int) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets of powers of two up to the batch size, and the sum of the images."""
    bounds = [2**power for power in range(batch_size.bit_length()) if 2**power < batch_size] + [batch_size]
    buckets = [(f"{bound:.1f}", float(sum(n for size, n in counts.items() if size <= bound))) for bound in bounds]
    total = float(sum(counts.values()))
    return [*buckets, ("+Inf", total)], float(sum(size * n for size, n in counts.items()))
