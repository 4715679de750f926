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
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.images.decode import decode
from benchmarks.full_decode import full_decode
from benchmarks.photographs import enlarged, write_large, write_thumbnails
from benchmarks.process import Process, take_turns
from benchmarks.sides import NUM_VIEWS, Ask, Setup

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthOptions:
    """`files` are photographs, which are listed again where more inputs are wanted. `precision` is that of ours."""

    files: tuple[str, ...]
    precision: str = "int8"
    num_rounds: int = 3
    counts: tuple[int, ...] = (100, 1_000, 10_000)
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    num_batch_images: int = 128
    num_large: int = 12
    seed: int = 0


def measure_inputs(folder: ModelFolder, options: GrowthOptions, say: Say) -> dict[str, Any]:
    """Seconds an image, and memory, of a run over so many inputs, each in a process of its own.

    Opening the model and the first batches of each process are not in the figures: they come once.
    """
    peaks: dict[str, list[int | None]] = {str(count): [] for count in options.counts}
    setup = Setup(side="ours", model=str(folder.path), precision=options.precision)

    def run(count: int) -> float:
        files = tuple(itertools.islice(itertools.cycle(options.files), count))
        with Process(setup) as process:
            process.ask(Ask(files=options.files[:32]))
            reply = process.ask(Ask(files=files))
        peaks[str(count)].append(reply.peak_bytes)
        return 1 / reply.images_per_second

    turns = {str(count): partial(run, count) for count in options.counts}
    costs = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"inputs, {text}"))
    return {"precision": options.precision, "seconds_per_image": costs, "peak_bytes": peaks}


def measure_batches(folder: ModelFolder, options: GrowthOptions, say: Say) -> dict[str, Any]:
    """Files to rows with each batch size, in processes of their own: images/s, and memory."""
    peaks: dict[str, list[int | None]] = {}

    def run(precision: str, batch_size: int) -> float:
        setup = Setup(side="ours", model=str(folder.path), precision=precision, batch_size=batch_size)
        # Two waves of full batches on both streams at least.
        count = max(options.num_batch_images, 4 * batch_size)
        files = tuple(itertools.islice(itertools.cycle(options.files), count))
        with Process(setup) as process:
            process.ask(Ask(files=files[: 2 * batch_size]))
            reply = process.ask(Ask(files=files))
        peaks.setdefault(f"{precision} {batch_size}", []).append(reply.peak_bytes)
        return reply.images_per_second

    turns = {
        f"{precision} {batch_size}": partial(run, precision, batch_size)
        for precision in dict.fromkeys(("fp32", options.precision))
        for batch_size in options.batch_sizes
    }
    rates = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"batches, {text}"))
    return {"rates": rates, "peak_bytes": peaks}


def measure_sizes(folder: ModelFolder, workspace: Path, options: GrowthOptions, say: Say) -> dict[str, Any]:
    """Thumbnails, photographs as they are, and 24 megapixels: decoding alone, ours and in full, and files to rows."""
    say(f"making {options.num_large} photographs of 24 megapixels")
    kinds = {
        "thumbnails": tuple(write_thumbnails(options.files, workspace / "thumbnails")),
        "photographs": options.files,
        "24 megapixels": tuple(write_large(options.files[: options.num_large], workspace / "large")),
    }
    model = str(folder.path)
    setups = {
        "decode": Setup(side="decode", model=model),
        "full decode": Setup(side="full decode", model=model),
        "files to rows": Setup(side="ours", model=model, precision=options.precision),
    }
    with ExitStack() as stack:
        processes = {name: stack.enter_context(Process(setup)) for name, setup in setups.items()}
        turns = {}
        for (name, process), (kind, files) in itertools.product(processes.items(), kinds.items()):
            ask = Ask(files=files)
            process.ask(ask)
            # Decoding small files is soon done: as often as a second holds.
            ask = Ask(files=files, repeats=max(1, round(process.rate(ask) / len(files))))
            turns[f"{name}, {kind}"] = partial(process.rate, ask)
        rates = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"sizes, {text}"))
    num_bytes = {kind: sum(Path(path).stat().st_size for path in files) // len(files) for kind, files in kinds.items()}
    return {"precision": options.precision, "mean_file_bytes": num_bytes, "rates": rates}


def measure_decisions(judge: ModelFolder, files: Sequence[str], precision: str, say: Say) -> dict[str, Any]:
    """How many photographs of 24 megapixels get the same class from our decoder as from one that decodes in full.

    `judge` should be a trained model that knows what is in the `files`: random weights nearly tie every answer.
    """
    spec = judge.spec()

    def both(path: str) -> tuple[np.ndarray, np.ndarray]:
        content = enlarged(path)
        return decode(content, spec.preprocessing.resize), full_decode(content)

    options = EngineOptions(precision=precision, num_views=NUM_VIEWS, batch_size=1)  # type: ignore[arg-type]
    with (
        open_engine(judge, "openvino", options) as engine,
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
