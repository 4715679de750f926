"""A server that runs in a thread of the test's process, on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from patience import PATIENCE

from alexdeploy.inference.batcher import BatcherOptions
from alexdeploy.placement.options import PredictOptions
from alexdeploy.serving.app import AppOptions, make_app
from alexdeploy.serving.metrics import Metrics
from alexdeploy.serving.models import Repository, ServingOptions
from alexdeploy.serving.protocol import ConnectionLimits
from alexdeploy.serving.rest_server import RestServer, bind

SERVING = ServingOptions(
    predict=PredictOptions(backend="onnxruntime", batch_size=4, num_views=10, num_threads=1),
    batcher=BatcherOptions(max_queue=16),
)
"""Ten views, batches of 4, in one thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A server that answers. `run` runs a coroutine in its event loop."""

    port: int
    repository: Repository
    rest: RestServer
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    def send(self, data: bytes) -> bytes:
        """All that comes back on a connection of its own, until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as connection:
            connection.sendall(data)
            return receive_all(connection)


def receive_all(connection: socket.socket) -> bytes:
    found = b""
    # A server that does not read to the end of a request resets the connection.
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


@contextmanager
def running(
    repository: Repository, options: AppOptions | None = None, limits: ConnectionLimits | None = None
) -> Iterator[Running]:
    """Serve REST until the block ends; all models are ready, and without `options` clients may load and unload them."""
    options = options or AppOptions(model_control="explicit")
    started: Future[Running] = Future()

    async def serve() -> None:
        listener = bind("127.0.0.1", 0, "--port")
        port = listener.getsockname()[1]
        rest = RestServer(make_app(repository, Metrics(repository), options), listener, limits=limits)
        over = asyncio.Event()
        try:
            await repository.start()
            await rest.start()
            stops.append(over)
            loop = asyncio.get_running_loop()
            started.set_result(Running(port=port, repository=repository, rest=rest, loop=loop))
            await over.wait()
            await rest.stop_listening()
        finally:
            await repository.close(finish=False)
            await rest.close()

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    stops: list[asyncio.Event] = []
    thread = threading.Thread(target=work, name="server")
    thread.start()
    server = started.result(PATIENCE)
    try:
        yield server
    finally:
        server.loop.call_soon_threadsafe(stops[0].set)
        thread.join(PATIENCE)
        assert not thread.is_alive()
