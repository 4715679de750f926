"""The REST server: sockets, connections, and how they end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from email.utils import formatdate
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from alexdeploy.core.errors import UsageError
from alexdeploy.serving.protocol import ConnectionLimits, LimitedProtocol

_BACKLOG = 2048
_TICK_SECONDS = 1.0
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 0.25
"""How long a connection may stay open after the listening sockets are closed if nothing comes: a request that was sent
before may still be on its way."""

_LAST_SECONDS = 1.0


def bind(host: str, port: int, option: str) -> socket.socket:
    """A listening socket; port 0: any that is free. Raises UsageError, which names --host or `option`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise _bad_host(host, exc) from exc
    try:
        if os.name == "posix":
            # Else the port of a server that has just ended stays taken for a minute.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
        found.setblocking(False)
    except OSError as exc:
        found.close()
        if exc.errno == errno.EADDRNOTAVAIL:
            raise _bad_host(host, exc) from exc
        raise UsageError(
            f"{option} {port} of {host} cannot be used: {exc.strerror or exc}",
            hint=f"Name another port, or 0 for any that is free: {option} 0",
        ) from exc
    return found


def _bad_host(host: str, exc: OSError) -> UsageError:
    return UsageError(
        f"--host {host} cannot be used: {exc.strerror or exc}",
        hint="Name an address of this machine: 127.0.0.1, or 0.0.0.0 for all that it has.",
    )


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and later with this certificate. Raises UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(
            f"--tls-cert {certificate} with --tls-key {key} cannot be used: {exc.strerror or exc}",
            hint="Both are PEM files; the certificate comes first, then those that signed it.",
        ) from exc
    return context


class RestServer:
    """Serves an ASGI application on a listening socket, in the running event loop."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        tls: ssl.SSLContext | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._listener, self._tls = listener, tls

        class Protocol(LimitedProtocol):
            pass

        Protocol.limits = limits or ConnectionLimits()
        self._protocol = Protocol
        self._config = uvicorn.Config(
            app,
            http=self._protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=self._protocol.limits.idle_seconds,
        )
        self._state = ServerState()
        self._ticker: asyncio.Task[None] | None = None

    @property
    def num_connections(self) -> int:
        return len(self._state.connections)

    @property
    def num_requests(self) -> int:
        """Requests that have begun to come in and are not answered."""
        return sum(connection.has_begun for connection in self._connections())

    async def start(self) -> None:
        self._config.load()
        self._tick()
        self._server = await asyncio.get_running_loop().create_server(
            self._connect,
            sock=self._listener,
            ssl=self._tls,
            backlog=_BACKLOG,
            ssl_handshake_timeout=None if self._tls is None else self._protocol.limits.header_seconds,
        )
        self._ticker = asyncio.ensure_future(self._ticks())

    def _connect(self) -> LimitedProtocol:
        return self._protocol(config=self._config, server_state=self._state, app_state={})

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._tick()

    def _tick(self) -> None:
        self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        now = time.monotonic()
        for connection in self._connections():
            connection.close_late(now)

    def _connections(self) -> list[LimitedProtocol]:
        return [each for each in self._state.connections if isinstance(each, LimitedProtocol)]

    async def stop_listening(self) -> None:
        """Accept what has connected until now, and nothing that comes later. Answers then end their connections."""
        self._protocol.is_draining = True
        # The loop accepts what waits in the socket when it looks at it the next time.
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        self._listener.close()

    async def drain(self, seconds: float) -> bool:
        """Wait until all requests that were accepted are answered, at most `seconds`. Returns whether they are."""
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            for connection in self._connections():
                if connection.has_begun:
                    connection.drain()
                elif elapsed >= _GRACE_SECONDS:
                    connection.transport.close()
            if not self._state.connections and elapsed >= _GRACE_SECONDS:
                return True
            await asyncio.sleep(_POLL_SECONDS)
        return not self._state.connections

    async def close(self) -> None:
        """End what is left."""
        if self._ticker is not None:
            self._ticker.cancel()
        for connection in self._connections():
            connection.transport.abort()
        # Each learns that its client is gone, and ends by itself.
        tasks = list(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_SECONDS)
