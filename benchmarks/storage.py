"""One view, which waits for decoding: what it gains where the same photographs are stored in another way.

Each side is a process of its own, and all of them take turns. Files and sets are in the page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from alexdeploy import ModelFolder
from alexdeploy.images.folder import read_image_folder
from alexdeploy.images.originals import from_labelled
from alexdeploy.training.pack import PackOptions, pack_images
from benchmarks.growth import GrowthOptions
from benchmarks.process import Process, take_turns
from benchmarks.subjects import Ask, Setup

Say = Callable[[str], None]

SHRUNK = "shorter side 256, quality 90"


def measure_storage(folder: ModelFolder, workspace: Path, options: GrowthOptions, say: Say) -> dict[str, Any]:
    """Images/s of `predict` with one view, from files and from packed sets of them, and of the engine alone."""
    stored: dict[str, Path] = {"files as they are": _linked(options.files, workspace / "stored")}
    say("storage: shrinking, packing")
    stored[SHRUNK] = _shrunk(options.files, workspace / "shrunk")
    originals = from_labelled(read_image_folder(stored["files as they are"]))
    for name, quality in (("packed --jpeg 95", 95), ("packed", None)):
        stored[name] = workspace / name
        pack_images(originals, stored[name], PackOptions(jpeg_quality=quality), lambda done, total: None)
    setup = Setup(side="ours", model=str(folder.path), precision=options.precision, num_views=1, device=options.device)
    with ExitStack() as stack:
        process = stack.enter_context(Process(setup))
        turns: dict[str, Callable[[], float]] = {}
        for name, place in stored.items():
            rate = _rate(process, place, len(options.files), 1)
            # About a second each.
            turns[name] = partial(_rate, process, place, len(options.files), max(1, round(rate / len(options.files))))
        rates = take_turns(turns, options.num_rounds, options.seed, lambda text: say(f"storage, {text}"))
    num_bytes = {name: _num_bytes(place) for name, place in stored.items()}
    return {
        "precision": options.precision,
        "num_rounds": options.num_rounds,
        "num_files": len(options.files),
        "bytes": num_bytes,
        "rates": rates,
    }


def _rate(process: Process, place: Path, num_images: int, repeats: int) -> float:
    """The process counts the folder that it is asked for, which has so many images."""
    return num_images * process.rate(Ask(files=(str(place),), repeats=repeats))


def _num_bytes(place: Path) -> int:
    """Of the images alone, without what a packed set has beside its shards."""
    files = (file for file in place.rglob("*.*") if file.suffix not in (".json", ".npy"))
    return sum(file.stat().st_size for file in files)


def _linked(files: Sequence[str], folder: Path) -> Path:
    """Links in two class folders, as packing wants them."""
    for number, file in enumerate(files):
        target = folder / "ab"[number % 2] / f"{number:05}{Path(file).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    return folder


def _shrunk(files: Sequence[str], folder: Path) -> Path:
    folder.mkdir()
    for number, file in enumerate(files):
        picture = Image.open(file).convert("RGB")
        scale = 256 / min(picture.size)
        width, height = (max(256, round(side * scale)) for side in picture.size)
        shrunk = picture.resize((width, height), Image.Resampling.LANCZOS)
        shrunk.save(folder / f"{number:05}.jpg", quality=90)
    return folder
