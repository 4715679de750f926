"""Several engines behind one interface: each batch goes to all of them, so each image is decoded once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.spec import IMAGE_SIZE
from alexdeploy.engines.base import Engine, EngineInfo, Predictions, copied, join_predictions


class SideBySide:
    """Open engines of one model; the caller that opened them closes them.

    They run one after the other, each with all of its streams, so none slows another down: `seconds` is the time of
    each. A batch consists of `num_parts` engine batches, enough to keep all streams busy. An engine gets the same
    images together for any devices and streams, and so returns the same bits.
    """

    def __init__(self, engines: Sequence[Engine], num_parts: int) -> None:
        first = engines[0].info
        self._part_size = min(engine.info.batch_size for engine in engines)
        self._engines = tuple(engines)
        self._stack = ExitStack()
        self._threads: tuple[ThreadPoolExecutor, ...] = ()
        self.seconds = [0.0] * len(engines)
        self.info = EngineInfo(
            backend=",".join(engine.info.backend for engine in engines),
            device=first.device,
            precision=",".join(engine.info.precision for engine in engines),
            num_views=0,
            classes=first.classes,
            artifact=",".join(engine.info.artifact for engine in engines),
            batch_size=self._part_size * num_parts,
            num_streams=1,
        )

    def __enter__(self) -> SideBySide:
        self._threads = tuple(
            # One thread per stream for each engine: no more may call it at once.
            self._stack.enter_context(ThreadPoolExecutor(engine.info.num_streams, "alexdeploy-side"))
            for engine in self._engines
        )
        # The first batch of a size is slower: memory is allocated and kernels are selected.
        self.run(np.zeros((self.info.batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
        self.seconds = [0.0] * len(self._engines)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._threads = ()

    def run(self, images: NDArray[np.uint8], *, low_latency: bool = False) -> Predictions:
        """uint8 [N, 256, 256, 3] -> probabilities float32 [N, K, C] of K engines, and empty view_classes: int32 [N, 0].

        An image on which an engine fails gets an error, as in a pool.
        """
        answers, errors = [], dict[int, str]()
        parts = [images[start : start + self._part_size] for start in range(0, len(images), self._part_size)]
        for number, (engine, threads) in enumerate(zip(self._engines, self._threads, strict=True)):
            began = time.perf_counter()
            found = join_predictions(list(threads.map(partial(_run, engine), parts)))
            self.seconds[number] += time.perf_counter() - began
            answers.append(found.probabilities)
            errors |= found.errors
        return Predictions(np.stack(answers, axis=1), np.empty((len(images), 0), np.int32), errors)


def _run(engine: Engine, images: NDArray[np.uint8]) -> Predictions:
    return copied(engine.run(images))
