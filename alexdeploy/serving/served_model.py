"""One export of a model that answers requests: opening, checking and closing it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from alexdeploy.core.errors import DeviceMemoryError, ModelError
from alexdeploy.core.memory import give_back_memory, host_memory
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import EngineInfo
from alexdeploy.inference.batcher import Batcher, BatcherOptions
from alexdeploy.inference.predictor import Predictor
from alexdeploy.placement.memory import host_bytes, smaller_options
from alexdeploy.placement.options import PredictOptions
from alexdeploy.serving.statistics import ModelStatistics

VERSION = "1"
"""The only version of every model. Which export answers is in the response's `artifact`."""

_WARM_UP_SECONDS = 600.0

_SUM_TOLERANCE = 1e-2
"""How far the sum of the probabilities may be from 1: a thousand classes in float16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingOptions:
    """How the models of a server are opened and asked.

    `timeout_ms` is the most time that an answer may take, None: any. `max_memory_bytes` is for all models together;
    None: what is free when a model is loaded.
    """

    predict: PredictOptions = field(default_factory=PredictOptions)
    batcher: BatcherOptions = field(default_factory=BatcherOptions)
    timeout_ms: float | None = None
    max_memory_bytes: int | None = None


class ServedModel:
    """`statistics` are those of the name, whichever export answers. `num_bytes` is about what it needs of the memory.

    Except for `close_now`, to be used in the thread of one event loop.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        batcher: Batcher,
        options: ServingOptions,
        statistics: ModelStatistics,
        num_bytes: int,
    ) -> None:
        self.name, self.version = name, VERSION
        self.predictor, self.batcher, self.statistics = predictor, batcher, statistics
        self.batcher_options, self.timeout_ms, self.num_bytes = options.batcher, options.timeout_ms, num_bytes
        self.info: EngineInfo = predictor.info
        self._num_users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def failure(self) -> str | None:
        """Why the engine will not answer any more; None as long as it may."""
        return self.predictor.failure

    def acquire(self) -> None:
        """Keep the model open until `release`."""
        self._num_users += 1
        self._unused.clear()

    def release(self) -> None:
        self._num_users -= 1
        if not self._num_users:
            self._unused.set()

    async def close(self) -> None:
        """Answer all requests that have the model, then close it."""
        await self._unused.wait()
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """Answer what the batcher has accepted, and close the model. Blocks."""
        self.batcher.close(finish=True)
        self.predictor.close()
        # Twenty reloads of 14 MB of weights grow the process by 350 MB without this, and by 40 with it (ONNX Runtime).
        give_back_memory()

    async def give_up(self) -> None:
        """Have a `close`, running or later, not wait: requests without an answer are cancelled."""
        await asyncio.to_thread(self.batcher.close, finish=False)
        self._unused.set()


def open_model(
    name: str, folder: ModelFolder, options: ServingOptions, statistics: ModelStatistics, held_bytes: int
) -> ServedModel:
    """Open the newest export of a model and have it answer a warm-up. Blocks.

    `held_bytes` is what the open models need. Raises UsageError, ModelError, DeviceError and DeviceMemoryError.
    """
    num_bytes = host_bytes(folder, options.predict, low_latency=True)
    check_memory(name, folder, num_bytes, held_bytes, options)
    predictor = Predictor(folder, options.predict)
    is_served = threading.Event()

    def on_batch(num_images: int, compute_ns: int) -> None:
        # The warm-up is nobody's request.
        if is_served.is_set():
            statistics.record_batch(num_images, compute_ns)

    with ExitStack() as stack:
        predictor.open()
        stack.callback(predictor.close)
        batcher = predictor.batcher(options.batcher, on_batch)
        stack.callback(batcher.close, finish=False)
        warm_up(batcher, predictor.info, options.batcher.max_queue)
        stack.pop_all()
    is_served.set()
    return ServedModel(name, predictor, batcher, options, statistics, num_bytes)


def check_memory(name: str, folder: ModelFolder, num_bytes: int, held_bytes: int, options: ServingOptions) -> None:
    """Raise DeviceMemoryError if the model, which needs `num_bytes`, does not fit beside those with `held_bytes`."""
    if options.max_memory_bytes is not None:
        free = options.max_memory_bytes - held_bytes
        what = f"left of the limit of {options.max_memory_bytes / 1e6:,.0f} MB"
    else:
        found, _ = host_memory()
        if found is None:
            return
        free, what = found, "free"
    if num_bytes > free:
        smaller = smaller_options(folder, options.predict, free, low_latency=True)
        raise DeviceMemoryError(
            f"{name} needs about {num_bytes / 1e6:,.0f} MB of memory, {max(free, 0) / 1e6:,.0f} MB are {what}",
            hint="Serve fewer models, " + (f"or use {smaller}." if smaller else "or give the container more memory."),
        )


def warm_up(batcher: Batcher, info: EngineInfo, max_queue: int | None) -> None:
    """Have every stream answer, one image first and then full batches. Raises ModelError for wrong answers."""
    most = info.batch_size * info.num_streams
    rng = np.random.default_rng(0)
    for num_images in (1, most if max_queue is None else min(most, max_queue)):
        images = rng.integers(0, 256, (num_images, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for outcome in batcher.submit(list(images)).future.result(_WARM_UP_SECONDS):
            if outcome.probabilities is None:
                raise ModelError(f"the warm-up was not answered: {outcome.error}")
            total = float(outcome.probabilities.sum(dtype=np.float64))
            # A sum that is not a number is not near to 1 either.
            if not abs(total - 1) < _SUM_TOLERANCE:
                raise ModelError(f"the probabilities of the warm-up sum to {total:g}, not to 1")
