"""The features of a layer for photographs: a deployment graph cut there, opened on one backend."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal

import numpy as np

from alexdeploy.core.arguments import Count, check_argument, check_fields
from alexdeploy.core.errors import ImageError, ModelError, UsageError
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.processors import available_processors
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import Backend, EngineInfo, NumViews
from alexdeploy.images.from_memory import Input, list_inputs, name_of, read_square
from alexdeploy.images.sources import Source, iter_sources
from alexdeploy.inference.feature_row import FeatureRow
from alexdeploy.inference.pipeline import Outcome, PipelineOptions, make_outcome, run_pipeline
from alexdeploy.inference.writers import short_artifact
from alexdeploy.network.feature_names import feature_name
from alexdeploy.placement.options import BATCH_SIZE, DeviceOptions, PredictOptions
from alexdeploy.placement.place import place


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedOptions(DeviceOptions):
    """Which features, and where they are computed. Raises UsageError for an invalid value.

    `layer` is a name of the plan: "fc7" are the activations of fc7 (after ReLU, as in the paper and in Caffe), and
    "relu7" the same; "fc7:pre" are its sums before ReLU; "conv5", "norm1", "pool5" and so on are flattened from
    (C, H, W). In an imported graph without a plan, it is the name of a tensor. None: the last hidden layer. The other
    options are those of PredictOptions; TensorRT engines give no features.
    """

    layer: str | None = None
    precision: Precision = "fp32"
    num_views: NumViews = 1
    backend: Backend | None = None
    batch_size: Count | Literal["auto"] = BATCH_SIZE
    num_streams: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def placed(self) -> PredictOptions:
        """The same for `place`."""
        return PredictOptions(
            devices=self.devices,
            replicas=self.replicas,
            num_threads=self.num_threads,
            precision=self.precision,
            num_views=self.num_views,
            backend=self.backend,
            batch_size=self.batch_size,
            num_streams=self.num_streams,
        )


class Embedder:
    """A model opened for the features of one of its layers: a context manager. `model` is as for `Predictor`.

    The fields of EmbedOptions are also accepted as keywords, which override those of `options`.

        with Embedder("models/alexnet", layer="fc7") as embedder:
            for row in embedder.embed(["images/"]):
                print(row.source, row.features)
            [row] = embedder.embed_images(array)
    """

    def __init__(
        self,
        model: ModelFolder | str | os.PathLike[str] | None = None,
        options: EmbedOptions | None = None,
        **overrides: Any,
    ) -> None:
        """Find the model and check the options. Raises UsageError, ModelError or DeviceError."""
        options = replace(check_argument("options", options or EmbedOptions(), EmbedOptions), **overrides)
        self.folder = model if isinstance(model, ModelFolder) else find_model(model)
        spec = self.folder.spec()
        self.model_name, self.preprocessing = spec.name, spec.preprocessing
        self.layer = feature_name(spec, options.layer)
        self._placed = place(self.folder, options.placed(), self.layer)
        self.notes = self._placed.notes
        self._num_decoders = options.num_threads or available_processors()
        self._is_open = False

    def __enter__(self) -> Embedder:
        self._placed.engine.__enter__()
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        self._placed.engine.__exit__(kind, error, trace)

    @property
    def info(self) -> EngineInfo:
        """The engine that actually runs; `feature_shape` is the shape of one image's features."""
        return self._placed.engine.info

    def embed(self, inputs: Iterable[str | os.PathLike[str]]) -> Generator[FeatureRow, None, None]:
        """The features of files, folders, archives, lists and globs: one row per image, in order, as they are ready.

        An image that cannot be read gives a row with its error. Raises DeviceError and ModelError from the engine,
        after the rows before it. Close the iterator, or read it to its end, before the `with` block ends.
        """
        return self.embed_sources(iter_sources(inputs))

    def embed_sources(self, sources: Iterable[Source], *, first_index: int = 0) -> Generator[FeatureRow, None, None]:
        """The features of sources; `first_index` is the index of the first of them."""
        self._check_open()
        options = PipelineOptions(
            resize=self.preprocessing.resize,
            num_decoders=self._num_decoders,
            first_index=first_index,
            cancel=self._placed.cancel,
        )
        return self._rows(sources, options)

    def embed_images(self, images: Input | Iterable[Input]) -> list[FeatureRow]:
        """The features of one image or several, as `Predictor.classify` takes them: one row per image, in order.

        An image that cannot be read gives a row with its error. Raises UsageError for what is no image, DeviceError
        and ModelError from the engine.
        """
        self._check_open()
        inputs = list_inputs(images)
        outcomes: list[Outcome] = []
        for start in range(0, len(inputs), self.info.batch_size):
            outcomes += self._batch(inputs[start : start + self.info.batch_size], start)
        return [self._row(outcome) for outcome in outcomes]

    def _batch(self, inputs: list[Input], first: int) -> list[Outcome]:
        squares, outcomes = {}, {}
        for number, given in enumerate(inputs, start=first):
            name = name_of(given, number)
            try:
                squares[number, name] = read_square(given, self.preprocessing.resize)
            except ImageError as exc:
                outcomes[number] = Outcome(index=number, source=name, error=exc.text)
        if squares:
            found = self._placed.engine.run(np.stack(list(squares.values())))
            for row, (number, name) in enumerate(squares):
                outcomes[number] = make_outcome(number, name, found, row)
        return [outcomes[number] for number in sorted(outcomes)]

    def _check_open(self) -> None:
        if not self._is_open:
            raise UsageError("the embedder is not open", hint="Use it so: with Embedder(...) as embedder:")

    def _rows(self, sources: Iterable[Source], options: PipelineOptions) -> Generator[FeatureRow, None, None]:
        with closing(run_pipeline(self._placed.engine, sources, options)) as outcomes:
            for outcome in outcomes:
                yield self._row(outcome)

    def _row(self, outcome: Outcome) -> FeatureRow:
        info = self.info
        features = outcome.probabilities
        if features is not None and not np.isfinite(features).all():
            raise ModelError(
                f"{info.backend} gives features that are not finite for {outcome.source} "
                f"with the {info.precision} graph {short_artifact(info.artifact)}",
                hint="Try it with --precision fp32; if that is well, export the other graph again.",
            )
        return FeatureRow(
            index=outcome.index,
            source=outcome.source,
            features=features,
            layer=self.layer,
            shape=info.feature_shape,
            num_views=info.num_views,
            model=self.model_name,
            backend=info.backend,
            precision=info.precision,
            artifact=short_artifact(info.artifact),
            error=outcome.error,
        )
