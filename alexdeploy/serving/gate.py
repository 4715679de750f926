"""Around all routes: an id, a record and an answer for each request, and who opens the models."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alexdeploy.serving.access import Hosts
from alexdeploy.serving.access_log import AccessLog, RequestRecord, safe_id
from alexdeploy.serving.errors import BusyError, RequestError
from alexdeploy.serving.metrics import Metrics
from alexdeploy.serving.models import Repository

RECORD = "alexdeploy.record"
"""The key of a request's RequestRecord in its ASGI scope."""

_CLIENT_GONE = 499
_log = logging.getLogger("alexdeploy.serving")


def json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def error_response(error: RequestError) -> Response:
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response({"error": error.message}, error.status, headers)


async def http_error(_: Request, error: Exception) -> Response:
    """Unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    return json_response({"error": error.detail}, error.status_code, dict(error.headers or {}))


class Lifespan:
    """Opens the models before the first request and closes them after the last."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._has_begun = False

    @asynccontextmanager
    async def __call__(self, app: object) -> AsyncIterator[None]:
        self._has_begun = True
        await self._repository.start()
        try:
            yield
        finally:
            await self._repository.close()

    def check(self) -> None:
        """Raise BusyError, and say what to do in the log, if nobody has run the lifespan."""
        if not self._has_begun:
            _log.error(
                "the models are not open: an application that mounts this one must run its lifespan, "
                "FastAPI(lifespan=classifier.router.lifespan_context)"
            )
            raise BusyError("the models are not open")


class Gate:
    """The outermost middleware: gives each request an id, a record for the log and metrics, and always an answer."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, access_log: AccessLog | None, hosts: Hosts, lifespan: Lifespan | None
    ) -> None:
        self._app, self._metrics, self._access_log, self._lifespan = app, metrics, access_log, lifespan
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name == b"x-request-id"}
        given = safe_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        client = scope.get("client")
        record = RequestRecord(
            id=given or uuid.uuid4().hex,
            protocol="http",
            method=scope["method"],
            path=scope["path"],
            client=client[0] if client else "",
        )
        scope[RECORD] = record

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, record)
        finally:
            record.end()
            if record.is_inference:
                self._metrics.record(
                    record.protocol,
                    record.model,
                    str(record.status),
                    kind=record.error,
                    total_ns=record.total_ns,
                    times=record.times,
                )
            if self._access_log is not None:
                self._access_log.write(record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            if self._lifespan is not None:
                self._lifespan.check()
            self._hosts.check(Headers(scope=scope).get("host", ""))
            await self._app(scope, receive, send)
        except RequestError as error:
            record.error = error.kind
            response = error_response(error)
        except (ClientDisconnect, _ClientGoneError):
            record.error, record.status = "client_gone", _CLIENT_GONE
            return
        except Exception:
            _log.exception("request %s failed", record.id)
            record.error = RequestError.kind
            response = json_response({"error": "internal error"}, 500)
        else:
            return
        if record.status:
            raise RuntimeError("the response was not complete")
        await response(scope, receive, send)


class _ClientGoneError(Exception):
    """The client has closed the connection before the answer."""


class UntilGone:
    """`async with`: cancels the block when the client closes the connection, and then raises _ClientGoneError."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # A cancelled task has its frame, and that has `self`: kept here, it would be a cycle.
        watcher = self._watcher
        del self._watcher
        if isinstance(error, asyncio.CancelledError) and watcher.done():
            # From Python 3.11 on a task counts the requests to cancel it.
            if hasattr(self._task, "uncancel"):
                self._task.uncancel()
            raise _ClientGoneError from None
        watcher.cancel()
