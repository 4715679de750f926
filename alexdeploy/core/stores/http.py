"""Files of web servers by HTTP, over the standard library: limits of bytes and time, and no way to other schemes."""

from __future__ import annotations

import base64
import http.client
import re
import ssl
import threading
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from alexdeploy.core.reading import TooLargeError, UnsuitableFileError
from alexdeploy.core.stores.retrying import Deadline, PassingError
from alexdeploy.core.stores.urls import requested
from alexdeploy.core.version import __version__

_CONNECT_SECONDS = 10.0
_SILENCE_SECONDS = 30.0
"""Longest time without a byte."""

_MOST_REDIRECTS = 5
_MOST_IDLE = 64
"""Idle connections that are kept for one host."""

_CHUNK_BYTES = 1 << 18
_MOST_REDIRECT_BYTES = 1 << 20
"""Of the page that tells people of a redirect; it is read so that the connection can be used again."""

_MOST_WAIT_SECONDS = 60.0
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})\b")
"""What http.client says where a proxy refuses a connection to an HTTPS server."""

_BROKEN = (OSError, http.client.HTTPException)
_NAMED = (UnsuitableFileError, PassingError, FileNotFoundError, PermissionError)


class _Address(NamedTuple):
    scheme: str
    host: str
    port: int | None
    proxy: str | None


class HttpStore:
    """Reads by GET, over connections that are kept open. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: defaultdict[_Address, list[http.client.HTTPConnection]] = defaultdict(list)
        # To find it, the whole environment is read: as much work as all else of a request.
        self._proxy_of = cache(_proxy_of)

    def read(self, url: str, max_bytes: int, deadline: Deadline) -> bytes:
        """The body. Raises PassingError, and OSError with the reason in `strerror`: also for more than `max_bytes`."""
        return self._get(url, {}, max_bytes, deadline)[1]

    def read_range(self, url: str, start: int, end: int, deadline: Deadline) -> bytes:
        """The bytes from `start` to before `end`. Raises OSError as `read`, and if the server does not give parts."""
        headers, body = self._get(url, {"Range": f"bytes={start}-{end - 1}"}, end - start, deadline)
        if not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _no_parts()
        return body

    def size(self, url: str, deadline: Deadline) -> int:
        """The number of bytes, from the first of them. Raises OSError as `read_range`."""
        headers, _ = self._get(url, {"Range": "bytes=0-0"}, 1, deadline)
        total = headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdecimal():
            raise _no_parts()
        return int(total)

    def close(self) -> None:
        """Close the connections that are idle."""
        with self._lock:
            connections = [each for idle in self._idle.values() for each in idle]
            self._idle.clear()
        for connection in connections:
            connection.close()

    def _get(
        self, url: str, extra: Mapping[str, str], max_bytes: int, deadline: Deadline
    ) -> tuple[http.client.HTTPMessage, bytes]:
        origin = urlsplit(url)
        user = None
        if origin.username is not None:
            pair = f"{unquote(origin.username)}:{unquote(origin.password or '')}"
            user = "Basic " + base64.b64encode(pair.encode()).decode()
        try:
            asked = requested(url)
        except ValueError as exc:
            raise UnsuitableFileError(None, "is not a valid URL") from exc
        first = urlsplit(asked)
        for _ in range(_MOST_REDIRECTS + 1):
            now = urlsplit(asked)
            headers = {"User-Agent": f"alexdeploy/{__version__}", "Accept-Encoding": "identity", **extra}
            # A password is for the server that it was given for.
            if user is not None and (now.scheme, now.netloc) == (first.scheme, first.netloc):
                headers["Authorization"] = user
            response, body = self._once(asked, headers, max_bytes, deadline)
            if response.status not in _REDIRECTS:
                return response.headers, body
            asked = _redirected(asked, response.headers.get("Location"))
        raise UnsuitableFileError(None, f"the server redirects more than {_MOST_REDIRECTS} times")

    def _once(
        self, url: str, headers: Mapping[str, str], max_bytes: int, deadline: Deadline
    ) -> tuple[http.client.HTTPResponse, bytes]:
        parts = urlsplit(url)
        host = parts.hostname or ""
        address = _Address(parts.scheme, host, parts.port, self._proxy_of(parts.scheme, host))
        deadline.check()
        while True:
            connection, is_fresh = self._connection(address)
            try:
                response = _asked(connection, address, url, headers, deadline)
                break
            except _BROKEN as exc:
                connection.close()
                # The server may have closed a connection that was idle.
                if is_fresh:
                    raise _passing(exc) from exc
        try:
            body = _body(response, max_bytes, deadline, is_part="Range" in headers)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, _BROKEN) and not isinstance(exc, _NAMED):
                raise _passing(exc) from exc
            raise
        # A body without an end of its own ends with the connection.
        is_reusable = not response.will_close
        response.close()
        if is_reusable:
            self._keep(address, connection)
        else:
            connection.close()
        return response, body

    def _connection(self, address: _Address) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._idle[address]:
                return self._idle[address].pop(), False
        return _new_connection(address), True

    def _keep(self, address: _Address, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle[address]) < _MOST_IDLE:
                self._idle[address].append(connection)
                return
        connection.close()


def _proxy_of(scheme: str, host: str) -> str | None:
    """The URL of the proxy that the environment names for a host. Raises UnsuitableFileError if it is no HTTP proxy."""
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    if not proxy:
        return None
    # Like curl: host:port is enough.
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    parts = urlsplit(proxy)
    if parts.scheme.lower() != "http" or not parts.hostname:
        raise UnsuitableFileError(
            None, f"{scheme}_proxy names a proxy of the kind {parts.scheme}://; expected http://HOST:PORT"
        )
    return proxy


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _new_connection(address: _Address) -> http.client.HTTPConnection:
    host, port = address.host, address.port
    proxy = urlsplit(address.proxy) if address.proxy else None
    if proxy is not None:
        host, port = proxy.hostname or "", proxy.port or 80
    if address.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
    connection = http.client.HTTPSConnection(host, port, timeout=_CONNECT_SECONDS, context=_tls())
    if proxy is not None:
        connection.set_tunnel(address.host, address.port or 443, _proxy_headers(address))
    return connection


def _proxy_headers(address: _Address) -> dict[str, str]:
    parts = urlsplit(address.proxy or "")
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _asked(
    connection: http.client.HTTPConnection,
    address: _Address,
    url: str,
    headers: Mapping[str, str],
    deadline: Deadline,
) -> http.client.HTTPResponse:
    target = url
    if address.proxy is not None and address.scheme == "http":
        headers = {**headers, **_proxy_headers(address)}
    else:
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
    if connection.sock is None:
        connection.timeout = max(min(_CONNECT_SECONDS, deadline.seconds_left), 0.1)
        connection.connect()
    connection.sock.settimeout(max(min(_SILENCE_SECONDS, deadline.seconds_left), 0.1))
    connection.request("GET", target, headers=dict(headers))
    return connection.getresponse()


def _redirected(url: str, location: str | None) -> str:
    if not location:
        raise UnsuitableFileError(None, "the server redirects to nowhere")
    target = urljoin(url, location)
    before, after = urlsplit(url).scheme, urlsplit(target).scheme.lower()
    if after not in ("http", "https") or (before == "https" and after == "http"):
        raise UnsuitableFileError(None, f"the server redirects from {before}:// to {after}://, which is not followed")
    try:
        return requested(target)
    except ValueError as exc:
        raise UnsuitableFileError(None, "the server redirects to what is not a URL") from exc


def _body(response: http.client.HTTPResponse, max_bytes: int, deadline: Deadline, *, is_part: bool) -> bytes:
    status, length = response.status, response.length
    if status not in (200, 206, *_REDIRECTS):
        raise _refused(response)
    if is_part and status == 200:
        raise _no_parts()
    if status in _REDIRECTS:
        max_bytes = _MOST_REDIRECT_BYTES
    if length is not None and length > max_bytes:
        raise TooLargeError(length, max_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    # read1 returns what there is, so that a slow server cannot stretch the time.
    while num_bytes != length and (chunk := response.read1(min(_CHUNK_BYTES, (length or _CHUNK_BYTES) - num_bytes))):
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise TooLargeError(None, max_bytes)
        parts.append(chunk)
        deadline.check()
    if length is not None and num_bytes < length:
        raise PassingError(f"the connection ended after {num_bytes:,} of {length:,} bytes")
    return b"".join(parts)


def _refused(response: http.client.HTTPResponse) -> OSError:
    status = response.status
    if status in (404, 410):
        return FileNotFoundError(status, "not found")
    if status in (401, 403, 407):
        return PermissionError(status, "permission denied")
    text = f"the server answered {status} {http.client.responses.get(status, '')}".rstrip()
    if status in _PASSING:
        wait = response.headers.get("Retry-After", "")
        return PassingError(text, min(float(wait), _MOST_WAIT_SECONDS) if wait.isdecimal() else 0.0)
    return UnsuitableFileError(None, text)


def _passing(exc: Exception) -> OSError:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return UnsuitableFileError(None, f"the server's certificate is not valid: {exc.verify_message}")
    if isinstance(exc, TimeoutError):
        return PassingError("no answer in time")
    if tunnel := _TUNNEL.match(str(exc)):
        status = int(tunnel[1])
        text = f"the proxy answered {status} {http.client.responses.get(status, '')}".rstrip()
        return PassingError(text) if status in _PASSING else UnsuitableFileError(None, text)
    if isinstance(exc, OSError) and exc.strerror:
        return PassingError(f"no connection: {exc.strerror.lower()}")
    # The text of others may have parts of what was sent.
    return PassingError(f"the connection broke ({type(exc).__name__})")


def _no_parts() -> OSError:
    return UnsuitableFileError(None, "the server does not give parts of files, so archives have to be downloaded first")
