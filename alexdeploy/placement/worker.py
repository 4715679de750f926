"""The process of one replica: `python -m alexdeploy.placement.worker`, with frames on stdin and stdout."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import IO

import numpy as np

from alexdeploy.core.errors import AlexDeployError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import Engine, open_engine
from alexdeploy.placement.child import adopt_stdio, failure_of
from alexdeploy.placement.frames import Answer, Batch, Job, Ready, Request, read_frame, write_frame

_END_SECONDS = 10.0
"""How long running batches may take after the pool has closed the pipe, or is gone."""


def main() -> None:
    """Open the engine of the first frame, then run batches until the pipe is closed."""
    requests, answers = adopt_stdio()
    frame = read_frame(requests, Request)
    if frame is None or not isinstance(frame[0], Job):
        return
    job = frame[0]
    try:
        with open_engine(ModelFolder(Path(os.fsdecode(job.folder))), job.backend, job.options) as engine:
            write_frame(answers, Ready(info=engine.info))
            _serve(engine, requests, answers)
    except AlexDeployError as exc:
        write_frame(answers, failure_of(exc))


def _serve(engine: Engine, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Run batches in one thread per stream. Another thread reads, so that the pipe never fills while all are busy."""
    waiting: queue.SimpleQueue[tuple[Batch, bytes] | None] = queue.SimpleQueue()
    lock = threading.Lock()

    def work() -> None:
        while (item := waiting.get()) is not None:
            _answer(engine, *item, answers, lock)

    threads = [threading.Thread(target=work) for _ in range(engine.info.num_streams)]
    for thread in threads:
        thread.start()
    while (frame := read_frame(requests, Request)) is not None:
        header, payload = frame
        assert isinstance(header, Batch)
        waiting.put((header, payload))
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join(timeout=_END_SECONDS)
    if any(thread.is_alive() for thread in threads):
        # A batch hangs, and its answer is no longer needed.
        os._exit(1)


def _answer(engine: Engine, batch: Batch, payload: bytes, answers: IO[bytes], lock: threading.Lock) -> None:
    images = np.frombuffer(payload, np.uint8).reshape(batch.num_images, IMAGE_SIZE, IMAGE_SIZE, 3)
    try:
        found = engine.run(images, low_latency=batch.low_latency)
    # Any exception of a runtime: report it, the pool decides, and this process continues.
    except Exception as exc:
        with lock:
            write_frame(answers, failure_of(exc, batch.number))
        return
    header = Answer(
        number=batch.number,
        num_images=len(found.probabilities),
        num_classes=found.probabilities.shape[1],
        num_views=found.view_classes.shape[1],
    )
    with lock:
        write_frame(answers, header, found.probabilities, found.view_classes)


if __name__ == "__main__":
    main()
