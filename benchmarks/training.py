"""How fast training is: its loader from files and from packed sets, its step against the loop that everybody writes.

Each side is a process of its own, and all of them take turns. Files and sets are in the page cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy.core.processors import available_processors
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.originals import from_labelled
from alexdeploy.training.prepare import PrepareOptions, prepare
from benchmarks.process import Process, take_turns
from benchmarks.sides import Ask, Setup

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """A turn of the loader takes about `seconds`, and all of `num_images` once at least; one of the other is a step."""

    num_rounds: int = 7
    num_images: int = 1024
    loader_batch_size: int = 128
    step_batch_size: int = 64
    seconds: float = 1.0
    seed: int = 0
    device: str = "cpu"


def measure_loader(images: Path, workspace: Path, options: TrainingOptions, say: Say) -> dict[str, Any]:
    """Pixels alone, no step: from JPEG files, decoded again each epoch, and from packed sets of the same photographs.

    `images` has a folder of photographs for each class. All give the same shuffled batches, with as many threads.
    """
    data = read_image_folder(images)
    folders, made = {"files": images}, {}
    for name, quality in (("packed", None), ("packed --jpeg 95", 95)):
        say(f"loader: making the set {name}")
        folders[name] = workspace / name
        began = time.perf_counter()
        packed = prepare(
            from_labelled(data), folders[name], PrepareOptions(jpeg_quality=quality), lambda done, total: None
        )
        made[name] = {"seconds": time.perf_counter() - began, "bytes": packed.num_bytes}
    num_images = min(options.num_images, len(data.train))
    setups = {
        name: Setup(side="loader", data=str(folder), batch_size=options.loader_batch_size, num_images=num_images)
        for name, folder in folders.items()
    }
    return {
        "num_images": num_images,
        "num_found": len(data.train),
        "batch_size": options.loader_batch_size,
        "num_threads": available_processors(),
        "made": made,
        **_in_turns("loader", setups, num_images, options, say),
    }


def measure_training(options: TrainingOptions, say: Say) -> dict[str, Any]:
    """A step of the full network, forward, backward and update, on random views: ours, and the plain loop."""
    from benchmarks.training_step import gradient_difference

    say("training: comparing the gradients")
    difference = gradient_difference(options.device)
    setups = {
        name: Setup(side="step", form=form, batch_size=options.step_batch_size, device=options.device)
        for name, form in (("alexdeploy", ""), ("plain loop", "plain"))
    }
    return {
        "batch_size": options.step_batch_size,
        "num_threads": available_processors(),
        "device": options.device,
        "gradient_difference": difference,
        # A step at a time.
        **_in_turns("training", setups, None, options, say),
    }


def _in_turns(
    part: str, setups: Mapping[str, Setup], num_images: int | None, options: TrainingOptions, say: Say
) -> dict[str, Any]:
    """Rates in images/s by name, and memory. `num_images` is what a turn does once, None: once is long enough."""
    with ExitStack() as stack:
        turns, processes = {}, {}
        for name, setup in setups.items():
            say(f"{part}: opening {name}")
            processes[name] = stack.enter_context(Process(setup))
            ask = Ask()
            # The first time is cold, and says nothing of the others.
            processes[name].ask(ask)
            rate = processes[name].rate(ask)
            if num_images is not None:
                ask = msgspec.structs.replace(ask, repeats=max(1, round(options.seconds * rate / num_images)))
            turns[name] = partial(processes[name].rate, ask)
        rates = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"{part}, {text}"))
        peaks = {name: process.peak_bytes for name, process in processes.items()}
    return {"rates": rates, "peak_bytes": peaks}
