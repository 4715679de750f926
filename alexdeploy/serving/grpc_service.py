"""The Open Inference Protocol v2 over gRPC, with the messages of Triton's Python client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2

from alexdeploy.core.protobuf_wire import Message, WireError
from alexdeploy.serving.access import ModelControl, check_control
from alexdeploy.serving.access_log import AccessLog, RequestRecord, safe_id
from alexdeploy.serving.bodies import BodyBudget, Held
from alexdeploy.serving.errors import BusyError, InvalidRequestError, RequestError
from alexdeploy.serving.grpc_calls import SERVICE, Reception, end_call, new_record, peer_of, read_message
from alexdeploy.serving.grpc_tensors import read_request, write_response
from alexdeploy.serving.infer import infer, model_config, model_metadata, server_metadata
from alexdeploy.serving.metrics import Metrics
from alexdeploy.serving.models import Repository
from alexdeploy.serving.tensors import InferRequest
from alexdeploy.serving.tokens import Tokens

_OPEN_METHODS = ("ServerLive", "ServerReady")
"""Methods that need no token: an orchestrator asks them."""

_PROBES = (*_OPEN_METHODS, "ModelReady")

_STREAM_WINDOW = 64
"""Requests of one stream that are being answered; the next is read when the oldest of them has its answer."""

_MAX_CALLS = 256
"""Calls at a time, a stream is one; further ones get RESOURCE_EXHAUSTED."""

_LAST_SECONDS = 0.25
"""How long a stream is still read when the server has begun to shut down."""

_CLOCK_SECONDS = 1e-3
"""The client's deadline is a time of the system's clock, that of a job one of the monotonic clock."""

_log = logging.getLogger("alexdeploy.serving")


class GrpcService:
    """Answers the methods of the protocol; those for shared memory, traces and log settings are UNIMPLEMENTED."""

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        *,
        budget: BodyBudget,
        tokens: Tokens,
        access_log: AccessLog | None = None,
        model_control: ModelControl = "none",
        stopping: asyncio.Event | None = None,
    ) -> None:
        """From `stopping` on, the server is not ready, and streams end when what they have sent is answered."""
        self._repository, self._metrics, self._tokens, self._access_log = repository, metrics, tokens, access_log
        self._stopping = stopping or asyncio.Event()
        self._model_control: ModelControl = model_control
        self._budget, self._reception = budget, Reception(budget)
        self.num_requests = 0
        """Requests that are not answered."""

    def create_server(self) -> grpc.aio.Server:
        """A server without ports."""
        server = grpc.aio.server(
            options=(
                *self._reception.options(),
                ("grpc.max_send_message_length", -1),
                # Else a second server may listen on the same port, and get some of the connections.
                ("grpc.so_reuseport", 0),
            ),
            maximum_concurrent_rpcs=_MAX_CALLS,
        )
        answers: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {
            name: _handler(grpc.unary_unary_rpc_method_handler, name, self._unary(name, answer))
            for name, answer in answers.items()
        }
        handlers["ModelInfer"] = _handler(grpc.stream_unary_rpc_method_handler, "ModelInfer", self._infer)
        handlers["ModelStreamInfer"] = _handler(
            grpc.stream_stream_rpc_method_handler, "ModelStreamInfer", self._stream_infer
        )
        health = {"Check": grpc.unary_unary_rpc_method_handler(self._health)}
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
            )
        )
        return server

    def _unary(self, name: str, answer: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        kind = _message(SERVICE.methods_by_name[name].input_type)

        async def call(data: bytes, context: Any) -> Any:
            record = new_record(name, context)
            record.is_probe = name in _PROBES

            async def checked() -> Any:
                if name not in _OPEN_METHODS:
                    record.client = self._client(context, record.client)
                request = read_message(data, kind())
                record.model = getattr(request, "model_name", getattr(request, "name", ""))
                return await answer(request)

            return await self._answered(context, record, checked())

        return call

    async def _infer(self, _: Any, context: Any) -> Any:
        # To gRPC a call of several messages: what it has of one is read when there is room for it.
        record = new_record("ModelInfer", context)

        async def answer() -> Any:
            record.client = self._client(context, record.client)
            return await self._inferred(self._reception.read(context), context, record)

        return await self._answered(context, record, answer())

    async def _inferred(self, message: Awaitable[bytes], context: Any, record: RequestRecord) -> Any:
        """Read a ModelInferRequest, and answer it. Raises RequestError."""
        record.is_inference = True
        with self._budget.hold() as held:
            # The message is not kept: what is asked for has the images in it, and nothing else that is large.
            asked = self._asked(await message, held, context, record)
            response = await infer(self._repository, asked, client=record.client)
        record.answered(response.model, str(response.parameters["artifact"]), asked.inputs[0].shape[0], response.times)
        return write_response(response)

    def _asked(self, data: bytes, held: Held, context: Any, record: RequestRecord) -> InferRequest:
        held.add(len(data))
        request = read_message(data, service_pb2.ModelInferRequest())
        record.model, record.given_id = request.model_name, request.id
        record.id = safe_id(request.id) or record.id
        max_images = self._repository.get(request.model_name, request.model_version).info.batch_size
        return read_request(request, context.time_remaining(), max_images=max_images)

    async def _answered(self, context: Any, record: RequestRecord, answer: Awaitable[Any]) -> Any:
        """Await an answer, and record it; a RequestError and any other error end the call with their status."""
        found = await self._recorded(record, answer)
        if isinstance(found, RequestError):
            left = context.time_remaining()
            is_late = left is not None and left < _CLOCK_SECONDS
            end_call(context, "DEADLINE_EXCEEDED" if is_late else found.grpc_code, found.message)
            return None
        return found

    async def _recorded(self, record: RequestRecord, answer: Awaitable[Any]) -> Any:
        """An answer or a RequestError; either goes to log and metrics."""
        code = "CANCELLED"
        self.num_requests += 1
        try:
            found = await answer
            code = "OK"
        except RequestError as error:
            # Its traceback has this frame, and with it what was received: a cycle, which would stay for long.
            found, code, record.error = error.with_traceback(None), error.grpc_code, error.kind
        except asyncio.CancelledError:
            # The client has cancelled the call, or its deadline has passed.
            record.error = "client_gone"
            raise
        except Exception:
            _log.exception("request %s failed", record.id)
            found, code, record.error = RequestError("internal error"), "INTERNAL", RequestError.kind
        finally:
            self.num_requests -= 1
            record.status = grpc.StatusCode[code].value[0]
            record.end()
            if record.is_inference:
                self._metrics.record(
                    record.protocol,
                    record.model,
                    code,
                    kind=record.error,
                    total_ns=record.total_ns,
                    times=record.times,
                )
            if self._access_log is not None:
                self._access_log.write(record)
        return found

    async def _stream_infer(self, _: Any, context: Any) -> AsyncIterator[Any]:
        """Answer the requests of a stream in their order; an error is an answer too, and the stream goes on.

        When the server stops, a stream ends with UNAVAILABLE after its last answer.
        """
        try:
            client = self._client(context, peer_of(context))
            with self._reception.stream():
                async for answer in self._stream_answers(context, client):
                    yield answer
        except RequestError as error:
            end_call(context, error.grpc_code, error.message)

    async def _stream_answers(self, context: Any, client: str) -> AsyncIterator[Any]:
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        has_room = asyncio.Semaphore(_STREAM_WINDOW)

        async def read() -> None:
            with suppress(grpc.RpcError):
                while (data := await context.read()) is not grpc.aio.EOF:
                    answers.put_nowait(asyncio.ensure_future(self._streamed([data], context, client)))
                    del data
                    await has_room.acquire()
            answers.put_nowait(None)

        async def drain() -> None:
            await self._stopping.wait()
            # A request may be on its way.
            await asyncio.sleep(_LAST_SECONDS)
            answers.put_nowait(None)

        reader, ender = asyncio.ensure_future(read()), asyncio.ensure_future(drain())
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                has_room.release()
            if not reader.done():
                raise BusyError("the server is shutting down")
        finally:
            reader.cancel()
            ender.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    async def _streamed(self, received: list[bytes], context: Any, client: str) -> Any:
        """The answer to the one message that was received, which is taken from its list so as not to be kept."""
        record = new_record("ModelStreamInfer", context)
        record.client = client

        async def message() -> bytes:
            return received.pop()

        found = await self._recorded(record, self._inferred(message(), context, record))
        if isinstance(found, RequestError):
            # The id says which of the requests this is the answer to.
            empty = service_pb2.ModelInferResponse(id=record.given_id)
            return service_pb2.ModelStreamInferResponse(error_message=found.message, infer_response=empty)
        return service_pb2.ModelStreamInferResponse(infer_response=found)

    def _client(self, context: Any, peer: str) -> str:
        found = (value for name, value in context.invocation_metadata() or () if name == "authorization")
        return self._tokens.client_of(next(found, None), peer)

    async def _health(self, request: bytes, context: Any) -> Any:
        """gRPC's own health protocol, for Kubernetes: a HealthCheckRequest, whose field 1 is a model or empty."""
        try:
            name = Message(memoryview(request)).text(1)
        except WireError:
            return end_call(context, "INVALID_ARGUMENT", "not a HealthCheckRequest")
        if name and name not in self._repository:
            return end_call(context, "NOT_FOUND", "unknown service")
        is_serving = self._is_ready and (not name or self._has(name))
        # Field 1 of a HealthCheckResponse: SERVING is 1, NOT_SERVING is 2.
        return b"\x08\x01" if is_serving else b"\x08\x02"

    @property
    def _is_ready(self) -> bool:
        return self._repository.is_ready and not self._stopping.is_set()

    def _has(self, name: str, version: str = "") -> bool:
        try:
            self._repository.get(name, version)
        except RequestError:
            return False
        return True

    async def _server_live(self, request: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def _server_ready(self, request: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._is_ready)

    async def _model_ready(self, request: Any) -> Any:
        # Triton's answer also for a model that it does not know.
        return service_pb2.ModelReadyResponse(ready=self._has(request.name, request.version))

    async def _server_metadata(self, request: Any) -> Any:
        return ParseDict(server_metadata(), service_pb2.ServerMetadataResponse())

    async def _model_metadata(self, request: Any) -> Any:
        model = self._repository.get(request.name, request.version)
        return ParseDict(model_metadata(model), service_pb2.ModelMetadataResponse(), ignore_unknown_fields=True)

    async def _model_config(self, request: Any) -> Any:
        model = self._repository.get(request.name, request.version)
        return ParseDict({"config": model_config(model)}, service_pb2.ModelConfigResponse())

    async def _statistics(self, request: Any) -> Any:
        found = self._repository.statistics(request.name, request.version)
        stats = [{"name": model.name, "version": model.version, **each.as_json()} for model, each in found]
        return ParseDict({"model_stats": stats}, service_pb2.ModelStatisticsResponse())

    async def _index(self, request: Any) -> Any:
        return service_pb2.RepositoryIndexResponse(
            models=[
                {"name": each.name, "version": each.version, "state": each.state, "reason": each.reason}
                for each in self._repository.index(ready=request.ready)
            ]
        )

    async def _load(self, request: Any) -> Any:
        check_control(self._model_control)
        if request.parameters:
            names = ", ".join(sorted(request.parameters))
            raise InvalidRequestError(f"load has no parameters here, got {names}")
        await self._repository.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    async def _unload(self, request: Any) -> Any:
        check_control(self._model_control)
        await self._repository.unload(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()


def _handler(kind: Callable[..., Any], name: str, call: Callable[..., Any]) -> Any:
    # Requests are read by `_read`: after the token is checked, and with an error that is the client's.
    output = _message(SERVICE.methods_by_name[name].output_type)
    return kind(call, request_deserializer=None, response_serializer=output.SerializeToString)


def _message(descriptor: Any) -> Any:
    """The class of a message."""
    return getattr(service_pb2, descriptor.name)
