"""Classification as a user who tunes OpenVINO would write it: threads that decode, and requests that run meanwhile.

    python -m benchmarks.peer_openvino_tuned models/alexnet/model.onnx models/alexnet/mean.npy 1 photographs/*.jpg

Pillow and NumPy in as many threads as there are processors; the plain network, or NNCF's INT8 of it, compiled for a
fixed number of rows, which is faster than any number; inputs that are not copied.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino

from alexdeploy.core.processors import available_processors
from benchmarks.peer_images import SIZE, Preprocessing, answers, preprocessing


def compile_network(model: str, precision: str, form: str, num_rows: int) -> openvino.CompiledModel:
    """`model` for [num_rows, 3, 227, 227]; `precision` "fp32" keeps it from bfloat16, its default where a CPU has it.

    `form` is how it is told to use the machine: "latency hint", "throughput hint", or "a stream for each thread", where
    threads are not pinned.
    """
    core = openvino.Core()
    graph = core.read_model(model)
    graph.reshape([num_rows, 3, SIZE, SIZE])
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} if precision == "fp32" else {}
    if form == "a stream for each thread":
        number = available_processors()
        config |= {"NUM_STREAMS": number, "INFERENCE_NUM_THREADS": number, "ENABLE_CPU_PINNING": False}
    else:
        config["PERFORMANCE_HINT"] = form.removesuffix(" hint").upper()
    return core.compile_model(graph, "CPU", config)


def classify(
    network: openvino.CompiledModel, steps: Preprocessing, paths: Sequence[str], batch_size: int
) -> Iterator[tuple[int, float]]:
    """For each file, in order, the best class and its probability. `network` takes batches of `batch_size` images."""

    def decode(batch: Sequence[str]) -> np.ndarray:
        views = steps.batch(batch)
        # The last batch may be smaller, and the network takes no fewer rows.
        missing = steps.num_views * batch_size - len(views)
        return np.pad(views, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else views

    def take(request: openvino.InferRequest, num_images: int) -> list[tuple[int, float]]:
        request.wait()
        return answers(request.get_output_tensor().data, steps.num_views)[:num_images]

    # One more for each that can run, so that none of OpenVINO's streams waits for this thread.
    num_requests = 2 * network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    idle = deque(network.create_infer_request() for _ in range(num_requests))
    running: deque[tuple[openvino.InferRequest, int, np.ndarray]] = deque()
    num_threads = available_processors()
    with ThreadPoolExecutor(num_threads) as threads:
        for batch, views in _ahead(threads, decode, _batches(paths, batch_size), 2 * num_threads):
            if not idle:
                request, num_images, _ = running.popleft()
                yield from take(request, num_images)
                idle.append(request)
            request = idle.popleft()
            # What is not copied has to live until the request is done.
            request.start_async({0: views}, share_inputs=True)
            running.append((request, len(batch), views))
        for request, num_images, _ in running:
            yield from take(request, num_images)


def _batches(paths: Sequence[str], batch_size: int) -> Iterator[Sequence[str]]:
    return (paths[start : start + batch_size] for start in range(0, len(paths), batch_size))


def _ahead(
    threads: ThreadPoolExecutor,
    decode: Callable[[Sequence[str]], np.ndarray],
    batches: Iterable[Sequence[str]],
    num_ahead: int,
) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    """Each batch and its pixels, decoded by `threads`, which are no more than `num_ahead` batches ahead."""
    waiting: deque[tuple[Sequence[str], Future[np.ndarray]]] = deque()
    for batch in batches:
        waiting.append((batch, threads.submit(decode, batch)))
        if len(waiting) > num_ahead:
            first, views = waiting.popleft()
            yield first, views.result()
    for batch, views in waiting:
        yield batch, views.result()


if __name__ == "__main__":
    model, mean_file, std, *files = sys.argv[1:]
    steps = preprocessing(mean_file, std)
    network = compile_network(model, "fp32", "throughput hint", 4 * steps.num_views)
    for path, (label, probability) in zip(files, classify(network, steps, files, 4), strict=True):
        print(path, label, f"{probability:.4f}")
