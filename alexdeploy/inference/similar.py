"""The photographs whose features are nearest to those of a query (Krizhevsky et al. 2012, section 6.1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.arguments import Count, check_argument, check_fields
from alexdeploy.core.errors import AlexDeployError, UsageError, warn
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import Backend, NumViews
from alexdeploy.images.sources import Source, iter_sources
from alexdeploy.inference.embedder import Embedder, EmbedOptions
from alexdeploy.inference.feature_files import read_blocks, read_rows
from alexdeploy.inference.feature_row import FeatureRow
from alexdeploy.inference.neighbours import Metric, check_faiss, nearest, search_index
from alexdeploy.inference.writers import short_artifact

_AGAIN = "Name the model that made the file: --model, or embed again: alexdeploy embed IMAGES --overwrite"


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarOptions:
    """How many neighbours, and how they are found. Raises UsageError for an invalid value.

    `metric` is "euclidean", as in the paper, or "cosine". The search is exact and reads the whole file, unless `index`:
    then it uses an index (HNSW) beside the file, which is made at the first search and may miss a neighbour.
    """

    k: Count = 6
    metric: Metric = "euclidean"
    index: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A row of the file of features; `rank` 1 is the nearest."""

    rank: int
    source: str
    distance: float
    index: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A query and its neighbours, the nearest first; or why it has none."""

    query: str
    neighbours: tuple[Neighbour, ...] = ()
    error: str | None = None


def similar(
    queries: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    features: str | os.PathLike[str],
    model: ModelFolder | str | os.PathLike[str] | None = None,
    options: SimilarOptions | None = None,
    *,
    on_warning: Callable[[str], None] = warn,
) -> list[Match]:
    """The nearest photographs in a file that `embed` made, for each query, in order.

    A query is the name of a row in the file, whose features are then taken from there, and which is not its own
    neighbour; or an image, a folder or another input of `embed`, whose images are embedded with the layer, precision
    and views that the file records. `model` None: the model of that name under models/. Raises UsageError if the file
    was made by another model or another graph, or is no file of features.
    """
    options = check_argument("options", options or SimilarOptions(), SimilarOptions)
    path = Path(check_argument("features", features, str))
    check_faiss()
    several = (queries,) if isinstance(queries, (str, os.PathLike)) else tuple(queries)
    first = next(read_rows(path), None)
    if first is None:
        raise UsageError(f"{path} has no rows", hint="Make it again: alexdeploy embed IMAGES --overwrite")
    sources, known = _find(path, [os.fspath(query) for query in several])
    if not sources:
        raise UsageError("there is no query", hint="Name an image, a folder, or a source of the file.")
    values, errors = _known_features(path, known)
    strangers = [source for source in sources if source.name not in known]
    if model is not None:
        # It is opened for images that are not in the file alone, and is another model's error in any case.
        _model_of(first, path, model)
    if strangers:
        for number, row in enumerate(_embed(strangers, first, path, model, on_warning)):
            name = strangers[number].name
            if row.features is None:
                errors[name] = row.error or ""
            else:
                values[name] = row.features
    asked = [source.name for source in sources if source.name in values]
    matches = dict(zip(asked, _search(path, asked, values, known, options), strict=True))
    return [
        Match(query=source.name, neighbours=matches.get(source.name, ()), error=errors.get(source.name))
        for source in sources
    ]


def _find(path: Path, queries: Sequence[str]) -> tuple[list[Source], dict[str, FeatureRow]]:
    """The images of the queries, and those rows of the file, by name, that are among them."""
    named = {row.source: row for row in _rows_named(path, queries)}
    sources = [
        source for query in queries for source in ([Source(name=query)] if query in named else iter_sources([query]))
    ]
    known = {row.source: row for row in _rows_named(path, [source.name for source in sources])}
    return sources, known


def _rows_named(path: Path, names: Iterable[str]) -> Iterator[FeatureRow]:
    wanted = set(names)
    return (row for row in read_rows(path) if row.source in wanted)


def _known_features(path: Path, known: dict[str, FeatureRow]) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The features and errors of the rows that are queries."""
    errors = {name: row.error for name, row in known.items() if row.error is not None}
    rows = {row.index: name for name, row in known.items() if row.error is None}
    values: dict[str, NDArray[np.float32]] = {}
    start = 0
    for block in read_blocks(path) if rows else ():
        for row in rows.keys() & range(start, start + len(block)):
            found = np.array(block[row - start])
            if np.isfinite(found).all():
                values[rows[row]] = found
            else:
                errors[rows[row]] = f"its features in {path} are not finite: the file is damaged"
        start += len(block)
    return values, errors


def _embed(
    sources: Sequence[Source],
    first: FeatureRow,
    path: Path,
    model: ModelFolder | str | os.PathLike[str] | None,
    on_warning: Callable[[str], None],
) -> Iterator[FeatureRow]:
    """The features of images as those in the file were made. Raises UsageError if this model gives others."""
    folder = _model_of(first, path, model)
    options = EmbedOptions(
        layer=first.layer,
        precision=cast("Precision", first.precision),
        num_views=cast("NumViews", first.num_views),
        backend=cast("Backend", first.backend) if first.backend in get_args(Backend) else None,
        batch_size=min(8, len(sources)),
    )
    embedder = Embedder(folder, options)
    for note in embedder.notes:
        on_warning(note)
    with embedder:
        artifact = short_artifact(embedder.info.artifact)
        if artifact != first.artifact:
            raise UsageError(f"{_made_by(first, path)}; it has {artifact} now", hint=_AGAIN)
        yield from embedder.embed_sources(sources)


def _model_of(first: FeatureRow, path: Path, model: ModelFolder | str | os.PathLike[str] | None) -> ModelFolder:
    """The model that made the file. Raises UsageError for one of another name, or if there is none of its name."""
    try:
        folder = model if isinstance(model, ModelFolder) else find_model(first.model if model is None else model)
    except AlexDeployError as exc:
        if model is not None:
            raise
        raise UsageError(
            f"{_made_by(first, path)}, and there is no such model here", hint="Say where it is: --model FOLDER"
        ) from exc
    name = folder.spec().name
    if name != first.model:
        raise UsageError(f"{_made_by(first, path)}; this is {name}", hint=_AGAIN)
    return folder


def _made_by(first: FeatureRow, path: Path) -> str:
    return f"{path} was made by the model {first.model}, {first.backend} {first.precision} {first.artifact}"


def _search(
    path: Path,
    asked: Sequence[str],
    values: dict[str, NDArray[np.float32]],
    known: dict[str, FeatureRow],
    options: SimilarOptions,
) -> list[tuple[Neighbour, ...]]:
    if not asked:
        return []
    queries = np.stack([values[name] for name in asked])
    # One more, since a row of the file is its own nearest neighbour.
    k = options.k + any(name in known for name in asked)
    if options.index:
        distances, rows = search_index(path, queries, k, options.metric)
    else:
        distances, rows = nearest(read_blocks(path), queries, k, options.metric)
    wanted = set(rows.ravel().tolist())
    names = {row.index: row.source for row in read_rows(path) if row.index in wanted}
    found = []
    for number, name in enumerate(asked):
        own = known[name].index if name in known else -1
        pairs = [(int(row), float(far)) for row, far in zip(rows[number], distances[number], strict=True)]
        kept = [(row, far) for row, far in pairs if row not in (own, -1)][: options.k]
        found.append(
            tuple(
                Neighbour(rank=rank, source=names[row], distance=far, index=row)
                for rank, (row, far) in enumerate(kept, start=1)
            )
        )
    return found
