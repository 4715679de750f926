"""Objects in stores by their URLs: read, listed and written, with retries and limits.

All functions are thread-safe and block. Errors are OSErrors whose `strerror` has the reason, without the URL.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from alexdeploy.core.reading import TooLargeError, UnsuitableFileError
from alexdeploy.core.stores.library import BucketStore, Entry, bucket_store, check_installed
from alexdeploy.core.stores.retrying import Deadline, PassingError, RetryPolicy
from alexdeploy.core.stores.urls import is_http, scheme_of

if TYPE_CHECKING:
    from alexdeploy.core.stores.http import HttpStore

POLICY = RetryPolicy()
"""For reading and listing."""

_T = TypeVar("_T")


def check_url(url: str) -> None:
    """Raise UsageError for a URL that cannot be read: its scheme, or a package that is missing."""
    if scheme_of(url).package is not None:
        check_installed(url)


def read_object(url: str, max_bytes: int, num_bytes: int | None = None) -> bytes:
    """The object, of which a listing said that it has `num_bytes`; None if its size is not known.

    Raises OSError for one with more than `max_bytes`.
    """
    if num_bytes is not None and num_bytes > max_bytes:
        raise TooLargeError(num_bytes, max_bytes)
    store = _store(url)
    if num_bytes is not None and isinstance(store, BucketStore):
        return _retried(lambda deadline: store.read_sized(url, num_bytes, deadline))
    return _retried(lambda deadline: store.read(url, max_bytes, deadline))


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end`."""
    store = _store(url)
    return _retried(lambda deadline: store.read_range(url, start, end, deadline))


def object_size(url: str) -> int:
    """The size of the object in bytes; of HTTP only from a server that gives parts of files."""
    store = _store(url)
    return _retried(lambda deadline: store.size(url, deadline))


def list_objects(url: str) -> Iterator[Entry]:
    """All objects below the folder `url`, in the order of the bytes of their whole names, as they are listed.

    In memory is one page of S3; of the others one folder for each level.
    """
    store = _bucket(url)
    if store.lists_below:
        yield from _pages(store, url, below=True)
        return
    # A stack instead of recursion: there is no limit for the depth of names.
    pending = [_pages(store, url, below=False)]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif entry.is_folder:
            pending.append(_pages(store, entry.url, below=False))
        else:
            yield entry


def list_folder(url: str) -> Iterator[Entry]:
    """The objects and folders directly in the folder `url`, as they are listed."""
    return _pages(_bucket(url), url, below=False)


def has_object(url: str) -> bool:
    """Whether there is an object with exactly this name."""
    store = _bucket(url)
    return _retried(lambda deadline: store.exists(url, deadline))


def write_object(url: str, path: Path) -> None:
    """Write the content of a file to an object, which appears as a whole or not at all."""
    store = _bucket(url)

    def write(_: Deadline) -> None:
        # A large file takes as long as it takes.
        with path.open("rb") as file:
            store.write(url, file)
        size, written = path.stat().st_size, store.size(url, Deadline(POLICY.total_seconds))
        if size != written:
            raise PassingError(f"the store has {written:,} bytes of {size:,}")

    _retried(write)


def _pages(store: BucketStore, url: str, *, below: bool) -> Iterator[Entry]:
    token: str | None = None
    while True:
        page = _retried(functools.partial(store.page, url, token, below=below))
        yield from page.entries
        token = page.token
        if token is None:
            return


_lock = threading.Lock()
_web: dict[int, HttpStore] = {}
"""The one of this process: a fork cannot share its connections."""


def _http() -> HttpStore:
    # TLS takes a while to import, and most inputs are local.
    from alexdeploy.core.stores.http import HttpStore

    with _lock:
        process = os.getpid()
        if process not in _web:
            _web[process] = HttpStore()
            atexit.register(_web[process].close)
        return _web[process]


def _store(url: str) -> HttpStore | BucketStore:
    scheme_of(url)
    return _http() if is_http(url) else _bucket(url)


def _bucket(url: str) -> BucketStore:
    if is_http(url):
        raise UnsuitableFileError(None, "HTTP has no folders")
    return bucket_store(url)


def _retried(call: Callable[[Deadline], _T]) -> _T:
    try:
        return POLICY.run(call)
    except PassingError as exc:
        raise UnsuitableFileError(None, f"{exc.strerror}, also when asked again") from exc
