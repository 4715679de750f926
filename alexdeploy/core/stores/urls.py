"""URLs of objects in stores: which are allowed, their parts, and how they are shown without credentials."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from alexdeploy.core.errors import UsageError

# A single letter is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# Path("s3://bucket/x") is this.
_COLLAPSED = re.compile(r"(s3|gs|gcs|az|abfss?|https?):/(?!/)")
_USER = re.compile(r"(?<=://)[^/@]*:[^/@]*@")
_QUERY = re.compile(r"(https?://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")
_SIGNED = re.compile(r"\?([^?]*&)?(sig|signature|token|x-[a-z]+-signature)=.*", re.IGNORECASE | re.DOTALL)
_SAFE = "/%:@!$&'()*+,;=~-._"


class Scheme(NamedTuple):
    """A kind of store: fsspec's name of it, the package that reads it, and the extra that installs the package.

    Without a package it is HTTP, which needs none.
    """

    protocol: str
    package: str | None = None
    extra: str = ""


SCHEMES = {
    "s3": Scheme("s3", "s3fs", "s3"),
    "gs": Scheme("gs", "gcsfs", "gcs"),
    "gcs": Scheme("gs", "gcsfs", "gcs"),
    "az": Scheme("az", "adlfs", "azure"),
    "abfs": Scheme("abfs", "adlfs", "azure"),
    "abfss": Scheme("abfss", "adlfs", "azure"),
    "http": Scheme("http"),
    "https": Scheme("https"),
}
"""The schemes that are read. file:// is a local path, see `local_path`."""


def is_url(text: str) -> bool:
    """Whether an input is a URL of any scheme except file://."""
    found = _URL.match(text)
    return found is not None and found[1].lower() != "file"


def local_path(text: str) -> str:
    """The path that a file:// URL of this machine names; any other text unchanged."""
    if not text.lower().startswith("file://"):
        return text
    # It imports all of HTTP.
    from urllib.request import url2pathname

    host, slash, path = text[7:].partition("/")
    return url2pathname(slash + path) if host in ("", "localhost") else text


def as_path(name: str | os.PathLike[str]) -> Path | str:
    """A path; of a URL its text, since a Path would lose a slash."""
    text = os.fspath(name)
    return text if is_url(text) else Path(text)


def scheme_of(url: str) -> Scheme:
    """The scheme of a URL. Raises UsageError for one that is not read, and for a URL that names nothing."""
    found = _URL.match(url)
    name = found[1].lower() if found else ""
    if name not in SCHEMES:
        raise UsageError(
            f"{printable_url(url)}: {name}:// is not read here", hint=f"Known are {', '.join(SCHEMES)} and file."
        )
    scheme = SCHEMES[name]
    place = url.split("://", 1)[1].partition("/")[0]
    if not place.rpartition("@")[2] or (scheme.package is not None and ":" in place.partition("@")[0]):
        what = "a host" if scheme.package is None else "a bucket, without credentials"
        raise UsageError(f"{printable_url(url)}: expected {name}:// and the name of {what}")
    return scheme


def is_http(url: str) -> bool:
    return url[:7].lower() == "http://" or url[:8].lower() == "https://"


def printable_url(url: str) -> str:
    """The URL as it may be written: without a password, and without a query, which may be a signature.

    Of an HTTP URL with a query "?..." is left. Text that is not a URL is returned unchanged.
    """
    if not is_url(url):
        return url
    shown = _USER.sub("", url)
    if is_http(shown):
        start = re.split(r"[?#]", shown, maxsplit=1)[0]
        # A user without a password may be a token.
        start = re.sub(r"(?<=://)[^/]*@", "", start)
        return start if start == shown else f"{start}?..."[: len(start) + 4 * ("?" in shown)]
    return _SIGNED.sub("", shown)


def scrubbed(text: str) -> str:
    """An error message of a library without the credentials of URLs in it."""
    return _SIGNED.sub("", _QUERY.sub(r"\1", _USER.sub("", text)))


def path_of(url: str) -> str:
    """The path in a URL, without bucket or host; decoded if it is of HTTP. Suffixes are those of this path."""
    if is_http(url):
        return unquote(urlsplit(url).path).lstrip("/")
    return url.split("://", 1)[1].partition("/")[2]


def bucket_url(url: str) -> str:
    """The URL up to its bucket or host, without a slash."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def join_url(folder: str, name: str) -> str:
    """The URL of the file `name` below `folder`. Raises ValueError for a name that is not below it."""
    normal = posixpath.normpath(name.replace(os.sep, "/"))
    if normal.startswith(("/", "../")) or normal in ("", ".", ".."):
        raise ValueError(f"{name!r} is not below the folder")
    return folder.rstrip("/") + "/" + (quote(normal, safe="/", errors="surrogateescape") if is_http(folder) else normal)


def folder_of(url: str) -> str:
    """The URL of the folder that a file is in; without the query of HTTP."""
    if is_http(url):
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc, posixpath.dirname(parts.path), "", ""))
    return url.rpartition("/")[0]


def requested(url: str) -> str:
    """An HTTP URL with everything escaped that a request line must not contain, without its fragment and user."""
    parts = urlsplit(url)
    host = (parts.hostname or "").encode("idna").decode("ascii")
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port else ""
    query = quote(parts.query, safe=_SAFE + "?", errors="surrogateescape")
    path = quote(parts.path or "/", safe=_SAFE, errors="surrogateescape")
    return urlunsplit((parts.scheme.lower(), host + port, path, query, ""))


def check_not_collapsed(path: str) -> None:
    """Raise UsageError for a path that was a URL before pathlib removed one of its slashes."""
    if _COLLAPSED.match(path) and not os.path.lexists(path):
        raise UsageError(f"{path} is a path made of a URL", hint="Pass URLs as text, not as a Path.")
