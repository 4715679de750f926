"""The server under load: what an image costs beside decoding and the engine, the throughput, and the latency."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import ModelFolder, Predictor
from alexdeploy.benchmark.statistics import percentile
from alexdeploy.engines.base import NumViews
from alexdeploy.inference.row import Row
from benchmarks.growth import listed
from benchmarks.load import Load, send
from benchmarks.process import take_turns
from benchmarks.server import Alone, Server, open_server, write_requests

Say = Callable[[str], None]

VIEWS: tuple[NumViews, ...] = (1, 10)
KINDS = ("pixels", "JPEG")
"""What the images of a request are."""

SHARES = (0.25, 0.5, 0.75, 1.0)
"""How much of the throughput is asked for where latencies are measured."""

FEW, MANY = 16, 64
"""Clients that wait for their answers: full batches on two streams, and as many as the queue admits by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingOptions:
    """`files` are photographs. A turn takes about `seconds`, and each measurement of latencies four times as long."""

    files: tuple[str, ...]
    num_rounds: int = 7
    seconds: float = 4.0
    seed: int = 0


def measure_serving(folder: ModelFolder, workspace: Path, options: ServingOptions, say: Say) -> dict[str, Any]:
    """What `alexdeploy serve` does on a CPU, for each number of views.

    `server_ms`: its CPU milliseconds an image; `alone_ms`: those of the engine, and for files of the decoder, without a
    server, on batches of the same sizes. `rates`: images/s of the server, and on the same files of `predict`, and of
    `classify` in FEW threads and tasks.
    `latencies`: of requests with a file that come at random times.
    """
    requests = write_requests(folder, options.files, workspace / "requests")
    turns: dict[str, Callable[[], float]] = {}
    alone_ms: dict[str, list[float]] = {}
    servers: dict[NumViews, Server] = {}
    with ExitStack() as stack:
        for num_views in VIEWS:
            say(f"serving: opening, {num_views} views")
            server = servers[num_views] = stack.enter_context(open_server(folder, num_views))
            alone = stack.enter_context(Alone(folder, num_views, options.files))
            predictor = stack.enter_context(Predictor(folder, num_views=num_views, devices="cpu"))
            for kind in KINDS:
                load = Load(port=server.port, files=requests[kind], seconds=options.seconds, num_clients=FEW)
                found = alone_ms[f"{kind} {num_views}"] = []
                turns[f"{kind} {num_views}"] = partial(_cost_ms, server, load, alone, kind, found)
            load = Load(port=server.port, files=requests["JPEG"], seconds=options.seconds, num_clients=MANY)
            turns[f"serve {num_views}"] = partial(_served_per_second, load)
            _check_rows(predictor, options.files)
            count = round(options.seconds * _predicted_per_second(predictor, options.files))
            files = listed(options.files, max(count, len(options.files)))
            turns[f"predict {num_views}"] = partial(_predicted_per_second, predictor, files)
            for name, classify in (("threads", in_threads), ("tasks", in_tasks)):
                turns[f"{name} {num_views}"] = partial(_classified_per_second, classify, predictor, files)
        say("serving: warming up")
        for turn in turns.values():
            turn()
        for found in alone_ms.values():
            found.clear()
        figures = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"serving, {text}"))
        rates = {name: figures[name] for name in figures if name not in alone_ms}
        latencies = {}
        for num_views, server in servers.items():
            say(f"serving: latencies, {num_views} views")
            load = Load(port=server.port, files=requests["JPEG"], seconds=4 * options.seconds, seed=options.seed)
            rate = statistics.median(rates[f"serve {num_views}"])
            latencies[str(num_views)] = {str(share): _latency(load, share * rate) for share in SHARES}
    return {
        "model": folder.spec().name,
        "num_rounds": options.num_rounds,
        "num_files": len(options.files),
        "num_clients": [FEW, MANY],
        "server_ms": {name: figures[name] for name in alone_ms},
        "alone_ms": alone_ms,
        "rates": rates,
        "latencies": latencies,
    }


def _cost_ms(server: Server, load: Load, alone: Alone, kind: str, alone_ms: list[float]) -> float:
    """CPU milliseconds an image of the server; those of the same work without it are appended to `alone_ms`."""
    began, batches = server.cpu_seconds(), server.batch_sizes()
    answers = send(load)
    seconds = server.cpu_seconds() - began
    if set(answers.statuses) != {200}:
        raise SystemExit(f"the server gives {answers.statuses}")
    num_images = len(answers.latencies_ms)
    without = alone.engine_seconds(server.batch_sizes() - batches)
    if kind == "JPEG":
        without += alone.decode_seconds(num_images)
    alone_ms.append(1e3 * without / num_images)
    return 1e3 * seconds / num_images


def _served_per_second(load: Load) -> float:
    return send(load).per_second


def _predicted_per_second(predictor: Predictor, files: Sequence[str]) -> float:
    began = time.perf_counter()
    num_images = len(list(predictor.predict(files)))
    return num_images / (time.perf_counter() - began)


def _check_rows(predictor: Predictor, files: Sequence[str]) -> None:
    """Raise SystemExit if threads or tasks get other rows than `predict`."""
    expected = [(row.source, row.top, row.views_agreeing) for row in predictor.predict(files)]
    for classify in (in_threads, in_tasks):
        if [(row.source, row.top, row.views_agreeing) for row in classify(predictor, files)] != expected:
            raise SystemExit(f"{classify.__name__}: other rows than those of predict")


def in_threads(predictor: Predictor, files: Sequence[str]) -> list[Row]:
    """Each of FEW threads classifies one file at a time: the rows, in the order of the files."""
    with ThreadPoolExecutor(FEW) as threads:
        return [row for [row] in threads.map(predictor.classify, files)]


def in_tasks(predictor: Predictor, files: Sequence[str]) -> list[Row]:
    """The same in tasks of asyncio."""
    todo, rows = iter(enumerate(files)), {}

    async def classify() -> None:
        for number, file in todo:
            [rows[number]] = await predictor.aclassify(file)

    async def classify_all() -> None:
        await asyncio.gather(*(classify() for _ in range(FEW)))

    asyncio.run(classify_all())
    return [rows[number] for number in range(len(files))]


def _classified_per_second(
    classify: Callable[[Predictor, Sequence[str]], list[Row]], predictor: Predictor, files: Sequence[str]
) -> float:
    began = time.perf_counter()
    num_images = len(classify(predictor, files))
    return num_images / (time.perf_counter() - began)


def _latency(load: Load, requests_per_second: float) -> dict[str, Any]:
    """Of requests that come at random times."""
    answers = send(msgspec.structs.replace(load, requests_per_second=requests_per_second))
    return {
        "requests_per_second": requests_per_second,
        "statuses": {str(status): count for status, count in answers.statuses.items()},
        "p50_ms": percentile(answers.latencies_ms, 50),
        "p99_ms": percentile(answers.latencies_ms, 99),
    }
