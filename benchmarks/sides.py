"""What is measured, each in a process of its own: `python -m benchmarks.sides`, which `process.py` starts.

A side is opened once, for files and a model, and does the same work as often as it is asked. Ours runs as the package's
users run it; the others are the scripts in peer_*.py.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from alexdeploy import ModelFolder, Predictor
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import Backend, EngineOptions, NumViews, open_engine
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import Source
from alexdeploy.inference.bench_worker import peak_bytes
from benchmarks.full_decode import full_decode

NUM_VIEWS: NumViews = 10

Answer = tuple[int, float]


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a process opens. `form` is what a peer can be tuned by; `graph` is an ONNX file of its own."""

    side: str
    model: str
    precision: str = "fp32"
    batch_size: int = 8
    form: str = ""
    graph: str = ""
    device: str = "cpu"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Classify `files`, all of them `repeats` times. `batch_size` is for the peers that are told it at each call."""

    files: tuple[str, ...]
    repeats: int = 1
    batch_size: int = 1
    with_answers: bool = False


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """`peak_bytes` is the most that the process and its workers have held; what workers share counts for each."""

    seconds: float = 0.0
    peak_bytes: int | None = None
    answers: list[Answer] = []


Work = Callable[[Ask], Iterator[Answer]]


def _ours(setup: Setup, stack: ExitStack) -> Work:
    """Files to rows, as `alexdeploy predict` runs, with its defaults."""
    predictor = stack.enter_context(
        Predictor(
            setup.model,
            precision=setup.precision,  # type: ignore[arg-type]
            num_views=NUM_VIEWS,
            batch_size=setup.batch_size,
        )
    )

    def work(ask: Ask) -> Iterator[Answer]:
        for row in predictor.predict(_listed(ask)):
            if row.error is not None:
                raise SystemExit(f"{row.source}: {row.error}")
            yield row.top[0].index, row.top[0].probability

    return work


def _engine(setup: Setup, stack: ExitStack) -> Work:
    """Our engine alone, on images that were decoded before the first run; every stream is kept busy."""
    backend: Backend = "openvino" if setup.device == "cpu" else "tensorrt"
    options = EngineOptions(
        precision=setup.precision,  # type: ignore[arg-type]
        num_views=NUM_VIEWS,
        batch_size=setup.batch_size,
        device=setup.device,
    )
    engine = stack.enter_context(open_engine(ModelFolder(Path(setup.model)), backend, options))
    streams = stack.enter_context(ThreadPoolExecutor(engine.info.num_streams))
    decoded: dict[tuple[str, ...], list[np.ndarray]] = {}

    def work(ask: Ask) -> Iterator[Answer]:
        for found in streams.map(engine.run, decoded[ask.files] * ask.repeats):
            best = found.probabilities.argmax(axis=1)
            yield from zip(best.tolist(), found.probabilities.max(axis=1).tolist(), strict=True)

    def prepared(ask: Ask) -> Iterator[Answer]:
        if ask.files not in decoded:
            images = np.stack([decode(Path(path).read_bytes()) for path in ask.files])
            size = setup.batch_size
            decoded[ask.files] = [images[start : start + size] for start in range(0, len(images), size)]
        return work(ask)

    return prepared


def _decode(setup: Setup, stack: ExitStack) -> Work:
    """Reading and decoding alone, with as many threads as `predict` decodes with; `form` "full" is not our way."""
    decoders = stack.enter_context(ThreadPoolExecutor(available_processors()))
    to_square = full_decode if setup.form == "full" else decode

    def work(ask: Ask) -> Iterator[Answer]:
        def one(path: str) -> Answer:
            # The image ends here: thousands of them would not fit into memory.
            to_square(Source(name=path, path=path).read())
            return 0, 0.0

        yield from decoders.map(one, _listed(ask))

    return work


def _onnxruntime(setup: Setup, stack: ExitStack) -> Work:
    import onnxruntime

    from benchmarks.peer_onnxruntime import classify

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if setup.device != "cpu" else ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(setup.graph, providers=providers)
    mean = _mean(setup)
    return lambda ask: (
        (label, probability) for _, label, probability in classify(session, mean, _listed(ask), ask.batch_size)
    )


def _pytorch(setup: Setup, stack: ExitStack) -> Work:
    from benchmarks.peer_pytorch import classify

    network, mean = _torch_network(setup), _mean(setup)
    is_last, is_bfloat16 = setup.form == "channels_last", setup.precision == "bf16"
    return lambda ask: (
        (label, probability)
        for _, label, probability in classify(
            network, mean, _listed(ask), ask.batch_size, channels_last=is_last, bfloat16=is_bfloat16
        )
    )


def _dataloader(setup: Setup, stack: ExitStack) -> Work:
    """`form` is the number of workers, which start once for each list of files."""
    from benchmarks.peer_dataloader import classify, make_loader

    network, mean = _torch_network(setup), _mean(setup)
    loaders: dict[tuple[str, ...], Any] = {}

    def work(ask: Ask) -> Iterator[Answer]:
        if ask.files not in loaders:
            loaders.clear()
            loaders[ask.files] = make_loader(ask.files, mean, setup.batch_size, int(setup.form))
        for _ in range(ask.repeats):
            yield from classify(network, loaders[ask.files])

    return work


def _torch_network(setup: Setup) -> Any:
    import torch
    from safetensors.torch import load_file

    from benchmarks.peer_pytorch import alexnet

    network: Any = alexnet(load_file(ModelFolder(Path(setup.model)).weights_path)).to(setup.device)
    is_last = setup.side == "dataloader" or setup.form == "channels_last"
    return network.to(memory_format=torch.channels_last) if is_last else network


def _mean(setup: Setup) -> np.ndarray:
    mean = ModelFolder(Path(setup.model)).mean_path
    return np.asarray(np.load(mean).transpose(1, 2, 0))


def _listed(ask: Ask) -> list[str]:
    return list(ask.files) * ask.repeats


SIDES: dict[str, Callable[[Setup, ExitStack], Work]] = {
    "ours": _ours,
    "engine": _engine,
    "decode": _decode,
    "onnxruntime": _onnxruntime,
    "pytorch": _pytorch,
    "dataloader": _dataloader,
}


def main() -> None:
    # Libraries print on stdout, which is for replies: theirs is stderr from here on.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)

    def answer(reply: Reply) -> None:
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()

    with ExitStack() as stack:
        began = time.perf_counter()
        work = SIDES[setup.side](setup, stack)
        answer(Reply(seconds=time.perf_counter() - began, peak_bytes=peak_bytes()))
        while line := sys.stdin.buffer.readline():
            ask = msgspec.json.decode(line, type=Ask)
            began = time.perf_counter()
            answers = [found for found in work(ask) if ask.with_answers]
            seconds = time.perf_counter() - began
            answer(Reply(seconds=seconds, peak_bytes=peak_bytes(), answers=answers))


if __name__ == "__main__":
    main()
