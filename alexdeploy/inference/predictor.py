"""Classify photographs: a model opened on one backend, which turns inputs into rows."""

from __future__ import annotations

import inspect
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.forks import OpenedHere
from alexdeploy.core.metrics import top_k as best_classes
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import EngineInfo
from alexdeploy.images.sources import Source, iter_sources
from alexdeploy.inference.pipeline import Outcome, PipelineOptions, run_pipeline
from alexdeploy.inference.row import Choice, Row
from alexdeploy.inference.writers import short_artifact
from alexdeploy.placement.options import PredictOptions
from alexdeploy.placement.place import place

if TYPE_CHECKING:
    from alexdeploy.placement.replica import ReplicaReport


class Rows(Iterator[Row]):
    """The rows of one `predict()`; `close()` stops work on rows that have not been read."""

    def __init__(self, rows: Generator[Row, None, None]) -> None:
        self._rows = rows
        self._error: UsageError | None = None
        self._opened = OpenedHere(self)

    def __next__(self) -> Row:
        self._opened.check("predictor")
        if self._error is not None:
            raise self._error
        return next(self._rows)

    def close(self) -> None:
        if not self._opened.is_fork:
            self._rows.close()

    def end(self, error: UsageError) -> None:
        """Close; reading a missing row then raises `error`, instead of ending as if that had been the last row."""
        if inspect.getgeneratorstate(self._rows) != inspect.GEN_CLOSED:
            self._error = error
        self._rows.close()


class Predictor:
    """A model opened for predictions. A context manager, to be used from one thread.

    `model` is a folder or anything `find_model` accepts: a path, a name under `models/`, None for the newest there.
    The fields of PredictOptions are also accepted as keywords, which override those of `options`.

        with Predictor("models/alexnet", num_views=10) as predictor:
            for row in predictor.predict(["images/"]):
                print(row.source, row.label, row.probability)
    """

    def __init__(
        self,
        model: ModelFolder | str | os.PathLike[str] | None = None,
        options: PredictOptions | None = None,
        **overrides: Any,
    ) -> None:
        """Find the model and check the options. Raises UsageError, ModelError or DeviceError."""
        options = replace(check_argument("options", options or PredictOptions(), PredictOptions), **overrides)
        self._top_k: int = options.top_k
        self.folder = model if isinstance(model, ModelFolder) else find_model(model)
        spec = self.folder.spec()
        self.model_name, self._resize = spec.name, spec.preprocessing.resize
        self._placed = place(self.folder, options)
        self._engine = self._placed.engine
        self.notes = self._placed.notes
        self._num_decoders = options.num_threads or available_processors()
        self._opened: OpenedHere | None = None
        self._running: Rows | None = None

    def __enter__(self) -> Predictor:
        self._engine.__enter__()
        self._opened = OpenedHere(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None and self._opened.is_fork:
            return
        self._opened = None
        try:
            # Unfinished iterators leave threads running that still use the engine.
            if self._running is not None:
                self._running.end(
                    UsageError("the predictor is not open any more", hint="Take the rows inside of the with block.")
                )
        finally:
            self._engine.__exit__(kind, error, trace)

    @property
    def info(self) -> EngineInfo:
        """The engine that actually runs."""
        return self._engine.info

    @property
    def replicas(self) -> tuple[ReplicaReport, ...]:
        """The work of each replica so far; empty where one engine runs in this process."""
        if self._opened is not None:
            self._opened.check("predictor")
        pool = self._placed.pool
        return () if pool is None else pool.reports()

    @property
    def top_k(self) -> int:
        """Choices per row: the requested number, or all classes if there are fewer."""
        return min(self._top_k, len(self.info.classes))

    def predict(self, inputs: Iterable[str | os.PathLike[str]]) -> Rows:
        """Classify files, folders, archives, lists and globs: one row per image, in order, as they are ready.

        An image that cannot be read gives a row with its error. Raises DeviceError and ModelError from the engine,
        after the rows before it. The engine serves one iterator at a time: a later `predict()`, and the end of the
        `with` block, end an unfinished one, which raises UsageError when its next row is read.
        """
        return self.predict_sources(iter_sources(inputs))

    def predict_sources(self, sources: Iterable[Source], *, first_index: int = 0) -> Rows:
        """Classify sources; `first_index` is the index of the first of them.

        Ends an unfinished iterator, as `predict` does.
        """
        if self._opened is None:
            raise UsageError("the predictor is not open", hint="Use it so: with Predictor(...) as predictor:")
        self._opened.check("predictor")
        if self._running is not None:
            self._running.end(
                UsageError(
                    "a later predict() ended this one: a predictor serves one at a time",
                    hint="Take all rows first, rows = list(predictor.predict(...)), or open a second Predictor.",
                )
            )
        self._running = Rows(self._rows(sources, first_index))
        return self._running

    def _rows(self, sources: Iterable[Source], first_index: int) -> Generator[Row, None, None]:
        options = PipelineOptions(
            resize=self._resize,
            num_decoders=self._num_decoders,
            first_index=first_index,
            cancel=self._placed.cancel,
        )
        with closing(run_pipeline(self._engine, sources, options)) as outcomes:
            for outcome in outcomes:
                yield make_row(outcome, self.info, self.top_k, self.model_name)


def make_row(outcome: Outcome, info: EngineInfo, top_k: int, model: str) -> Row:
    """Name the `top_k` best classes of an outcome. Raises ModelError if a probability is not finite."""
    top: tuple[Choice, ...] = ()
    views_agreeing = None
    if outcome.probabilities is not None and outcome.view_classes is not None:
        if not np.isfinite(outcome.probabilities).all():
            raise ModelError(
                f"{info.backend} gives probabilities that are not finite for {outcome.source} "
                f"with the {info.precision} graph {short_artifact(info.artifact)}",
                hint="Try it with --precision fp32; if that is well, export the other graph again.",
            )
        best = best_classes(outcome.probabilities[None], top_k)[0]
        top = tuple(
            # str() of a float32 is the shortest text that identifies it; its digits are the significant ones.
            Choice(
                label=info.classes[index],
                index=int(index),
                probability=float(str(outcome.probabilities[index])),
            )
            for index in best
        )
        views_agreeing = int(np.count_nonzero(outcome.view_classes == best[0]))
    return Row(
        index=outcome.index,
        source=outcome.source,
        top=top,
        views_agreeing=views_agreeing,
        num_views=info.num_views,
        model=model,
        backend=info.backend,
        precision=info.precision,
        artifact=short_artifact(info.artifact),
        error=outcome.error,
    )
