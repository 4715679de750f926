"""How cost and memory grow: with the number of inputs, with the batch, and with the size of the pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alexdeploy import ModelFolder
from alexdeploy.core.processors import available_processors
from alexdeploy.engines.base import EngineOptions, choose_backend, open_engine
from alexdeploy.images.decode import decode
from benchmarks.full_decode import full_decode
from benchmarks.photographs import enlarged, write_large, write_thumbnails
from benchmarks.process import Process, take_turns
from benchmarks.subjects import Ask, Setup

Say = Callable[[str], None]

BATCH_SIZE = 8
"""Images a batch, where it is not what is varied: as many as ours has by default."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthOptions:
    """`files` are photographs, which are listed again where more inputs are wanted. `precision` is that of ours.

    `counts` and `num_batch_images` are rounded up to whole waves. `device` is "cpu" or "cuda:0".
    """

    files: tuple[str, ...]
    precision: str = "int8"
    num_rounds: int = 3
    counts: tuple[int, ...] = (100, 1_000, 10_000)
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    num_batch_images: int = 128
    num_large: int = 16
    seed: int = 0
    device: str = "cpu"


def measure_inputs(folder: ModelFolder, options: GrowthOptions, say: Say) -> dict[str, Any]:
    """Seconds an image, and memory, of a run over so many inputs, each in a process of its own.

    Opening the model and the first batches of each process are not in the figures: they come once.
    """
    setup = _ours(folder, options, options.precision, BATCH_SIZE)
    with Process(setup) as process:
        wave = wave_size(process)
    counts = dict.fromkeys(whole_waves(count, wave) for count in options.counts)
    peaks: dict[str, list[int | None]] = {str(count): [] for count in counts}

    def run(count: int) -> float:
        with Process(setup) as process:
            process.ask(Ask(files=listed(options.files, 2 * wave)))
            reply = process.ask(Ask(files=listed(options.files, count)))
        peaks[str(count)].append(reply.peak_bytes)
        return 1 / reply.images_per_second

    turns = {str(count): partial(run, count) for count in counts}
    costs = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"inputs, {text}"))
    return {
        "precision": options.precision,
        "num_rounds": options.num_rounds,
        "wave": wave,
        "seconds_per_image": costs,
        "peak_bytes": peaks,
    }


def measure_batches(folder: ModelFolder, options: GrowthOptions, say: Say) -> dict[str, Any]:
    """Files to rows with each batch size, in processes of their own: images/s, and memory."""
    peaks: dict[str, list[int | None]] = {}

    def run(precision: str, batch_size: int) -> float:
        with Process(_ours(folder, options, precision, batch_size)) as process:
            wave = wave_size(process)
            process.ask(Ask(files=listed(options.files, 2 * wave)))
            reply = process.ask(Ask(files=listed(options.files, whole_waves(options.num_batch_images, wave))))
        peaks.setdefault(f"{precision} {batch_size}", []).append(reply.peak_bytes)
        return reply.images_per_second

    turns = {
        f"{precision} {batch_size}": partial(run, precision, batch_size)
        for precision in dict.fromkeys(("fp32", options.precision))
        for batch_size in options.batch_sizes
    }
    rates = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"batches, {text}"))
    return {"num_rounds": options.num_rounds, "rates": rates, "peak_bytes": peaks}


def measure_sizes(folder: ModelFolder, workspace: Path, options: GrowthOptions, say: Say) -> dict[str, Any]:
    """Thumbnails, photographs as they are, and 24 megapixels: decoding alone, ours and in full, and files to rows."""
    say(f"enlarging {options.num_large} photographs to 24 megapixels")
    kinds = {
        "thumbnails": tuple(write_thumbnails(options.files, workspace / "thumbnails")),
        "photographs": options.files,
        "24 megapixels": tuple(write_large(options.files[: options.num_large], workspace / "large")),
    }
    model = str(folder.path)
    setups = {
        "decode": Setup(side="decode", model=model),
        "full decode": Setup(side="full decode", model=model),
        "files to rows": _ours(folder, options, options.precision, BATCH_SIZE),
    }
    with ExitStack() as stack:
        processes = {name: stack.enter_context(Process(setup)) for name, setup in setups.items()}
        turns = {}
        for (name, process), (kind, files) in itertools.product(processes.items(), kinds.items()):
            wave = wave_size(process)
            process.ask(Ask(files=listed(files, 2 * wave)))
            rate = process.rate(Ask(files=listed(files, 4 * wave)))
            # Decoding small files is soon done: as many as a second holds.
            ask = Ask(files=listed(files, whole_waves(round(rate), wave)))
            turns[f"{name}, {kind}"] = partial(process.rate, ask)
        rates = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"sizes, {text}"))
    num_bytes = {kind: sum(Path(path).stat().st_size for path in files) // len(files) for kind, files in kinds.items()}
    return {
        "precision": options.precision,
        "num_rounds": options.num_rounds,
        "mean_file_bytes": num_bytes,
        "rates": rates,
    }


def _ours(folder: ModelFolder, options: GrowthOptions, precision: str, batch_size: int) -> Setup:
    return Setup(side="ours", model=str(folder.path), precision=precision, batch_size=batch_size, device=options.device)


def wave_size(process: Process) -> int:
    """How many images all streams of a process classify at once."""
    return process.setup.batch_size * process.opened.num_streams


def whole_waves(count: int, wave: int) -> int:
    """`count` rounded up to waves in which every stream has a full batch, four of them at least.

    Streams that wait for the last batches of the others would count as slowness of the batch size or the number.
    """
    return max(4, -(-count // wave)) * wave


def listed(files: Sequence[str], count: int) -> tuple[str, ...]:
    """So many files: all of them again and again."""
    return tuple(itertools.islice(itertools.cycle(files), count))


def measure_decisions(judge: ModelFolder, files: Sequence[str], precision: str, say: Say) -> dict[str, Any]:
    """How many photographs of 24 megapixels get the same class from our decoder as from one that decodes in full.

    `judge` should be a trained model that knows what is in the `files`: random weights nearly tie every answer.
    """
    spec = judge.spec()
    resize = spec.preprocessing.resize

    def both(path: str) -> tuple[np.ndarray, np.ndarray]:
        content = enlarged(path)
        return decode(content, resize), full_decode(content, resize)

    options = EngineOptions(precision=precision, num_views=10, batch_size=1)  # type: ignore[arg-type]
    with (
        open_engine(judge, choose_backend(judge, options.precision), options) as engine,
        ThreadPoolExecutor(available_processors()) as threads,
    ):
        num_same, differences = 0, []
        for number, squares in enumerate(threads.map(both, files)):
            if number % 20 == 0:
                say(f"decisions: {number} of {len(files)}")
            reduced, full = (engine.run(square[None]).probabilities[0].copy() for square in squares)
            num_same += int(reduced.argmax() == full.argmax())
            differences.append(float(np.abs(reduced - full).max()))
    return {
        "judge": spec.name,
        "num_classes": len(spec.classes),
        "precision": precision,
        "num_images": len(files),
        "num_same": num_same,
        "largest_difference": max(differences),
        "mean_difference": sum(differences) / len(differences),
    }
