"""Files of features: Parquet, or an array in .npy with its rows in .npy.jsonl beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import atomic_write, remove_file
from alexdeploy.core.reading import open_regular
from alexdeploy.inference.feature_row import FeatureRow
from alexdeploy.inference.writers import check_format

FeatureFormat = Literal["parquet", "npy"]

METADATA_KEY = b"alexdeploy.features"
"""The key of a Parquet file's metadata: JSON with what all rows have in common, and the artifact's full hash."""

_FORMATS: dict[str, FeatureFormat] = {".parquet": "parquet", ".pq": "parquet", ".npy": "npy"}

_MOST_ROWS = 2_000
_GROUP_BYTES = 32 << 20
"""A row group of a Parquet file is held in memory, when it is written and when it is read: at most so much of it."""


def feature_format(path: Path) -> FeatureFormat:
    """The format for the suffix of `path`. Raises UsageError for another, or if a package for it is missing."""
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path} is no file of features: expected .parquet or .npy", hint="Name it features.parquet")
    if kind == "parquet":
        check_format("parquet")
    return kind


def rows_path(path: Path) -> Path:
    """The rows of an .npy file: JSON lines."""
    return path.with_name(path.name + ".jsonl")


def write_features(rows: Iterable[FeatureRow], path: Path, num_rows: int, size: int, facts: dict[str, Any]) -> None:
    """Write `num_rows` rows of `size` features, one row group in memory at a time. Raises OutputError.

    `facts` is what all rows have in common. An image without features is a row of NaN.
    """
    if feature_format(path) == "parquet":
        with atomic_write(path) as file:
            _write_parquet(rows, file, size, facts)
        return
    # Without its rows, an array is refused: a kill in between leaves no array with the rows of another.
    remove_file(rows_path(path))
    missing = np.full(size, np.nan, "<f4").tobytes()
    with atomic_write(rows_path(path)) as lines, atomic_write(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, size)}
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            file.write(missing if row.features is None else row.features.astype("<f4", copy=False).tobytes())
            lines.write(msgspec.json.encode(row.origin()) + b"\n")


def read_rows(path: Path) -> Iterator[FeatureRow]:
    """The rows of a finished file without their features. Raises UsageError if it is no file of features."""
    try:
        yield from _parquet_rows(path) if feature_format(path) == "parquet" else _npy_rows(path)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise _unreadable(path, exc) from exc


def read_blocks(path: Path) -> Iterator[NDArray[np.float32]]:
    """The features of a finished file in order, float32 [n, D] with bounded n; rows without any are NaN.

    Raises UsageError if it is no file of features.
    """
    try:
        if feature_format(path) == "npy":
            array = _mapped(path)
            if array.dtype != np.float32 or array.ndim != 2:
                raise ValueError(f"it is {array.dtype} {list(array.shape)}, expected float32 [N, D]")
            step = group_rows(array.shape[1])
            for start in range(0, len(array), step):
                yield np.asarray(array[start : start + step])
            return
        yield from _parquet_blocks(path)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise _unreadable(path, exc) from exc


def group_rows(size: int) -> int:
    """Rows of `size` features that are held in memory at once."""
    return max(1, min(_MOST_ROWS, _GROUP_BYTES // (4 * size)))


def _write_parquet(rows: Iterable[FeatureRow], file: IO[bytes], size: int, facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"index": pa.int64(), "num_views": pa.int32(), "shape": pa.list_(pa.int32())}
    names = ("index", "source", "layer", "shape", "num_views", "model", "backend", "precision", "artifact", "error")
    schema = pa.schema(
        [("features", pa.list_(pa.float32(), size)), *((name, kinds.get(name, pa.string())) for name in names)],
        metadata={METADATA_KEY: msgspec.json.encode(facts)},
    )
    # Features hardly repeat: a dictionary of them would only take time.
    repeated = [name for name in names if name not in ("index", "source")]
    iterator = iter(rows)
    options = {"compression": "zstd", "use_dictionary": repeated, "write_page_checksum": True}
    with pq.ParquetWriter(file, schema, **options) as writer:
        while group := list(itertools.islice(iterator, group_rows(size))):
            origins = pa.Table.from_pylist([row.origin() for row in group], pa.schema(list(schema)[1:]))
            columns = [_feature_column(group, size), *origins.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _feature_column(group: Sequence[FeatureRow], size: int) -> Any:
    import pyarrow as pa

    # Not null: pyarrow before 26 cannot read lists of a fixed size of which some are.
    values = np.full((len(group), size), np.nan, np.float32)
    for number, row in enumerate(group):
        if row.features is not None:
            values[number] = row.features
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=pa.list_(pa.float32(), size))


def _parquet_rows(path: Path) -> Iterator[FeatureRow]:
    import pyarrow.parquet as pq

    with open_regular(path) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        columns = [name for name in parquet.schema_arrow.names if name != "features"]
        for batch in parquet.iter_batches(batch_size=_MOST_ROWS, columns=columns):
            for fields in batch.to_pylist():
                yield FeatureRow(**{**fields, "shape": tuple(fields["shape"])})


def _parquet_blocks(path: Path) -> Iterator[NDArray[np.float32]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(path) as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        kind = parquet.schema_arrow.field("features").type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
            raise ValueError(f"its features are {kind}, expected lists of a fixed size of float")
        size = kind.list_size
        for batch in parquet.iter_batches(batch_size=group_rows(size), columns=["features"]):
            column = batch.column(0)
            block = np.full((len(column), size), np.nan, np.float32)
            is_there = column.is_valid().to_numpy(zero_copy_only=False)
            block[is_there] = column.flatten().to_numpy().reshape(-1, size)
            yield block


def _mapped(path: Path) -> NDArray[np.generic]:
    """The array of an .npy file, not read yet. Raises OSError or ValueError."""
    try:
        array: NDArray[np.generic] = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    # NumPy raises any exception of its header parsers: ValueError, OverflowError, TokenError ...
    except Exception as exc:
        raise ValueError(str(exc)) from exc
    return array


def _npy_rows(path: Path) -> Iterator[FeatureRow]:
    try:
        file = open_regular(rows_path(path))
    except FileNotFoundError:
        raise UsageError(
            f"{path} has no {rows_path(path).name} beside it, which says what its rows are",
            hint="Copy both, or make them again: alexdeploy embed --overwrite",
        ) from None
    count = 0
    with file:
        num_rows, size = _mapped(path).shape
        for count, line in enumerate(file, start=1):
            row = FeatureRow.from_json(line)
            if count == 1 and math.prod(row.shape) != size:
                raise ValueError(f"its rows are {size} numbers, according to {rows_path(path).name} {row.shape}")
            yield row
    if count != num_rows:
        raise ValueError(f"it has {num_rows:,} rows, and {rows_path(path).name} {count:,}")


def _unreadable(path: Path, exc: Exception) -> UsageError:
    return UsageError(
        f"{path} is no finished file of features: {exc}",
        hint="Make one: alexdeploy embed IMAGES -o features.parquet",
    )
