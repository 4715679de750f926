"""The nearest rows of a file of features: exactly, block by block, or by an index that is kept beside the file."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.files import atomic_write, remove_file
from alexdeploy.core.hashes import remembered_sha256
from alexdeploy.core.packages import missing_package
from alexdeploy.core.reading import MAX_TEXT_BYTES, read_regular
from alexdeploy.inference.feature_files import read_blocks

Metric = Literal["euclidean", "cosine"]

_LINKS = 32
"""Links of a row in the index (M of Malkov and Yashunin 2018)."""

_TRIED = 200
"""Rows that a search of the index looks at (ef), at least."""

_QUERIES_AT_ONCE = 64


def check_faiss() -> None:
    """Raise UsageError if FAISS is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise missing_package("faiss-cpu", "the search for neighbours", "similar")


def nearest(
    blocks: Iterable[NDArray[np.float32]], queries: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The `k` nearest rows of all blocks for each query [Q, D], nearest first: distances and rows [Q, k].

    Exact: FAISS finds the candidates of a block, and their distances are computed in float64. Equal distances are in
    the order of the rows. Rows of NaN are skipped. Where there are fewer than `k` rows, the distance is infinite and
    the row -1. The cosine distance is 1 minus the cosine; a row of zeros has the distance 1 from every other.
    """
    import faiss

    distances = np.full((len(queries), k), np.inf)
    rows = np.full((len(queries), k), -1, np.int64)
    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    searched = prepared(queries, metric)
    start = 0
    for block in blocks:
        there = np.flatnonzero(~np.isnan(block[:, 0]))
        values = np.ascontiguousarray(block[there])
        for first in range(0, len(queries) if len(there) else 0, _QUERIES_AT_ONCE):
            part = slice(first, first + _QUERIES_AT_ONCE)
            _, found = faiss.knn(searched[part], prepared(values, metric), min(k, len(there)), metric=kind)
            exact = _distances(queries[part], values[found], metric)
            distances[part], rows[part] = _merge(distances[part], rows[part], exact, start + there[found])
        start += len(block)
    return distances, rows


def prepared(values: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """The rows that FAISS compares: for cosines, of length one."""
    if metric == "euclidean":
        return np.ascontiguousarray(values, np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (values / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    return unit


def _distances(queries: NDArray[np.float32], found: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    """The distance of each query [Q, D] from its own candidates [Q, k, D], float64."""
    one, others = queries[:, None].astype(np.float64), found.astype(np.float64)
    if metric == "euclidean":
        squares: NDArray[np.float64] = np.square(one - others).sum(axis=2)
        return np.sqrt(squares)
    lengths = np.linalg.norm(one, axis=2) * np.linalg.norm(others, axis=2)
    cosines: NDArray[np.float64] = (one * others).sum(axis=2) / np.where(lengths == 0, 1, lengths)
    return np.maximum(1 - cosines, 0)


def _merge(
    distances: NDArray[np.float64], rows: NDArray[np.int64], more: NDArray[np.float64], more_rows: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    distances, rows = np.concatenate([distances, more], axis=1), np.concatenate([rows, more_rows], axis=1)
    # By distance, then by row.
    order = np.lexsort((rows, distances), axis=1)[:, : distances.shape[1] - more.shape[1]]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)


def index_path(features: Path) -> Path:
    return features.with_name(features.name + ".faiss")


def search_index(
    features: Path, queries: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`nearest` by the index beside `features`, which is made where it is missing, stale or of the other metric.

    A graph of neighbours (HNSW) of the rows in FP16: a search looks at a small part of them. Its distances have FP16's
    three digits, and it may miss a neighbour. Raises OutputError if the index cannot be written.
    """
    import faiss

    made_from = {"features": remembered_sha256(features), "metric": metric}
    path = index_path(features)
    record = path.with_name(path.name + ".json")
    index: Any = None
    # A damaged index is made again, as a stale one; FAISS has no exceptions of its own.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        if msgspec.json.decode(read_regular(record, MAX_TEXT_BYTES)) == made_from:
            index = faiss.read_index(str(path))
    if index is None:
        index = _make_index(read_blocks(features), queries.shape[1], metric)
        remove_file(record)
        with atomic_write(path) as file:
            file.write(faiss.serialize_index(index).data)
        with atomic_write(record) as file:
            file.write(msgspec.json.encode(made_from))
    faiss.downcast_index(index.index).hnsw.efSearch = max(_TRIED, 4 * k)
    found, rows = index.search(prepared(queries, metric), k)
    distances = np.sqrt(np.maximum(found, 0.0)) if metric == "euclidean" else np.maximum(1.0 - found, 0.0)
    return np.where(rows < 0, np.inf, distances.astype(np.float64)), rows


def _make_index(blocks: Iterator[NDArray[np.float32]], size: int, metric: Metric) -> Any:
    import faiss

    kind = faiss.METRIC_L2 if metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
    graph = faiss.IndexHNSWSQ(size, faiss.ScalarQuantizer.QT_fp16, _LINKS, kind)
    index = faiss.IndexIDMap(graph)
    start = 0
    for block in blocks:
        there = np.flatnonzero(~np.isnan(block[:, 0]))
        values = prepared(np.ascontiguousarray(block[there]), metric)
        index.add_with_ids(values, start + there)
        start += len(block)
    return index
