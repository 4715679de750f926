"""Counters of one model, as the statistics extension of the Open Inference Protocol has them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexdeploy.inference.batcher import JobTimes


class _Duration:
    """A count and a sum of nanoseconds."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = self.ns = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    def as_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


class ModelStatistics:
    """What a model has done since the server started, over all exports that it served. Safe for any thread.

    The names are Triton's, and so are the meanings where both have the thing. Durations are wall time.
    `compute_input` is the decoding of images, zero for pixels; `compute_infer` is the time in the engine, of the
    whole batch for each of the requests in it, as Triton counts; each moment of a request counts once;
    `compute_output` is the making of the output tensors. In `batch_stats`, which counts runs of the engine, decoding
    and outputs have no durations: they are done image by image and request by request. There is no response cache.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._success, self._fail, self._queue = _Duration(), _Duration(), _Duration()
        self._decode, self._compute, self._output = _Duration(), _Duration(), _Duration()
        self._num_images = self._num_batches = self._last_ms = 0
        self._batches: dict[int, _Duration] = {}

    def record_success(self, num_images: int, times: JobTimes, *, output_ns: int, total_ns: int) -> None:
        """Count a request that was answered; `total_ns` is the time from its arrival to its answer."""
        now = time.time_ns() // 1_000_000
        with self._lock:
            self._last_ms = now
            self._num_images += num_images
            self._success.add(total_ns)
            self._queue.add(times.queue_ns)
            self._decode.add(times.decode_ns)
            self._compute.add(times.compute_ns)
            self._output.add(output_ns)

    def record_failure(self, total_ns: int) -> None:
        """Count a request that this model did not answer, for whatever reason."""
        now = time.time_ns() // 1_000_000
        with self._lock:
            self._last_ms = now
            self._fail.add(total_ns)

    def record_batch(self, num_images: int, compute_ns: int) -> None:
        """Count a run of the engine."""
        with self._lock:
            self._num_batches += 1
            self._batches.setdefault(num_images, _Duration()).add(compute_ns)

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Batch size -> number of runs of the engine."""
        with self._lock:
            return {size: each.count for size, each in self._batches.items()}

    @property
    def num_images(self) -> int:
        """Images of requests that were answered."""
        return self._num_images

    def as_json(self) -> dict[str, Any]:
        """The counters, as `$model_stat` of the protocol has them, without name and version."""
        nothing = _Duration().as_json()
        with self._lock:
            parts = {
                "success": self._success,
                "fail": self._fail,
                "queue": self._queue,
                "compute_input": self._decode,
                "compute_infer": self._compute,
                "compute_output": self._output,
            }
            return {
                "last_inference": self._last_ms,
                "inference_count": self._num_images,
                "execution_count": self._num_batches,
                "inference_stats": {name: each.as_json() for name, each in parts.items()}
                | {"cache_hit": nothing, "cache_miss": nothing},
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": {"count": each.count, "ns": 0},
                        "compute_infer": each.as_json(),
                        "compute_output": {"count": each.count, "ns": 0},
                    }
                    for size, each in sorted(self._batches.items())
                ],
            }
