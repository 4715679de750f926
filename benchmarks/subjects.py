"""What is measured, each in a process of its own: `python -m benchmarks.subjects`, which `process.py` starts.

A side is opened once and does the same work as often as it is asked. Ours, files to rows, runs as the package's users
run it; engine and decoding alone are measured by the functions of `alexdeploy bench`, so that shares of the bound mean
the same in both; the others are the scripts in peer_*.py, and the plain loop in training_step.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from alexdeploy import ModelFolder, Predictor
from alexdeploy.benchmark.worker import AnswersAtOnce, peak_bytes, run_engine, run_files
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import Backend, EngineInfo, EngineOptions, NumViews, choose_backend, open_engine
from alexdeploy.images.decode import decode
from alexdeploy.images.sources import Source
from alexdeploy.inference.pipeline import PipelineOptions
from alexdeploy.placement.child import take_over_stdout
from benchmarks.full_decode import full_decode
from benchmarks.peer_images import Preprocessing, preprocessing, std_word

Answer = tuple[int, float]


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a process opens. `form` is what a side can be tuned by; `graph` is a file of its own, ONNX or OpenVINO's.

    `data` is a folder of class folders or a packed set, of whose images `num_images` take part. `batch_size` counts
    images.
    """

    side: str
    model: str = ""
    precision: str = "fp32"
    num_views: NumViews = 10
    batch_size: int = 8
    form: str = ""
    graph: str = ""
    data: str = ""
    num_images: int = 0
    device: str = "cpu"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Classify `files`, all of them `repeats` times. `batch_size` is for the peers that are told it at each call.

    The engine alone runs for `seconds` instead, each stream for one batch at least. What trains does its work, a step
    or an epoch of the loader, `repeats` times.
    """

    files: tuple[str, ...] = ()
    repeats: int = 1
    batch_size: int = 1
    seconds: float = 0.0
    with_answers: bool = False


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What was done. The first of all has `open_seconds`, how long opening took after the process had begun, and of
    ours what was opened: `backend`, `device`, and `num_streams`, how many batches are classified at once.

    `peak_bytes` is the most that the process and its workers have held; what workers share counts for each.
    """

    open_seconds: float = 0.0
    backend: str = ""
    device: str = ""
    num_streams: int = 1
    images_per_second: float = 0.0
    peak_bytes: int | None = None
    answers: list[Answer] = []


Work = Callable[[Ask], tuple[float, list[Answer]]]
"""Images per second, and the answers where they were asked for."""


def _timed(rows: Callable[[Ask], Iterable[Answer]]) -> Work:
    def work(ask: Ask) -> tuple[float, list[Answer]]:
        began = time.perf_counter()
        answers = [found for found in rows(ask) if ask.with_answers]
        return len(ask.files) * ask.repeats / (time.perf_counter() - began), answers

    return work


def _repeated(work: Callable[[], int]) -> Work:
    """`work` does something once and says of how many images."""

    def repeat(ask: Ask) -> tuple[float, list[Answer]]:
        began = time.perf_counter()
        num_images = sum(work() for _ in range(ask.repeats))
        return num_images / (time.perf_counter() - began), []

    return repeat


def _ours(setup: Setup, stack: ExitStack) -> tuple[Work, EngineInfo]:
    """Files to rows, as `alexdeploy predict` runs, with its defaults, on the device that was asked for."""
    predictor = stack.enter_context(
        Predictor(
            setup.model,
            precision=setup.precision,
            num_views=setup.num_views,
            batch_size=setup.batch_size,
            devices=setup.device,
        )
    )
    check_engine(setup, predictor.info)

    def rows(ask: Ask) -> Iterator[Answer]:
        for row in predictor.predict(_listed(ask)):
            if row.error is not None:
                raise SystemExit(f"{row.source}: {row.error}")
            yield row.top[0].index, row.top[0].probability

    return _timed(rows), predictor.info


def _engine(setup: Setup, stack: ExitStack) -> tuple[Work, EngineInfo]:
    """Our engine alone, on images that were decoded before; every stream is kept busy."""
    options = EngineOptions(
        precision=setup.precision,  # type: ignore[arg-type]
        num_views=setup.num_views,
        batch_size=setup.batch_size,
        device=setup.device,
    )
    engine = stack.enter_context(open_engine(ModelFolder(Path(setup.model)), _backend(setup), options))
    decoded: dict[tuple[str, ...], np.ndarray] = {}

    def work(ask: Ask) -> tuple[float, list[Answer]]:
        if ask.files not in decoded:
            decoded[ask.files] = np.stack([decode(Path(path).read_bytes()) for path in ask.files])
        return run_engine(engine, decoded[ask.files], ask.seconds).images_per_second, []

    return work, engine.info


def _backend(setup: Setup) -> Backend:
    """The one that is measured: on a GPU TensorRT, on a CPU the best that is installed."""
    if setup.device != "cpu":
        return "tensorrt"
    return choose_backend(ModelFolder(Path(setup.model)), setup.precision)  # type: ignore[arg-type]


def check_engine(setup: Setup, info: EngineInfo) -> None:
    """Raise SystemExit unless what runs is what is measured: `predict` takes something slower where it has to."""
    expected = (_backend(setup), setup.device)
    if (info.backend, info.device) != expected:
        raise SystemExit(
            f"{setup.precision} runs on {info.backend}, {info.device}, and {', '.join(expected)} is measured; "
            "what is missing is told by: alexdeploy doctor"
        )


def _decode(setup: Setup, stack: ExitStack) -> Work:
    """Decoding alone: the pipeline of `predict`, with an engine that answers at once."""
    resize = ModelFolder(Path(setup.model)).spec().preprocessing.resize
    options = PipelineOptions(resize=resize, num_decoders=available_processors())
    engine = AnswersAtOnce(setup.batch_size)

    def work(ask: Ask) -> tuple[float, list[Answer]]:
        sources = [Source(name=path, path=path) for path in ask.files]
        return run_files(engine, sources, len(sources) * ask.repeats, options).images_per_second, []

    return work


def _full_decode(setup: Setup, stack: ExitStack) -> Work:
    """Reading and decoding as others write it: a pool of as many threads as we decode with, and all of the pixels."""
    decoders = stack.enter_context(ThreadPoolExecutor(available_processors()))

    def one(path: str) -> Answer:
        # The image ends here: thousands of them would not fit into memory.
        full_decode(Path(path).read_bytes())
        return 0, 0.0

    return _timed(lambda ask: decoders.map(one, _listed(ask)))


def _onnxruntime(setup: Setup, stack: ExitStack) -> Work:
    import onnxruntime

    from benchmarks.peer_onnxruntime import classify

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if setup.device != "cpu" else ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(setup.graph, providers=providers)
    # It does without a GPU that it cannot use, with no more than a line on stderr.
    if session.get_providers()[0] != providers[0]:
        raise SystemExit(f"ONNX Runtime gives {session.get_providers()}; {providers[0]} is measured")
    steps = _preprocessing(setup)
    return _timed(lambda ask: classify(session, steps, _listed(ask), ask.batch_size))


def _openvino(setup: Setup, stack: ExitStack) -> Work:
    """A network compiled for each batch size that is asked for; `form` is one of its module's."""
    # Without its converter, and so without telemetry: nothing else of it differs.
    import alexdeploy.engines.openvino_library  # noqa: F401
    from benchmarks.peer_openvino_tuned import classify, compile_network

    steps = _preprocessing(setup)
    networks: dict[int, Any] = {}

    def rows(ask: Ask) -> Iterator[Answer]:
        if ask.batch_size not in networks:
            num_rows = ask.batch_size * setup.num_views
            networks[ask.batch_size] = compile_network(setup.graph, setup.precision, setup.form, num_rows)
        return classify(networks[ask.batch_size], steps, _listed(ask), ask.batch_size)

    return _timed(rows)


def _pytorch(setup: Setup, stack: ExitStack) -> Work:
    from benchmarks.peer_pytorch import classify

    network, steps = _torch_network(setup), _preprocessing(setup)
    is_last, is_autocast = "channels_last" in setup.form, "autocast" in setup.form
    return _timed(
        lambda ask: classify(network, steps, _listed(ask), ask.batch_size, channels_last=is_last, autocast=is_autocast)
    )


def _dataloader(setup: Setup, stack: ExitStack) -> Work:
    """`form` is the number of workers, which start once for each list of files."""
    from benchmarks.peer_dataloader import classify, make_loader

    network, steps = _torch_network(setup), _preprocessing(setup)
    loaders: dict[tuple[str, ...], Any] = {}

    def rows(ask: Ask) -> Iterator[Answer]:
        if ask.files not in loaders:
            loaders.clear()
            loaders[ask.files] = make_loader(ask.files, steps, setup.batch_size, int(setup.form))
        for _ in range(ask.repeats):
            yield from classify(network, loaders[ask.files])

    return _timed(rows)


def _loader(setup: Setup, stack: ExitStack) -> Work:
    """What training gets its pixels from, alone: batches of the same images in the same order, decoded each epoch."""
    from alexdeploy.images.folder import read_image_folder
    from alexdeploy.images.packed import is_packed, open_packed
    from alexdeploy.training.data import open_data

    data = open_packed(setup.data) if is_packed(setup.data) else read_image_folder(setup.data)
    pixels = open_data(data, "crop", num_threads=available_processors(), cache_bytes=0).train
    order = np.random.default_rng(0).permutation(len(pixels.labels))[: setup.num_images]
    batches = np.array_split(order, max(1, round(len(order) / setup.batch_size)))
    return _repeated(lambda: sum(len(images) for images in pixels.batches(batches)))


def _step(setup: Setup, stack: ExitStack) -> Work:
    """A training step, ours or (`form` "plain") that of the loop that everybody writes."""
    from benchmarks.training_step import make_step

    step = make_step(setup.batch_size, setup.device, is_plain=setup.form == "plain")

    def once() -> int:
        step()
        return setup.batch_size

    return _repeated(once)


def _torch_network(setup: Setup) -> Any:
    import torch
    from safetensors.torch import load_file

    from benchmarks.peer_pytorch import alexnet

    network: Any = alexnet(load_file(ModelFolder(Path(setup.model)).weights_path)).to(setup.device)
    if "network.bfloat16()" in setup.form:
        network = network.bfloat16()
    is_last = setup.side == "dataloader" or "channels_last" in setup.form
    return network.to(memory_format=torch.channels_last) if is_last else network


def _preprocessing(setup: Setup) -> Preprocessing:
    folder = ModelFolder(Path(setup.model))
    return preprocessing(str(folder.mean_path), std_word(folder.spec().preprocessing.std), setup.num_views)


def _listed(ask: Ask) -> list[str]:
    return list(ask.files) * ask.repeats


SIDES: dict[str, Callable[[Setup, ExitStack], Work | tuple[Work, EngineInfo]]] = {
    "ours": _ours,
    "engine": _engine,
    "decode": _decode,
    "full decode": _full_decode,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "pytorch": _pytorch,
    "dataloader": _dataloader,
    "loader": _loader,
    "step": _step,
}


def main() -> None:
    replies = take_over_stdout()
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setup)

    def answer(reply: Reply) -> None:
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()

    with ExitStack() as stack:
        began = time.perf_counter()
        opened = SIDES[setup.side](setup, stack)
        reply = Reply(open_seconds=time.perf_counter() - began, peak_bytes=peak_bytes())
        if isinstance(opened, tuple):
            work, info = opened
            answer(
                msgspec.structs.replace(reply, backend=info.backend, device=info.device, num_streams=info.num_streams)
            )
        else:
            work = opened
            answer(reply)
        while line := sys.stdin.buffer.readline():
            rate, answers = work(msgspec.json.decode(line, type=Ask))
            answer(Reply(images_per_second=rate, peak_bytes=peak_bytes(), answers=answers))


if __name__ == "__main__":
    main()
