"""Features in one call: what `alexdeploy embed` writes, as rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from alexdeploy.core.errors import warn
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.embedder import Embedder, EmbedOptions
from alexdeploy.inference.feature_row import FeatureRow


def embed(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: EmbedOptions | None = None,
    *,
    on_warning: Callable[[str], None] = warn,
) -> Iterator[FeatureRow]:
    """The features of `inputs`, one or several files, folders, archives, lists or globs: a row per image, in order.

    `row.features` is float32 [D], the mean over the views. Rows are yielded as they are ready; the model stays open
    until the last row, or until the iterator is closed. An image that cannot be read gives a row with its `error`.
    Raises UsageError, ModelError and DeviceError: before the first row if the model cannot be opened, later if it
    fails.
    """
    several = (inputs,) if isinstance(inputs, (str, os.PathLike)) else inputs
    embedder = Embedder(model, options)
    for note in embedder.notes:
        on_warning(note)
    return _rows(embedder, several)


def _rows(embedder: Embedder, inputs: Iterable[str | os.PathLike[str]]) -> Iterator[FeatureRow]:
    with embedder:
        yield from embedder.embed(inputs)
