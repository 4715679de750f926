"""Which versions of a model are in a repository, and whether another may come beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import PIL

from alexdeploy.core.errors import UsageError
from alexdeploy.core.packages import backend_version
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, read_regular
from alexdeploy.core.spec import Precision
from alexdeploy.core.version import __version__
from alexdeploy.serving.triton.config import Settings

RECORD = "alexdeploy.json"
"""In the folder of each version: what it was written from, and with which settings."""

_OPTIONS = {
    "backend": "backend",
    "num_views": "views",
    "batch_size": "batch-size",
    "num_instances": "instances",
    "max_delay_us": "max-delay-us",
    "max_queue": "max-queue",
}
"""Setting -> the option with its value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """`alexdeploy.json`. The decoder reads `resize` and `pillow`."""

    settings: Settings
    classes: tuple[str, ...]
    version: int
    precision: Precision
    resize: str
    artifact: str
    weights: str | None
    alexdeploy: str = __version__
    pillow: str = PIL.__version__
    onnxruntime: str = field(default_factory=lambda: backend_version("onnxruntime"))


def versions_of(repository: Path, graph: str) -> list[int]:
    """The versions of the model `graph`, ascending; none if there is no such model. Raises UsageError."""
    try:
        names = os.listdir(repository / graph)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise UsageError(f"{repository / graph} cannot be read: {exc.strerror}") from exc
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def check_beside(repository: Path, record: Record, there: list[int]) -> None:
    """Raise UsageError unless the version may come beside those that are there, in each of the models' folders.

    `there` are the versions of the graph.
    """
    settings = record.settings
    folders = [repository / name for name in (settings.graph, settings.decode, settings.name)]
    listed = ", ".join(map(str, folders))
    if not there:
        taken = [folder for folder in folders if folder.exists()]
        if taken:
            raise UsageError(
                f"{taken[0]} is there already, and {settings.graph} has no version",
                hint=f"Give another DIR, or remove what there is of {listed}.",
            )
        return
    folders = folders if settings.jpeg else folders[:1]
    versions = {folder / str(record.version): folder for folder in folders}
    for path, folder in versions.items():
        if path.exists():
            last = max(number for each in folders for number in versions_of(repository, each.name))
            raise UsageError(
                f"{folder} has version {record.version} already",
                hint=f"Write it beside: --version {last + 1}\n"
                f"or remove what there is of that version first: {', '.join(map(str, versions))}",
            )
    path = repository / settings.graph / str(there[-1]) / RECORD
    try:
        before = decode_json(read_regular(path, MAX_TEXT_BYTES), Record)
    except (OSError, msgspec.DecodeError) as exc:
        raise UsageError(
            f"{path} cannot be read: {settings.graph} was not written by this program", hint="Give another DIR."
        ) from exc
    differing = "; ".join(_differing(before, record))
    if differing:
        raise UsageError(
            f"version {there[-1]} in {repository} was written {differing}: the configuration is for all versions of a "
            "model",
            hint="Use the same options, or give another DIR.",
        )
    for folder in folders:
        if not (folder / "config.pbtxt").is_file():
            raise UsageError(
                f"{folder} has no config.pbtxt, and the model needs each of {listed}",
                hint="Give another DIR, or remove all of them and write the model again.",
            )


def _differing(before: Record, now: Record) -> Iterator[str]:
    """What the configurations depend on and is not the same, in words."""
    old, new = before.settings, now.settings
    if before.classes != now.classes or old.num_classes != new.num_classes:
        yield f"with {len(before.classes)} classes, now other ones"
    for name, option in _OPTIONS.items():
        was, wanted = getattr(old, name), getattr(new, name)
        if was != wanted:
            yield f"with --{option} {was}, now --{option} {wanted}"
    if old.gpu_ids != new.gpu_ids:
        yield f"{_gpus(old)}, now {_gpus(new)}"
    if old.jpeg != new.jpeg:
        yield "without --no-jpeg, now with it" if old.jpeg else "with --no-jpeg, now without it"
    if old.plans != new.plans:
        yield f"with engines for {_capabilities(old)}, now for {_capabilities(new)}"


def _gpus(settings: Settings) -> str:
    numbers = ",".join(map(str, settings.gpu_ids))
    return f"with --gpus {numbers}" if numbers else "without --gpus"


def _capabilities(settings: Settings) -> str:
    return ", ".join(f"compute capability {capability}" for capability, _ in settings.plans) or "none"
