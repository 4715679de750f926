"""A model as a class for Ray Data: batches of paths or bytes become rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from alexdeploy.core.errors import UsageError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.stores.urls import local_path
from alexdeploy.images.sources import Source, printable_path
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.writers import rows_table
from alexdeploy.placement.options import PredictOptions


class Classifier:
    """A model, opened once in each actor of `ray.data.Dataset.map_batches`.

        rows = dataset.map_batches(
            Classifier,
            fn_constructor_args=("/models/alexnet", PredictOptions(num_views=10)),
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=2),
        )

    A batch is a pyarrow.Table with a column `bytes` (encoded image files), or `path` (files that the actor's node can
    read, or URLs), or both: then `path` is only the name. The result has the other columns of the batch, then those of
    `predict`'s Parquet files but for `index`, one row per row and in the same order; `source` is the path, or null
    without paths. An image that cannot be read has a row with its error.
    """

    def __init__(
        self, model: ModelFolder | str | os.PathLike[str] | None = None, options: PredictOptions | None = None
    ) -> None:
        """Open the model with `actor_options(options)`. Raises as Predictor."""
        self._predictor = Predictor(model, actor_options(options or PredictOptions())).open()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Classify one batch. Raises UsageError if it is not such a table, or has a column that a row has as well."""
        if not isinstance(batch, pa.Table):
            raise UsageError(
                f"the batch is of type {type(batch).__name__}; expected a pyarrow.Table",
                hint='Ask Ray for it: map_batches(Classifier, batch_format="pyarrow", ...)',
            )
        if not {"path", "bytes"} & set(batch.column_names):
            raise UsageError(
                f"the batch has the columns {', '.join(batch.column_names)}; expected path, bytes or both",
                hint='Rename one: dataset.rename_columns({"file": "path"})',
            )
        kept = batch.drop_columns([name for name in ("path", "bytes") if name in batch.column_names])
        rows = rows_table(()).drop_columns(["index"])
        if both := set(kept.column_names) & set(rows.column_names):
            raise UsageError(
                f"the batch has columns that the rows have as well: {', '.join(sorted(both))}",
                hint='Rename them: dataset.rename_columns({"label": "true_label"})',
            )
        rows = rows_table(self._predictor.predict_sources(_sources(batch))).drop_columns(["index"])
        if "path" not in batch.column_names:
            rows = rows.set_column(0, rows.schema.field("source"), pa.nulls(len(batch), pa.string()))
        for name in reversed(kept.column_names):
            rows = rows.add_column(0, kept.schema.field(name), kept.column(name))
        return rows

    def close(self) -> None:
        """Close the model; an actor that ends does it by itself."""
        self._predictor.close()


def actor_options(options: PredictOptions) -> PredictOptions:
    """The options for an actor: in place of defaults, the processors and GPUs that Ray has given it.

    `num_threads` None is its number of CPUs, at least one; `devices` None is the CPU for an actor without a GPU. (An
    actor with GPUs sees no others.) Outside of an actor, the options are returned unchanged.
    """
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return options
    given = ray.get_runtime_context().get_assigned_resources()
    return replace(
        options,
        num_threads=options.num_threads or max(int(given.get("CPU", 0)), 1),
        devices=options.devices or (None if given.get("GPU") else "cpu"),
    )


def _sources(batch: pa.Table) -> Iterator[Source]:
    nothing = pa.nulls(len(batch))
    paths = batch.column("path") if "path" in batch.column_names else nothing
    data = batch.column("bytes") if "bytes" in batch.column_names else None
    for number, path in enumerate(paths):
        text: Any = path.as_py()
        name = "" if text is None else printable_path(text)
        if data is not None:
            image: Any = data[number].as_py()
            yield Source(name=name, data=image, problem="the column bytes has no value" if image is None else None)
        elif text is None:
            yield Source(name=name, problem="the column path has no value")
        else:
            yield Source(name=name, path=local_path(text))
