"""Predictions in one call: what `alexdeploy predict` prints, as rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import warn
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.placement.options import PredictOptions


def predict(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    *,
    on_warning: Callable[[str], None] = warn,
) -> Iterator[Row]:
    """Classify `inputs`, one or several files, folders, archives, lists or globs: a row for each image, in order.

    Rows are yielded as they are ready; the model stays open until the last row, or until the iterator is closed. To
    predict several times, open a `Predictor` once. An image that cannot be read gives a row with its `error`. Raises
    UsageError, ModelError and DeviceError: before the first row if the model cannot be opened, later if it fails.
    """
    several = (inputs,) if isinstance(inputs, (str, os.PathLike)) else inputs
    options = check_argument("options", options or PredictOptions(), PredictOptions)
    predictor = Predictor(model, options)
    for note in predictor.notes:
        on_warning(note)
    return _rows(predictor, several)


def _rows(predictor: Predictor, inputs: Iterable[str | os.PathLike[str]]) -> Iterator[Row]:
    with predictor:
        yield from predictor.predict(inputs)
