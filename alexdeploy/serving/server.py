"""The server: REST and gRPC on one event loop, from the first signal of readiness to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from alexdeploy.core.errors import UsageError
from alexdeploy.core.interrupts import AGAIN_SECONDS, end_now, leave_now
from alexdeploy.serving.app import AppOptions, make_app
from alexdeploy.serving.bodies import BodyBudget
from alexdeploy.serving.events import ServerStopped, ServerStopping
from alexdeploy.serving.grpc_service import GrpcService
from alexdeploy.serving.metrics import Metrics
from alexdeploy.serving.models import Repository
from alexdeploy.serving.rest_server import RestServer, bind, tls_context

_LAST_SECONDS = 1.0
"""How long the answers to requests that are given up may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Where a server listens and how it ends. Port 0: any that is free; `grpc_port` None: no gRPC."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    tls_cert: Path | None = None
    tls_key: Path | None = None
    drain_seconds: float = 30.0
    watch: bool = False

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key need each other")


@dataclass(frozen=True, kw_only=True, slots=True)
class Addresses:
    """Where a server listens: `rest` is a URL, `grpc` host:port."""

    rest: str
    grpc: str | None


def run_server(
    repository: Repository,
    app_options: AppOptions,
    options: ServerOptions,
    on_ready: Callable[[Addresses], None] = lambda _: None,
    on_event: Callable[[object], None] = lambda _: None,
) -> int:
    """Serve until a signal, and return the exit code: 0 after SIGTERM, 130 after Ctrl-C, if all was answered.

    To be called in the main thread. Ends the process with that code where a model is being opened, which nothing can
    interrupt. Raises UsageError if a port cannot be used, and the error of a model that cannot be
    loaded.
    """
    return asyncio.run(_Server(repository, app_options, options, on_ready, on_event).run())


class _Server:
    def __init__(
        self,
        repository: Repository,
        app_options: AppOptions,
        options: ServerOptions,
        on_ready: Callable[[Addresses], None],
        on_event: Callable[[object], None],
    ) -> None:
        self._repository, self._options, self._on_ready, self._on_event = repository, options, on_ready, on_event
        self._service: GrpcService | None = None
        metrics = Metrics(repository)
        self._budget = BodyBudget(app_options.max_body_bytes)
        self._app = make_app(repository, metrics, app_options, budget=self._budget)
        tls = None
        if options.tls_cert is not None and options.tls_key is not None:
            tls = tls_context(options.tls_cert, options.tls_key)
        self._tls = tls
        self._metrics, self._app_options = metrics, app_options

    async def run(self) -> int:
        options = self._options
        self._stop = _StopSignal()
        # The signals first: whoever sees the port may send one.
        with self._stop, contextlib.closing(bind(options.host, options.port, "--port")) as listener:
            rest = RestServer(self._app, listener, self._tls)
            rpc, rpc_port = self._grpc_server()
            scheme, host = "http" if self._tls is None else "https", _host(options.host)
            addresses = Addresses(
                rest=f"{scheme}://{host}:{listener.getsockname()[1]}",
                grpc=None if rpc is None else f"{host}:{rpc_port}",
            )
            await rest.start()
            if rpc is not None:
                await rpc.start()
            code: int | None = None
            try:
                await self._serve(addresses)
                code = await self._end(rest, rpc)
                return code
            finally:
                await self._close(code)
                await rest.close()
                if rpc is not None:
                    await rpc.stop(0)

    async def _close(self, code: int | None) -> None:
        """Close what is open; a server that has ended with `code` does not wait for a model that is being opened."""
        closing = self._repository.close(finish=False)
        if code is None:
            await closing
            return
        try:
            await asyncio.wait_for(closing, _LAST_SECONDS)
        except asyncio.TimeoutError:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            leave_now(code)

    def _grpc_server(self) -> tuple[grpc.aio.Server | None, int]:
        """A gRPC server that is not started, and its port. Raises UsageError if the port cannot be used."""
        options, limits = self._options, self._app_options
        if options.grpc_port is None:
            return None, 0
        service = self._service = GrpcService(
            self._repository,
            self._metrics,
            budget=self._budget,
            tokens=limits.tokens,
            access_log=limits.access_log,
            model_control=limits.model_control,
            stopping=self._stop.first,
        )
        server = service.create_server()
        address = f"{_host(options.host)}:{options.grpc_port}"
        try:
            if options.tls_cert is None or options.tls_key is None:
                return server, server.add_insecure_port(address)
            pair = (options.tls_key.read_bytes(), options.tls_cert.read_bytes())
            return server, server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as exc:
            raise UsageError(
                f"--grpc-port {options.grpc_port} of {options.host} cannot be used",
                hint="Name another port, 0 for any that is free, or --no-grpc.",
            ) from exc

    async def _serve(self, addresses: Addresses) -> None:
        """Load the models, then serve until the first signal."""
        loading = asyncio.ensure_future(self._repository.start())
        await self._stop.or_done(loading)
        if not loading.done():
            # Nothing was promised to anybody yet; what is being opened is closed again.
            loading.cancel()
            return
        loading.result()
        _tune_garbage_collection()
        self._on_ready(addresses)
        tasks = [asyncio.ensure_future(self._reloads())]
        if self._options.watch:
            tasks.append(asyncio.ensure_future(self._repository.watch()))
        try:
            await self._stop.first.wait()
        finally:
            for task in tasks:
                task.cancel()

    async def _reloads(self) -> None:
        while True:
            await self._stop.hangup.wait()
            self._stop.hangup.clear()
            await self._repository.reload()

    async def _end(self, rest: RestServer, rpc: grpc.aio.Server | None) -> int:
        """Answer what was accepted, within the time there is for it."""
        self._app.state.is_draining = True
        seconds = self._options.drain_seconds
        began = time.monotonic()
        num_requests = rest.num_requests + (0 if self._service is None else self._service.num_requests)
        self._on_event(ServerStopping(num_requests=num_requests, seconds=seconds))
        await rest.stop_listening()
        stopping = None if rpc is None else asyncio.ensure_future(rpc.stop(seconds))
        all_answered = await rest.drain(seconds)
        if stopping is not None:
            await stopping
        left = max(seconds - (time.monotonic() - began), _LAST_SECONDS)
        try:
            await asyncio.wait_for(self._repository.retire(finish=all_answered), left)
        except asyncio.TimeoutError:
            all_answered = False
        if not all_answered:
            await rest.drain(_LAST_SECONDS)
        self._on_event(ServerStopped(all_answered=all_answered))
        return 0 if all_answered and self._stop.number == signal.SIGTERM else 128 + self._stop.number


def _tune_garbage_collection() -> None:
    """Collect garbage less often, and without looking through what stays: requests make hardly any cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class _StopSignal:
    """SIGTERM and SIGINT: the first sets `first`, a second ends the process at once. SIGHUP sets `hangup`."""

    def __init__(self) -> None:
        self.first, self.hangup = asyncio.Event(), asyncio.Event()
        self.number = signal.SIGTERM
        self._arrived = 0.0

    def __enter__(self) -> _StopSignal:
        self._wakeup = signal.set_wakeup_fd(-1)
        self._previous = {each: signal.getsignal(each) for each in _signals()}
        loop = asyncio.get_running_loop()
        for each, handler in self._previous.items():
            # A shell has jobs in the background ignore Ctrl-C. SIGHUP, which nohup has them ignore, ends nothing here.
            if handler is signal.SIG_IGN and each in (signal.SIGINT, signal.SIGTERM):
                continue
            if sys.platform == "win32":
                signal.signal(each, lambda number, _: loop.call_soon_threadsafe(self._hear, signal.Signals(number)))
            else:
                loop.add_signal_handler(each, self._hear, each)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number, handler in self._previous.items():
            if sys.platform != "win32":
                loop.remove_signal_handler(number)
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)

    async def or_done(self, task: asyncio.Future[Any]) -> None:
        """Wait for the first signal or for `task`."""
        first: asyncio.Future[Any] = asyncio.ensure_future(self.first.wait())
        await asyncio.wait((first, task), return_when=asyncio.FIRST_COMPLETED)
        first.cancel()

    def _hear(self, number: signal.Signals) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            self.hangup.set()
        elif not self.first.is_set():
            self.number, self._arrived = number, time.monotonic()
            self.first.set()
        elif time.monotonic() - self._arrived >= AGAIN_SECONDS:
            end_now(number)


def _signals() -> tuple[signal.Signals, ...]:
    if sys.platform == "win32":
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
