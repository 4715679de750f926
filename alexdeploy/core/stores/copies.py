"""Local copies of model folders and packed sets in stores, by a hash of what the store lists, in the user's cache."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from alexdeploy.core.cache import cache_folder
from alexdeploy.core.errors import DataError, ModelError, OutputError, UsageError
from alexdeploy.core.files import sha256_bytes, sync_folder
from alexdeploy.core.stores.library import Entry
from alexdeploy.core.stores.objects import check_url, has_object, list_folder, read_range
from alexdeploy.core.stores.reader_pool import ReaderPool
from alexdeploy.core.stores.urls import is_http, path_of, printable_url

MODEL_FILES = re.compile(r"(spec|backends)\.json|mean\.npy|weights\.safetensors|model(\.[a-z0-9]+)?\.onnx(\.sha256)?")
_PACKED_FILES = re.compile(
    r"(plan|index|broken)\.json|pixel-sums\.npy|(train|val)-(\d{5,}\.bin|labels\.npy|names\.json)"
)
_PLAN_NAME = "plan.json"
_PART_BYTES = 8 << 20
_NUM_READERS = 8
_KEPT_SECONDS = 7 * 24 * 3600
"""How long a copy is kept after its last use, once there is another version of it."""


def copy_model(url: str) -> Path:
    """A local copy of the model folder `url`: spec, weights, mean and graphs, but no engines and no checkpoints.

    Raises UsageError if there is no model, ModelError if it cannot be read.
    """
    found = _listed(url, MODEL_FILES, ModelError)
    if not any(entry.url.endswith("/spec.json") for entry in found):
        raise UsageError(f"no model at {printable_url(url)}", hint="Give the folder that has its spec.json.")
    return _copied(url, found, ModelError)


def copy_packed(url: str) -> Path | None:
    """A local copy of the packed set `url`; None if it is not one. Raises DataError if it cannot be read."""
    check_url(url)
    folder = url.rstrip("/")
    try:
        if is_http(url) or not has_object(f"{folder}/{_PLAN_NAME}"):
            return None
    except OSError as exc:
        raise DataError(f"{printable_url(url)} cannot be read: {_reason(exc)}") from exc
    return _copied(url, _listed(url, _PACKED_FILES, DataError), DataError)


def _listed(url: str, wanted: re.Pattern[str], kind: type[ModelError | DataError]) -> list[Entry]:
    """The files directly in the folder `url` with names that are expected there: no name leads out of the copy."""
    check_url(url)
    if is_http(url):
        raise UsageError(f"{printable_url(url)}: web servers cannot list folders", hint="Copy the folder from there.")
    try:
        entries = list(list_folder(url))
    except OSError as exc:
        raise kind(f"{printable_url(url)} cannot be listed: {_reason(exc)}") from exc
    return [entry for entry in entries if wanted.fullmatch(entry.url.rpartition("/")[2])]


def _copied(url: str, entries: Sequence[Entry], kind: type[ModelError | DataError]) -> Path:
    name = _folder_name(url)
    versions = cache_folder(f"stores/{sha256_bytes(url.rstrip('/').encode('utf-8', 'surrogateescape'))[:16]}")
    if versions is None:
        raise OutputError(
            f"there is no cache folder for a copy of {printable_url(url)}", hint="Name one: ALEXDEPLOY_CACHE=FOLDER"
        )
    listing = "".join(f"{entry.url}\0{entry.num_bytes}\0{entry.tag}\n" for entry in entries)
    version = versions / sha256_bytes(listing.encode("utf-8", "surrogateescape"))[:16]
    # Without a tag, the store does not say whether an object has changed.
    if version.is_dir() and all(entry.tag for entry in entries):
        with suppress(OSError):
            os.utime(version)
        return version / name
    free, needed = shutil.disk_usage(versions).free, sum(entry.num_bytes for entry in entries)
    if needed > free:
        raise OutputError(
            f"a copy of {printable_url(url)} takes {needed / 1e9:,.1f} GB; {free / 1e9:,.1f} GB of {versions} are free",
            hint="Free disk space, or use another disk: ALEXDEPLOY_CACHE=FOLDER",
        )
    try:
        with whole_folder(version) as temporary:
            target = temporary / name
            target.mkdir()
            for entry in entries:
                _copy(entry, target / entry.url.rpartition("/")[2])
            sync_folder(target)
            if version.is_dir():
                shutil.rmtree(version)
    except OSError as exc:
        raise kind(f"{printable_url(url)} cannot be copied: {_reason(exc)}") from exc
    remove_unused(versions, version)
    return version / name


def _copy(entry: Entry, path: Path) -> None:
    """Copy an object, several parts of it at a time. Raises OSError."""
    pool = ReaderPool(_NUM_READERS)
    starts = range(0, entry.num_bytes, _PART_BYTES)
    try:
        with path.open("wb") as file:
            for first in range(0, len(starts), _NUM_READERS):
                calls = [
                    partial(read_range, entry.url, start, min(start + _PART_BYTES, entry.num_bytes))
                    for start in starts[first : first + _NUM_READERS]
                ]
                for future in [pool.submit(call) for call in calls]:
                    file.write(future.result())
            file.flush()
            os.fsync(file.fileno())
    finally:
        pool.close()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which becomes it if the block succeeds. Raises OSError.

    Where another process was faster, its folder stays: under one name, all of them write the same.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".copy-"))
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unused(versions: Path, current: Path) -> None:
    """Remove the copies in the folder `versions` that were not used for a week, except `current`."""
    for path in versions.iterdir():
        with suppress(OSError):
            if path != current and time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(path)


def _folder_name(url: str) -> str:
    """The last name of a URL, as a folder of any system; ranges are named after it."""
    last = (path_of(url).rstrip("/") or url.rstrip("/")).rpartition("/")[2]
    return re.sub(r"[^\w.+-]", "_", last).lstrip(".") or "copy"


def _reason(exc: OSError) -> str:
    return "not found" if isinstance(exc, FileNotFoundError) else exc.strerror or type(exc).__name__
