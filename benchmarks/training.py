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

import numpy as np

from alexdeploy.core.processors import available_processors
from alexdeploy.images.folder import LabelledImages, read_image_folder
from alexdeploy.images.originals import from_labelled
from alexdeploy.training.pack import PackOptions, pack_images
from benchmarks.process import Process, take_turns
from benchmarks.subjects import Ask, Setup

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """A turn takes about `seconds`: whole epochs of the loader's `num_images`, or whole steps; one at least."""

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
    folder = draw(data, options.num_images, workspace / "drawn", options.seed)
    drawn = read_image_folder(folder)
    num_images, originals = len(drawn.train), from_labelled(drawn)
    folders, made = {"files": folder}, {}
    for name, quality in (("packed", None), ("packed --jpeg 95", 95)):
        say(f"loader: making the set {name}")
        folders[name] = workspace / name
        began = time.perf_counter()
        packed = pack_images(originals, folders[name], PackOptions(jpeg_quality=quality), lambda done, total: None)
        made[name] = {"seconds": time.perf_counter() - began, "bytes": packed.num_bytes}
    setups = {
        name: Setup(side="loader", data=str(folder), batch_size=options.loader_batch_size, num_images=num_images)
        for name, folder in folders.items()
    }
    return {
        "num_rounds": options.num_rounds,
        "num_images": num_images,
        "num_found": len(data.train),
        "batch_size": options.loader_batch_size,
        "num_threads": available_processors(),
        "made": made,
        **_in_turns("loader", setups, num_images, options, say),
    }


def draw(data: LabelledImages, num_images: int, folder: Path, seed: int) -> Path:
    """A folder with links to so many of the training images, one validation image for each class, and no others.

    It has the classes of `data`, and an image of each at least.
    """
    order = np.random.default_rng(seed).permutation(len(data.train))
    # The first of each class, then the others as they were drawn.
    firsts = dict(reversed([(data.train[index].label, index) for index in order])).values()
    chosen = list(dict.fromkeys([*firsts, *order]))[: max(num_images, len(data.classes))]
    # A class of a single image has none for validation.
    val = {example.label: example for example in (*data.train, *data.val)}.values()
    for split, examples in (("train", [data.train[index] for index in chosen]), ("val", val)):
        for name in data.classes:
            (folder / split / name).mkdir(parents=True)
        for number, example in enumerate(examples):
            path = Path(example.path).absolute()
            (folder / split / data.classes[example.label] / f"{number:06}{path.suffix}").symlink_to(path)
    return folder


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
        "num_rounds": options.num_rounds,
        "batch_size": options.step_batch_size,
        "num_threads": available_processors(),
        "device": options.device,
        "float64_gradient_difference": difference,
        **_in_turns("training", setups, options.step_batch_size, options, say),
    }


def _in_turns(
    part: str, setups: Mapping[str, Setup], num_images: int, options: TrainingOptions, say: Say
) -> dict[str, Any]:
    """Rates in images/s by name, and memory. `num_images` is what an epoch or a step has."""
    with ExitStack() as stack:
        turns, processes = {}, {}
        for name, setup in setups.items():
            say(f"{part}: opening {name}")
            processes[name] = stack.enter_context(Process(setup))
            # The first time is cold, and says nothing of the others.
            processes[name].ask(Ask())
            rate = processes[name].rate(Ask())
            ask = Ask(repeats=max(1, round(options.seconds * rate / num_images)))
            turns[name] = partial(processes[name].rate, ask)
        rates = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"{part}, {text}"))
        peaks = {name: process.peak_bytes for name, process in processes.items()}
    return {"rates": rates, "peak_bytes": peaks}
