"""The process in which configurations are measured: `python -m alexdeploy.benchmark.worker PARENT`.

One is started cold for each backend, precision and number of views (on a GPU and in OpenVINO for each batch), so
start-up and memory are its own. It opens the job in the first frame on stdin, gives the first row, and then runs the
task in each further frame. PARENT is the id of the process that started it, and with which it ends.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from contextlib import closing, suppress
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.benchmark.statistics import stream_rate
from alexdeploy.core.errors import DeviceError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import Engine, EngineInfo, Predictions
from alexdeploy.images.sources import Source
from alexdeploy.inference.answer import make_row
from alexdeploy.inference.pipeline import PipelineOptions, run_pipeline
from alexdeploy.placement.child import Failure, adopt_stdio, failure_of
from alexdeploy.placement.frames import read_frame, write_frame
from alexdeploy.placement.options import BATCH_SIZE, PredictOptions
from alexdeploy.placement.place import place

_TOP_K = 5


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What to open; `options.batch_size` is the largest batch that will be requested.

    `decodes_only`: an engine that answers immediately replaces the model's. `images` is a .npy file,
    uint8 [N, 256, 256, 3]; `files` are photographs. Paths are the system's bytes, which need not be UTF-8.
    """

    folder: bytes
    options: PredictOptions
    images: bytes
    files: tuple[bytes, ...]
    decodes_only: bool = False


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine is open; `load_seconds` is the part of the time since the process started that opening took.

    `was_compiled`: its model was in no cache and was compiled by this process.
    """

    info: EngineInfo
    load_seconds: float
    was_compiled: bool


class Task(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run the engine on decoded images, run from files to rows, or write the answers to `path`, a .npy file.

    `seconds` is how long the engine is to run, each stream for at least one batch; `num_images` is the number of images
    from files. Answers are for all images; `num_images` then only tells the parent's time limit how many those are.
    """

    kind: Literal["engine", "files", "answers"]
    batch_size: int
    seconds: float = 0.0
    num_images: int = 0
    path: bytes = b""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The result of a task; the first one reports that the first row is ready. `peak_bytes` None: unknown here."""

    images_per_second: float = 0.0
    batch_seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None


Reply = Opened | Done | Failure


class Sized:
    """An open engine with another batch size: ONNX Runtime and PyTorch on a CPU serve all sizes with one engine."""

    def __init__(self, engine: Engine, batch_size: int) -> None:
        self._engine = engine
        self.info = dataclasses.replace(engine.info, batch_size=batch_size)

    def __enter__(self) -> Sized:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The caller that opened the engine closes it."""

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        return self._engine.run(images, low_latency=low_latency)


class AnswersAtOnce:
    """An engine that ignores its images: a pipeline with it only decodes and gathers batches."""

    def __init__(self, batch_size: int = BATCH_SIZE) -> None:
        self.info = EngineInfo(
            backend="none",
            device="cpu",
            precision="none",
            num_views=1,
            classes=("any",),
            artifact="",
            batch_size=batch_size,
            num_streams=1,
        )

    def __enter__(self) -> AnswersAtOnce:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to close."""

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        return Predictions(np.ones((len(images), 1), np.float32), np.zeros((len(images), 1), np.int32))


def run_engine(engine: Engine, images: NDArray[np.uint8], seconds: float) -> Done:
    """Keep every stream busy with full batches for `seconds`, each stream for at least one batch."""
    info = engine.info
    streams = [_Stream(engine, images, number * info.batch_size, seconds) for number in range(info.num_streams)]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    for stream in streams:
        if stream.error is not None:
            raise stream.error
    counts = [len(stream.batch_seconds) * info.batch_size for stream in streams]
    return Done(
        images_per_second=stream_rate(counts, [stream.seconds for stream in streams]),
        batch_seconds=tuple(each for stream in streams for each in stream.batch_seconds),
    )


class _Stream(threading.Thread):
    def __init__(self, engine: Engine, images: NDArray[np.uint8], first: int, seconds: float) -> None:
        super().__init__(name="alexdeploy-bench")
        self._engine = engine
        # A separate batch, since the pipeline has one for each of its threads.
        self._batch = images[np.arange(first, first + engine.info.batch_size) % len(images)]
        self._limit = seconds
        self.batch_seconds: list[float] = []
        self.seconds = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            began = now = time.perf_counter()
            while not self.batch_seconds or now - began < self._limit:
                self._engine.run(self._batch)
                before, now = now, time.perf_counter()
                self.batch_seconds.append(now - before)
            self.seconds = now - began
        # The waiting thread raises it again.
        except BaseException as exc:
            self.error = exc


def run_files(engine: Engine, sources: list[Source], num_images: int, options: PipelineOptions) -> Done:
    """Process `num_images` of the sources from files to rows, as `predict` does; repeats them if there are fewer."""
    began = time.perf_counter()
    with closing(run_pipeline(engine, islice(cycle(sources), num_images), options)) as outcomes:
        for outcome in outcomes:
            row = make_row(outcome, engine.info, min(_TOP_K, len(engine.info.classes)), "")
            if row.error is not None:
                raise DeviceError(f"{row.source}: {row.error}")
    return Done(images_per_second=num_images / (time.perf_counter() - began))


def peak_bytes() -> int | None:
    """Peak memory of this process plus its replicas' processes; None if the system does not report it."""
    if sys.platform == "linux":
        peaks = [_high_water(name) for name in ("self", *_children())]
        return sum(each for each in peaks if each is not None) or None
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return None


def _children() -> list[str]:
    found: list[str] = []
    # Each thread lists the processes that it started, and may end during the listing.
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += path.read_text().split()
    return found


def _high_water(process: str) -> int | None:
    # Not getrusage, whose figure a process inherits from its parent.
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


def main() -> None:
    asked, replies = adopt_stdio()
    frame = read_frame(asked, Job)
    if frame is None:
        return
    try:
        _serve(frame[0], asked, replies)
    # The parent has ended.
    except BrokenPipeError:
        pass
    # Any error of a runtime is sent in place of the figures, and other configurations continue.
    except Exception as exc:
        write_frame(replies, failure_of(exc))


def _serve(job: Job, asked: IO[bytes], replies: IO[bytes]) -> None:
    began = time.perf_counter()
    folder = ModelFolder(Path(os.fsdecode(job.folder)))
    options = PipelineOptions(
        resize=folder.spec().preprocessing.resize, num_decoders=job.options.num_threads or available_processors()
    )
    sources = [Source(name=name, path=name) for name in map(os.fsdecode, job.files)]
    engine = AnswersAtOnce() if job.decodes_only else place(folder, job.options).engine
    with engine:
        seconds = time.perf_counter() - began
        # Only OpenVINO's engines compile here: TensorRT's are built earlier.
        was_compiled = getattr(engine, "was_compiled", False)
        write_frame(replies, Opened(info=engine.info, load_seconds=seconds, was_compiled=was_compiled))
        run_files(Sized(engine, 1), sources, 1, options)
        write_frame(replies, Done())
        while (frame := read_frame(asked, Task)) is not None:
            task = frame[0]
            write_frame(replies, _do(task, Sized(engine, task.batch_size), job.images, sources, options))


def _mapped(path: bytes) -> NDArray[np.uint8]:
    """Map the images again for each use: pages that were read count as this process's memory while they are mapped."""
    images: NDArray[np.uint8] = np.load(os.fsdecode(path), mmap_mode="r", allow_pickle=False)
    return images


def _do(task: Task, engine: Engine, images: bytes, sources: list[Source], options: PipelineOptions) -> Done:
    if task.kind != "answers":
        is_engine = task.kind == "engine"
        done = (
            run_engine(engine, _mapped(images), task.seconds)
            if is_engine
            else run_files(engine, sources, task.num_images, options)
        )
        return msgspec.structs.replace(done, peak_bytes=peak_bytes())
    parts = [
        # A copy: backends require writable memory.
        np.array(engine.run(np.array(_mapped(images)[start : start + task.batch_size])).probabilities)
        for start in range(0, len(_mapped(images)), task.batch_size)
    ]
    np.save(os.fsdecode(task.path), np.concatenate(parts))
    return Done()


if __name__ == "__main__":
    main()
