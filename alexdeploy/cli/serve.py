"""`alexdeploy serve`: classification over the network."""

from __future__ import annotations

import ipaddress
import logging
import shlex
import sys
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alexdeploy.cli import output as out
from alexdeploy.cli.completion import model_names
from alexdeploy.cli.options import (
    BackendOption,
    BatchSizeOption,
    DevicesOption,
    PrecisionOption,
    QuietOption,
    ReplicasOption,
    TencropOption,
    ThreadsOption,
    VerboseOption,
    ViewsOption,
    view_count,
)
from alexdeploy.core.packages import missing_package

if TYPE_CHECKING:
    from alexdeploy.serving.models import Repository
    from alexdeploy.serving.server import Addresses

EXAMPLES = (
    "alexdeploy serve",
    "alexdeploy serve models/flowers --tencrop --watch",
    "alexdeploy serve alexnet flowers --host 0.0.0.0 --token-file tokens.txt --tls-cert cert.pem --tls-key key.pem",
)
_PACKAGES = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "grpc": "grpcio",
    "tritonclient": "tritonclient",
}
"""Module -> package."""


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            autocompletion=model_names,
            help="Model folders, or names under models/; the newest there if left out.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            autocompletion=model_names,
            help="Model folder, or a name under models/; the newest there if left out.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of HTTP; 0: any that is free.")
    ] = 8000,
    grpc_port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of gRPC; 0: any that is free.")
    ] = 8001,
    no_grpc: Annotated[bool, typer.Option("--no-grpc", help="HTTP only.")] = False,
    precision: PrecisionOption = "fp32",
    tencrop: TencropOption = False,
    views: ViewsOption = None,
    backend: BackendOption = None,
    devices: DevicesOption = None,
    replicas: ReplicasOption = 1,
    batch_size: BatchSizeOption = 8,
    threads: ThreadsOption = None,
    max_delay_ms: Annotated[
        float, typer.Option(min=0, metavar="MS", help="How long an image waits for others to fill a batch.")
    ] = 2.0,
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Images that wait, of each model; more are refused with 503.")
    ] = 64,
    timeout_ms: Annotated[
        float | None,
        typer.Option(min=1, metavar="MS", help="Images that wait longer are not computed. Default: no limit."),
    ] = None,
    max_body_mib: Annotated[int, typer.Option(min=1, metavar="MIB", help="Largest body of a request.")] = 64,
    max_memory_mib: Annotated[
        int | None,
        typer.Option(min=1, metavar="MIB", help="Memory of all models. Default: what is free when one is loaded."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tokens that requests may have, one a line. Default: none is needed."),
    ] = None,
    allowed_hosts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Names for this server in the header Host, besides localhost and IP addresses; *: any. "
            "Default: any, without tokens on a loopback address none.",
        ),
    ] = None,
    model_control_mode: Annotated[
        Literal["none", "explicit"],
        typer.Option(metavar="none|explicit", help="explicit: requests may load and unload models."),
    ] = "none",
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate for TLS, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Key of the certificate, PEM.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Switch to new exports of the models as they appear.")] = False,
    drain_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="After SIGTERM: how long accepted requests may take.")
    ] = 30.0,
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(
            metavar="text|json",
            help="A line on stdout for each request. Default: text on a terminal, else json.",
        ),
    ] = None,
    no_log_probes: Annotated[
        bool, typer.Option("--no-log-probes", help="No lines for answered requests for health and metrics.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Serve models over HTTP and gRPC: the Open Inference Protocol v2, as Triton speaks it.

    Pictures may also be sent to /predict with curl, or dropped on the page at /. SIGTERM ends the server when all
    accepted requests are answered; SIGHUP loads new exports.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise missing_package(package, "serve", "serve")
    from alexdeploy.core.processors import available_processors
    from alexdeploy.inference.batcher import BatcherOptions
    from alexdeploy.placement.options import PredictOptions
    from alexdeploy.serving.access_log import AccessLog, logged_to
    from alexdeploy.serving.app import AppOptions
    from alexdeploy.serving.models import Repository, ServingOptions
    from alexdeploy.serving.server import ServerOptions, run_server
    from alexdeploy.serving.tokens import Tokens

    tokens = Tokens() if token_file is None else Tokens.from_file(token_file)
    server = ServerOptions(
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        drain_seconds=drain_seconds,
        watch=watch,
    )
    options = PredictOptions(
        precision=precision,
        num_views=view_count(views, tencrop=tencrop),
        backend=backend,
        devices=devices,
        replicas=replicas,
        batch_size=batch_size,
        num_threads=threads,
    )
    batching = BatcherOptions(
        max_delay_ms=max_delay_ms, max_queue=max_queue, num_decoders=threads or available_processors()
    )
    serving = ServingOptions(
        predict=options,
        batcher=batching,
        timeout_ms=timeout_ms,
        max_memory_bytes=None if max_memory_mib is None else max_memory_mib << 20,
    )
    repository = Repository(list(dict.fromkeys([*(models or []), *(model or [])])), serving, on_event=_report)
    if not len(tokens) and not _is_loopback(host):
        out.warn(f"everybody who reaches {host} may use this server, as there is no --token-file")
    app = AppOptions(
        max_body_bytes=max_body_mib << 20,
        model_control=model_control_mode,
        allowed_hosts=_hosts(allowed_hosts, host, has_tokens=len(tokens) > 0),
        tokens=tokens,
        access_log=AccessLog(
            log_format or ("text" if sys.stdout.isatty() else "json"), sys.stdout, with_probes=not no_log_probes
        ),
    )
    with ExitStack() as logs:
        for name in ("alexdeploy.serving", "uvicorn.error", "python_multipart", "grpc"):
            # Of every request that is no HTTP, and every form that is none, the libraries warn.
            logs.enter_context(logged_to(name, sys.stderr, logging.ERROR, "%(levelname)s: %(message)s"))
        code = run_server(
            repository,
            app,
            server,
            on_ready=lambda addresses: _greet(addresses, repository, has_tokens=len(tokens) > 0),
            on_event=_report,
        )
    raise typer.Exit(code)


def _hosts(allowed: str | None, host: str, *, has_tokens: bool) -> tuple[str, ...] | None:
    """The names that a request may have for the server beside localhost and IP addresses; None: any."""
    if allowed is not None:
        return (*(name.strip() for name in allowed.split(",")), host)
    # Else a page of any site could ask this server, by a name of that site that leads to 127.0.0.1.
    return None if has_tokens or not _is_loopback(host) else ()


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _report(event: object) -> None:
    """What happens to the server and its models, on stderr."""
    from alexdeploy.core.errors import AlexDeployError
    from alexdeploy.core.events import Notice
    from alexdeploy.inference.writers import short_artifact
    from alexdeploy.serving.events import (
        ModelFailed,
        ModelLoaded,
        ModelRefused,
        ModelUnloaded,
        ServerStopped,
        ServerStopping,
    )

    if isinstance(event, ModelLoaded):
        info = event.info
        replaced = "" if event.replaced is None else f", in place of {short_artifact(event.replaced)}"
        out.note(
            f"{event.name}: {info.backend} {info.precision} on {info.device}, {out.count(info.num_views, 'view')}, "
            f"batches of {info.batch_size}, artifact {short_artifact(info.artifact)}{replaced}; "
            f"ready in {event.seconds:.1f} s"
        )
    elif isinstance(event, ModelRefused):
        goes_on = ", what was loaded before goes on" if event.is_served else ""
        text = event.error.text if isinstance(event.error, AlexDeployError) else str(event.error)
        out.warn(f"{event.name} was not loaded{goes_on}: {text}")
    elif isinstance(event, ModelFailed):
        out.warn(f"{event.name} does not answer any more, and is opened again: {event.reason}")
    elif isinstance(event, ModelUnloaded):
        out.note(f"{event.name}: unloaded")
    elif isinstance(event, ServerStopping):
        within = f", at most {event.seconds:g} s for their answers" if event.num_requests else ""
        out.note(f"stopping: {out.count(event.num_requests, 'request')} in flight{within}")
    elif isinstance(event, ServerStopped):
        out.note("stopped" if event.all_answered else "stopped before every request was answered")
    elif isinstance(event, Notice):
        out.note(event.message)


def _greet(addresses: Addresses, repository: Repository, *, has_tokens: bool) -> None:
    out.note(f"serving on {addresses.rest}" + (f", gRPC on {addresses.grpc}" if addresses.grpc else ""))
    names = [model.name for model in repository.models]
    query = f"?model={names[0]}" if len(names) > 1 else ""
    token = ' -H "Authorization: Bearer $TOKEN"' if has_tokens else ""
    url = shlex.quote(f"{addresses.rest}/predict{query}")
    insecure = " --cacert CERT" if addresses.rest.startswith("https") else ""
    out.note(f"try: curl{insecure}{token} --data-binary @photo.jpg {url}")
