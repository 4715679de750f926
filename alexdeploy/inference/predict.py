"""Predictions in one call: what `alexdeploy predict` prints, as rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import warn
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.images.sources import Inputs, read_inputs
from alexdeploy.inference.pictures import PictureOptions, open_pictures
from alexdeploy.inference.predictor import Predictor
from alexdeploy.inference.row import Row
from alexdeploy.placement.options import PredictOptions


def predict(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: PredictOptions | None = None,
    pictures: PictureOptions | None = None,
    *,
    on_warning: Callable[[str], None] = warn,
) -> Iterator[Row]:
    """Classify `inputs`, one or several files, folders, archives, lists or globs: a row for each image, in order.

    Rows are yielded as they are ready; the model stays open until the last row, or until the iterator is closed. To
    predict several times, open a `Predictor` once. An image that cannot be read gives a row with its `error`. What
    `pictures` ask for is complete after the last row. Raises UsageError, ModelError, DeviceError and OutputError:
    before the first row if the model cannot be opened, later if it fails.
    """
    several = (inputs,) if isinstance(inputs, (str, os.PathLike)) else inputs
    options = check_argument("options", options or PredictOptions(), PredictOptions)
    pictures = check_argument("pictures", pictures, PictureOptions | None)
    given = read_inputs(several)
    if pictures is not None:
        pictures.check(given.texts)
    predictor = Predictor(model, options)
    for note in predictor.notes:
        on_warning(note)
    return _rows(predictor, given, pictures)


def _rows(predictor: Predictor, inputs: Inputs, options: PictureOptions | None) -> Iterator[Row]:
    with predictor, open_pictures(options, predictor) as pictures:
        yield from predictor.predict_sources(inputs, pictures=pictures)
        if pictures is not None:
            pictures.finish(predictor.model_name, predictor.info)
