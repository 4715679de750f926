"""The ASGI application: the routes of the protocol, `POST /predict` and the page, on the models of a repository."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from alexdeploy.core.arguments import Count, check_fields
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.inference.writers import short_artifact
from alexdeploy.serving.access import Hosts, ModelControl, check_control, check_site
from alexdeploy.serving.access_log import AccessLog, RequestRecord
from alexdeploy.serving.bodies import BodyBudget, read_body
from alexdeploy.serving.errors import BusyError, InvalidRequestError
from alexdeploy.serving.gate import RECORD, Gate, Lifespan, UntilGone, http_error, json_response
from alexdeploy.serving.infer import infer, model_config, model_metadata, server_metadata
from alexdeploy.serving.metrics import CONTENT_TYPE, Metrics
from alexdeploy.serving.models import Repository, ServedModel, ServingOptions
from alexdeploy.serving.page import page
from alexdeploy.serving.predict import Query, files_of, note_on_curl, predict, read_query
from alexdeploy.serving.rest import HEADER_LENGTH, read_infer, read_object, write_infer
from alexdeploy.serving.tokens import Tokens

_log = logging.getLogger("alexdeploy.serving")

_Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True, slots=True)
class AppOptions:
    """Limits and access. `max_body_bytes` is of one body, also after it is decompressed.

    All bodies that are held at a time have at most four times that, and no less than 256 MiB. `model_control`
    "explicit": clients may load and unload models. `allowed_hosts` are names that the header `Host` of a request may
    have, besides localhost and IP addresses; None: any.
    """

    max_body_bytes: Count = 64 << 20
    model_control: ModelControl = "none"
    allowed_hosts: tuple[str, ...] | None = None
    tokens: Tokens = field(default_factory=Tokens)
    access_log: AccessLog | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def create_app(
    models: Sequence[ModelFolder | str] = (),
    options: ServingOptions | None = None,
    limits: AppOptions | None = None,
) -> Starlette:
    """An application that serves models; none given: the newest under models/. Raises UsageError or ModelError.

    Its lifespan opens and closes the models. An application that mounts it must run that as its own:

        classifier = create_app(["models/flowers"])
        app = FastAPI(lifespan=classifier.router.lifespan_context)
        app.mount("/classifier", classifier)
    """
    repository = Repository(models, options or ServingOptions(), on_event=_log_event)
    return make_app(repository, Metrics(repository), limits or AppOptions(), lifespan=Lifespan(repository))


def make_app(
    repository: Repository,
    metrics: Metrics,
    options: AppOptions,
    *,
    budget: BodyBudget | None = None,
    lifespan: Lifespan | None = None,
) -> Starlette:
    """The application on a repository; without a lifespan somebody else opens and closes it.

    `budget` is shared with another server on the same models.
    """
    routes = _Routes(repository, metrics, options, budget or BodyBudget(options.max_body_bytes))
    app = Starlette(
        routes=routes.table(),
        middleware=[
            Middleware(
                Gate,
                metrics=metrics,
                access_log=options.access_log,
                hosts=Hosts(options.allowed_hosts),
                lifespan=lifespan,
            )
        ],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _log_event(event: object) -> None:
    _log.info("%s", event)


class _Routes:
    """The handlers. Each returns a response or raises a RequestError."""

    def __init__(self, repository: Repository, metrics: Metrics, options: AppOptions, budget: BodyBudget) -> None:
        self._repository, self._metrics, self._tokens = repository, metrics, options.tokens
        self._model_control: ModelControl = options.model_control
        self._budget = budget

    def table(self) -> list[Route]:
        found = []
        # Routes are tried in this order, so those of inference are first.
        models = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        for model in models:
            found.append(self._route(f"{model}/infer", self._infer, "POST", is_inference=True))
        found += [
            self._route("/predict", self._predict, "POST", is_inference=True),
            self._route("/", self._page, is_open=True),
            self._route("/metrics", self._metrics_page, is_probe=True),
            self._route("/v2", self._server),
            self._route("/v2/", self._server),
            self._route("/v2/health/live", self._live, is_open=True, is_probe=True),
            self._route("/v2/health/ready", self._ready, is_open=True, is_probe=True),
            self._route("/v2/models/stats", self._statistics),
            self._route("/v2/repository/index", self._index, "POST"),
            self._route("/v2/repository/models/{name}/load", self._load, "POST"),
            self._route("/v2/repository/models/{name}/unload", self._unload, "POST"),
        ]
        for model in models:
            found += [
                self._route(model, self._model),
                self._route(f"{model}/ready", self._model_ready, is_probe=True),
                self._route(f"{model}/config", self._model_config),
                self._route(f"{model}/stats", self._statistics),
            ]
        return found

    def _route(
        self,
        path: str,
        handler: _Handler,
        method: str = "GET",
        *,
        is_open: bool = False,
        is_inference: bool = False,
        is_probe: bool = False,
    ) -> Route:
        """A route that needs a token unless it `is_open`; the metrics count inference, the log may leave out probes."""

        async def checked(request: Request) -> Response:
            record: RequestRecord = request.scope[RECORD]
            record.is_inference, record.is_probe = is_inference, is_probe
            record.model = request.path_params.get("name", "")
            if not is_open:
                record.client = self._tokens.client_of(request.headers.get("authorization"), record.client)
            # A browser sends a token along only where the server allows it, and this one does not.
            if method == "POST" and not len(self._tokens):
                check_site(request)
            return await handler(request)

        return Route(path, checked, methods=[method])

    def _model_of(self, request: Request) -> ServedModel:
        return self._repository.get(request.path_params["name"], request.path_params.get("version", ""))

    async def _page(self, request: Request) -> Response:
        body, headers = page()
        return Response(body, headers=dict(headers))

    async def _metrics_page(self, request: Request) -> Response:
        return Response(self._metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    async def _server(self, request: Request) -> Response:
        return json_response(server_metadata())

    async def _live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        if not self._repository.is_ready or getattr(request.app.state, "is_draining", False):
            raise BusyError("the server is not ready")
        return json_response({"live": True, "ready": True})

    async def _model(self, request: Request) -> Response:
        return json_response(model_metadata(self._model_of(request)))

    async def _model_ready(self, request: Request) -> Response:
        return json_response({"name": self._model_of(request).name, "ready": True})

    async def _model_config(self, request: Request) -> Response:
        return json_response(model_config(self._model_of(request)))

    async def _statistics(self, request: Request) -> Response:
        params = request.path_params
        found = self._repository.statistics(params.get("name", ""), params.get("version", ""))
        return json_response(
            {"model_stats": [{"name": each.name, "version": each.version, **one.as_json()} for each, one in found]}
        )

    async def _index(self, request: Request) -> Response:
        with self._budget.hold() as held:
            asked = read_object(await read_body(request, held), _IndexRequest)
        return json_response(self._repository.index(ready=asked.ready))

    async def _load(self, request: Request) -> Response:
        check_control(self._model_control)
        with self._budget.hold() as held:
            asked = read_object(await read_body(request, held), _RepositoryRequest)
        if asked.parameters:
            raise InvalidRequestError(f"load has no parameters here, got {', '.join(sorted(asked.parameters))}")
        await self._repository.load(request.path_params["name"])
        return Response()

    async def _unload(self, request: Request) -> Response:
        check_control(self._model_control)
        with self._budget.hold() as held:
            read_object(await read_body(request, held), _RepositoryRequest)
        await self._repository.unload(request.path_params["name"])
        return Response()

    async def _infer(self, request: Request) -> Response:
        record: RequestRecord = request.scope[RECORD]
        name, version = request.path_params["name"], request.path_params.get("version", "")
        # Before the body is read: who asks for a model that is not there need not send it.
        max_images = self._repository.get(name, version).info.batch_size
        with self._budget.hold() as held:
            body = await read_body(request, held)
            asked = read_infer(
                body, request.headers.get(HEADER_LENGTH), model=name, version=version, max_images=max_images
            )
            async with UntilGone(request):
                response = await infer(self._repository, asked, client=record.client)
        record.answered(response.model, str(response.parameters["artifact"]), asked.inputs[0].shape[0], response.times)
        content, header_length = write_infer(response, asked)
        if header_length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEADER_LENGTH: str(header_length)}, media_type="application/octet-stream")

    async def _predict(self, request: Request) -> Response:
        record: RequestRecord = request.scope[RECORD]
        query, kind = read_query(request.query_params), request.headers.get("content-type")
        name = record.model = self._predicted_model(query)
        most = self._repository.get(name).batcher_options.max_queue
        with self._budget.hold() as held:
            body = await read_body(request, held)
            files = files_of(body, kind, most)
            with self._repository.use(name) as model:
                async with UntilGone(request):
                    rows, times = await predict(model, files, query, client=record.client)
        if rows[0]["error"] is not None:
            rows[0]["error"] += note_on_curl(body, kind)
        record.answered(model.name, short_artifact(model.info.artifact), len(rows), times)
        return json_response({"rows": rows})

    def _predicted_model(self, query: Query) -> str:
        names = [model.name for model in self._repository.index()]
        if query.model is None and len(names) > 1:
            raise InvalidRequestError(f"several models are served: /predict?model=NAME with one of {', '.join(names)}")
        return names[0] if query.model is None else query.model


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _RepositoryRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}
