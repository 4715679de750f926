"""fsspec, which reads buckets. The only module that imports it.

Each scheme needs a package of its own that fsspec loads: s3fs, gcsfs or adlfs. Credentials are found by that package
as by the store's own tools: environment, configuration files, the identity of the machine.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from alexdeploy.core.packages import missing_package
from alexdeploy.core.reading import TooLargeError, UnsuitableFileError
from alexdeploy.core.stores.retrying import Deadline, PassingError
from alexdeploy.core.stores.urls import Scheme, scheme_of, scrubbed

_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 30
_PAGE_SIZE = 1000

# Retries are this package's, so that all of them together take a bounded time. One request for an object, not several.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3fs": {
        "use_listings_cache": False,
        "max_concurrency": 1,
        "config_kwargs": {
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _SILENCE_SECONDS,
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": 128,
        },
    },
    "gcsfs": {"use_listings_cache": False},
    "adlfs": {"use_listings_cache": False},
}


class Entry(NamedTuple):
    """An object or folder: its URL (of a folder with a slash at its end), and the size of an object."""

    url: str
    num_bytes: int
    tag: str = ""

    @property
    def is_folder(self) -> bool:
        return self.url.endswith("/")


class Page(NamedTuple):
    """A part of a listing; `token` continues it, None at the end."""

    entries: list[Entry]
    token: str | None


_lock = threading.Lock()
_opened: dict[tuple[int, str, str], BucketStore] = {}


def check_installed(url: str) -> None:
    """Raise UsageError if the package for the scheme of `url` is missing."""
    scheme = scheme_of(url)
    name = url.partition("://")[0].lower()
    for package in ("fsspec", scheme.package):
        if package is not None and importlib.util.find_spec(package) is None:
            raise missing_package(scheme.package or package, f"{name}://", scheme.extra)


def bucket_store(url: str) -> BucketStore:
    """The store of a URL, one for each process. Raises UsageError if a package is missing."""
    check_installed(url)
    scheme = scheme_of(url)
    name = url.partition("://")[0]
    with _lock:
        # An account may be in the place of the bucket: container@account.
        account = url.split("://", 1)[1].partition("/")[0].partition("@")[2]
        key = (os.getpid(), name, account)
        if key not in _opened:
            _opened[key] = BucketStore(name, scheme, url)
        return _opened[key]


class BucketStore:
    """A file system of fsspec, with its errors as PassingError and OSError whose `strerror` has no credentials."""

    def __init__(self, name: str, scheme: Scheme, url: str) -> None:
        import fsspec

        self._scheme, self._package = name, scheme.package or ""
        logger = logging.getLogger(self._package)
        if logger.level == logging.NOTSET:
            # gcsfs warns, without credentials for it, that it cannot ask what kind of bucket it is, and prints the
            # tracebacks of errors that it raises.
            logger.setLevel(logging.CRITICAL)
        options = _OPTIONS.get(self._package, {})
        with _translated():
            kind = fsspec.get_filesystem_class(scheme.protocol)
            # Of the URL only what it says of the account.
            self._fs = kind(**{**kind._get_kwargs_from_urls(url), **options}, skip_instance_cache=True)
        if hasattr(self._fs, "retries"):
            self._fs.retries = 1

    def read(self, url: str, max_bytes: int, deadline: Deadline) -> bytes:
        """The object. Raises PassingError, and OSError with the reason in `strerror`: also for more than `max_bytes`.

        Asks for the size first; `read_sized` does not.
        """
        size = self.size(url, deadline)
        if size > max_bytes:
            raise TooLargeError(size, max_bytes)
        return self.read_sized(url, size, deadline)

    def read_sized(self, url: str, num_bytes: int, deadline: Deadline) -> bytes:
        """The object, of which a listing said that it has `num_bytes`."""
        data = self._call("cat_file", self._path(url), deadline=deadline)
        if len(data) != num_bytes and len(data) != self.size(url, deadline):
            raise PassingError(f"{len(data):,} bytes came of an object of {num_bytes:,}")
        return bytes(data)

    def read_range(self, url: str, start: int, end: int, deadline: Deadline) -> bytes:
        """The bytes from `start` to before `end`, which are in the object. Raises OSError as `read`."""
        data = self._call("cat_file", self._path(url), start=start, end=end, deadline=deadline)
        if len(data) != end - start:
            raise PassingError(f"{len(data):,} bytes came of {end - start:,}")
        return bytes(data)

    def size(self, url: str, deadline: Deadline) -> int:
        """The size of the object. Raises OSError as `read`."""
        info = self._call("info", self._path(url), deadline=deadline)
        if info.get("type") == "directory":
            raise FileNotFoundError(None, "is a folder")
        return int(info["size"])

    @property
    def lists_below(self) -> bool:
        """Whether `page` lists everything below a prefix, in pages; else one folder, in one."""
        return self._package in ("s3fs", "gcsfs")

    def page(self, url: str, token: str | None, deadline: Deadline, *, below: bool) -> Page:
        """A part of what is below the folder `url`, in the order of the bytes of whole names.

        With `below`, all objects; else only what is directly in it, objects and folders. Raises OSError as `read`.
        """
        path = self._path(url).strip("/")
        if self.lists_below:
            bucket, _, prefix = path.partition("/")
            list_page = self._page_of_s3 if self._package == "s3fs" else self._page_of_gs
            return list_page(bucket, f"{prefix}/" if prefix else "", token, deadline, below=below)
        try:
            found = self._call("ls", path, detail=True, deadline=deadline)
        except FileNotFoundError:
            # Where the bucket is there, nothing is below this prefix.
            bucket, _, prefix = path.partition("/")
            if prefix:
                self._call("ls", bucket, detail=True, deadline=deadline)
                return Page([], None)
            raise
        entries = [
            Entry(self._url(each["name"]) + "/" * (each["type"] == "directory"), int(each["size"] or 0), _tag(each))
            # Some list the folder itself, as an empty object.
            for each in found
            if each["name"].strip("/") != path.strip("/")
        ]
        return Page(sorted(entries, key=lambda entry: os.fsencode(entry.url)), None)

    def exists(self, url: str, deadline: Deadline) -> bool:
        """Whether there is such an object."""
        try:
            self.size(url, deadline)
        except FileNotFoundError:
            return False
        return True

    def write(self, url: str, file: BinaryIO) -> None:
        """Write an object, which appears as a whole or not at all. Raises OSError as `read`."""
        with _translated():
            target = self._fs.open(self._path(url), "wb")
            try:
                while chunk := file.read(1 << 22):
                    target.write(chunk)
            except BaseException:
                # Closing would publish the part that was written, and so would the end of its life.
                target.discard()
                target.closed = True
                raise
            target.close()

    def _page_of_s3(self, bucket: str, prefix: str, token: str | None, deadline: Deadline, *, below: bool) -> Page:
        more = {} if token is None else {"ContinuationToken": token}
        more |= {} if below else {"Delimiter": "/"}
        arguments = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": _PAGE_SIZE, **more}
        found = self._call("call_s3", "list_objects_v2", deadline=deadline, **arguments)
        objects = [(each["Key"], each["Size"], each.get("ETag", "")) for each in found.get("Contents", ())]
        folders = [each["Prefix"] for each in found.get("CommonPrefixes", ())]
        return Page(self._entries(bucket, objects, folders), found.get("NextContinuationToken"))

    def _page_of_gs(self, bucket: str, prefix: str, token: str | None, deadline: Deadline, *, below: bool) -> Page:
        delimiter = None if below else "/"
        arguments = {"prefix": prefix, "delimiter": delimiter, "pageToken": token, "maxResults": _PAGE_SIZE}
        found = self._call("call", "GET", "b/{}/o", bucket, json_out=True, deadline=deadline, **arguments)
        objects = [(each["name"], each["size"], _tag(each)) for each in found.get("items", ())]
        return Page(self._entries(bucket, objects, found.get("prefixes", ())), found.get("nextPageToken"))

    def _entries(
        self, bucket: str, objects: Iterable[tuple[str, int | str, str]], folders: Iterable[str]
    ) -> list[Entry]:
        base = f"{self._scheme}://{bucket}/"
        # Consoles make an empty object for a folder.
        entries = [Entry(base + name, int(size), str(tag)) for name, size, tag in objects if not name.endswith("/")]
        entries += [Entry(base + folder, 0) for folder in folders]
        return sorted(entries, key=lambda entry: os.fsencode(entry.url))

    def _call(self, name: str, *arguments: Any, deadline: Deadline, **keywords: Any) -> Any:
        deadline.check()
        with _translated():
            coroutine = getattr(self._fs, f"_{name}", None) if getattr(self._fs, "async_impl", False) else None
            if coroutine is None:
                return getattr(self._fs, name)(*arguments, **keywords)
            from fsspec.asyn import sync

            return sync(self._fs.loop, coroutine, *arguments, timeout=max(deadline.seconds_left, 0.1), **keywords)

    def _path(self, url: str) -> str:
        return str(self._fs._strip_protocol(url))

    def _url(self, path: str) -> str:
        return f"{self._scheme}://{path.strip('/')}"


def _tag(info: dict[str, Any]) -> str:
    """What changes with the content, if the store says it: S3 and Azure an ETag, Google also a hash."""
    found = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "last_modified", "LastModified"))
    return next((str(value) for value in found if value), "")


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the exceptions of all these packages into OSErrors."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
        raise FileNotFoundError(None, "not found") from exc
    except PermissionError as exc:
        raise PermissionError(None, "permission denied") from exc
    except (UnsuitableFileError, PassingError):
        raise
    except (TimeoutError, MemoryError) as exc:
        if isinstance(exc, MemoryError):
            raise
        raise PassingError("no answer in time") from exc
    except Exception as exc:
        name = type(exc).__name__
        if "Credential" in name or "Auth" in name:
            raise UnsuitableFileError(None, f"no valid credentials for the store ({name})") from exc
        # Of the packages: an account that is not known, an endpoint that is no URL.
        if isinstance(exc, (ImportError, NotImplementedError, TypeError, ValueError)):
            raise UnsuitableFileError(None, f"the store cannot be used: {_reason(exc)}") from exc
        raise PassingError(f"the store failed: {_reason(exc)}") from exc


def _reason(exc: Exception) -> str:
    lines = scrubbed(str(exc)).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0][:200]}" if lines else type(exc).__name__
