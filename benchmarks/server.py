"""`alexdeploy serve` in a process of its own, requests for it, and the same work without a server."""

from __future__ import annotations

import json
import random
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from alexdeploy import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import EngineOptions, NumViews, choose_backend, open_engine
from alexdeploy.images.decode import decode
from benchmarks.process import ROOT
from benchmarks.process_tree import cpu_seconds

_Item = TypeVar("_Item")

_READY_SECONDS = 120.0


class Server:
    """A server of `model` in a process of its own; a context manager, ready for requests when it is made.

    `command` has it listen on `port` of this machine; `environment` is the process's, else this one's.
    `opened_seconds` is the time from the start of the process until it was ready.
    """

    def __init__(
        self, command: Sequence[str], port: int, model: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port, self._model = port, model
        began = time.monotonic()
        # The access log is written, as it is in use, and not read.
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait_until_ready(command)
        except BaseException:
            self._process.kill()
            raise
        self.opened_seconds = time.monotonic() - began

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        """What all its threads, and the processes that it has started, have used since their start."""
        return cpu_seconds(self.pid)

    def batch_sizes(self) -> Counter[int]:
        """How many batches of each size have run since its start."""
        (stats,) = json.loads(self._get(f"/v2/models/{self._model}/stats"))["model_stats"]
        return Counter({each["batch_size"]: each["compute_infer"]["count"] for each in stats["batch_stats"]})

    def most_held(self) -> int:
        """How many images it has accepted at most: those that wait, and those in the engine."""
        config = json.loads(self._get(f"/v2/models/{self._model}/config"))
        num_streams: int = sum(group["count"] for group in config["instance_group"])
        waiting: int = config["dynamic_batching"]["default_queue_policy"]["max_queue_size"]
        batch_size: int = config["max_batch_size"]
        return waiting + num_streams * batch_size

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            content: bytes = answer.read()
        return content

    def _wait_until_ready(self, command: Sequence[str]) -> None:
        began = time.monotonic()
        while self._process.poll() is None and time.monotonic() < began + _READY_SECONDS:
            try:
                self._get("/v2/health/ready")
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise SystemExit(f"the server does not get ready: {' '.join(command)}")


def open_server(folder: ModelFolder, num_views: NumViews, *options: str, devices: str = "cpu") -> Server:
    """`alexdeploy serve`; `options` are further ones of the command."""
    port = free_port()
    command = [sys.executable, "-m", "alexdeploy", "serve", str(folder.path), "--port", str(port), "--no-grpc"]
    command += ["--views", str(num_views), "--devices", devices, *options]
    return Server(command, port, folder.path.name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def write_requests(
    folder: ModelFolder, files: Sequence[str], target: Path, *, model: str | None = None
) -> dict[str, tuple[str, ...]]:
    """A request for each photograph, once with its pixels and once with its file, as `benchmarks.load` sends them.

    `model` is the name in their paths, if not that of the folder.
    """
    target.mkdir(parents=True)
    model = model or folder.path.name
    resize = folder.spec().preprocessing.resize
    written: dict[str, list[str]] = {"pixels": [], "JPEG": []}

    def write(kind: str, datatype: str, shape: Sequence[int], tensor: bytes) -> None:
        path = target / f"{kind}-{len(written[kind]):05}"
        path.write_bytes(_request(model, datatype, shape, tensor))
        written[kind].append(str(path))

    for name in files:
        content = Path(name).read_bytes()
        pixels = decode(content, resize)
        write("pixels", "UINT8", (1, *pixels.shape), pixels.tobytes())
        write("JPEG", "BYTES", (1,), struct.pack("<I", len(content)) + content)
    return {kind: tuple(paths) for kind, paths in written.items()}


def _request(model: str, datatype: str, shape: Sequence[int], tensor: bytes) -> bytes:
    """A request of the Open Inference Protocol over HTTP, its tensor in binary."""
    parameters = {"binary_data_size": len(tensor)}
    images = {"name": "images", "datatype": datatype, "shape": shape, "parameters": parameters}
    described = json.dumps({"inputs": [images], "outputs": [{"name": "probabilities"}]}).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(described) + len(tensor)}",
        f"Inference-Header-Content-Length: {len(described)}",
    )
    return "\r\n".join(head).encode() + b"\r\n\r\n" + described + tensor


class Alone:
    """The decoder, and the engine that the server has, in this process; a context manager."""

    def __init__(self, folder: ModelFolder, num_views: NumViews, files: Sequence[str]) -> None:
        options = EngineOptions(num_views=num_views)
        self._decode = partial(decode, resize=folder.spec().preprocessing.resize)
        self._contents = [Path(path).read_bytes() for path in files]
        self._images = np.stack([self._decode(content) for content in self._contents])
        self._engine = open_engine(folder, choose_backend(folder, options.precision), options)

    def __enter__(self) -> Alone:
        self._engine.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.__exit__(kind, error, trace)

    def engine_seconds(self, batch_sizes: Counter[int]) -> float:
        """CPU seconds of such batches, with every stream busy."""
        sizes = list(batch_sizes.elements())
        random.Random(0).shuffle(sizes)
        batches = (self._images[np.arange(size) % len(self._images)] for size in sizes)
        return _cpu_seconds(self._engine.info.num_streams, partial(self._engine.run, low_latency=True), batches)

    def decode_seconds(self, num_images: int) -> float:
        """CPU seconds of decoding so many images."""
        return _cpu_seconds(available_processors(), self._decode, islice(cycle(self._contents), num_images))


def _cpu_seconds(num_threads: int, work: Callable[[_Item], object], items: Iterable[_Item]) -> float:
    """What this process uses while threads of it do the work."""
    with ThreadPoolExecutor(num_threads) as threads:
        began = time.process_time()
        # Not list(): thousands of decoded images would be kept.
        for _ in threads.map(work, items):
            pass
        return time.process_time() - began
