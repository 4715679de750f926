"""Writing a model into a repository of Triton Inference Server."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from alexdeploy.core.arguments import Count, Natural, check_argument, check_fields
from alexdeploy.core.errors import ModelError, UsageError
from alexdeploy.core.files import atomic_write, output_error, sync_folder
from alexdeploy.core.interrupts import deferred_interrupts
from alexdeploy.core.model_folder import ModelFolder, find_model
from alexdeploy.core.spec import Precision
from alexdeploy.engines.base import NumViews
from alexdeploy.serving.triton.artifacts import Artifacts, make_artifacts
from alexdeploy.serving.triton.beside import RECORD, Record, check_beside, versions_of
from alexdeploy.serving.triton.config import Settings, TritonBackend, decode_config, ensemble_config, graph_config
from alexdeploy.serving.triton.source import model_files
from alexdeploy.serving.triton.verify import verify_config

_NEEDED = "requirements.txt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATH = re.compile(r"[A-Za-z0-9._/-]*" if os.sep == "/" else r"[A-Za-z0-9._:\\/-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonOptions:
    """How Triton is to run the model.

    `batch_size` is the largest number of images that run together, and in one request; a batch waits for more images
    for at most `max_delay_us` microseconds. `num_instances` of the graph run at once, on each of the GPUs `gpu_ids`, in
    Triton's numbering; empty: the CPU, and for TensorRT every GPU. Requests beyond `max_queue` that wait are refused.
    `jpeg`: also write the decoder, and the model that takes image files.
    """

    backend: TritonBackend = "onnxruntime"
    precision: Precision = "fp32"
    num_views: NumViews = 1
    version: Count = 1
    batch_size: Count = 8
    num_instances: Count = 1
    gpu_ids: tuple[Natural, ...] = ()
    max_delay_us: Natural = 2000
    max_queue: Count = 64
    jpeg: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.precision == "bf16":
            raise UsageError("there are no BF16 graphs", hint="Use --precision fp32, fp16 or int8.")
        if self.gpu_ids and self.backend in ("openvino", "python"):
            raise UsageError(
                f"--gpus: {self.backend} runs on the CPU in Triton", hint="Use --backend onnxruntime or tensorrt."
            )
        for option, bits, numbers in (
            ("version", 63, (self.version,)),
            ("batch-size", 31, (self.batch_size,)),
            ("instances", 31, (self.num_instances,)),
            ("gpus", 31, self.gpu_ids),
            ("max-delay-us", 64, (self.max_delay_us,)),
            ("max-queue", 32, (self.max_queue,)),
        ):
            # The types of the fields in Triton's ModelConfig.
            if max(numbers, default=0) >= 1 << bits:
                raise UsageError(f"--{option} {max(numbers)}: Triton takes at most {(1 << bits) - 1}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonRepository:
    """What was written: `models` of `version` in `path`. `artifact` is the SHA-256 of the network.

    `is_verified`: the configurations were parsed as Triton parses them. `notes` are for people.
    """

    path: Path
    models: tuple[str, ...]
    version: int
    artifact: str
    is_verified: bool
    notes: tuple[str, ...] = ()


def write_triton_repository(
    model: ModelFolder | str | os.PathLike[str] | None,
    directory: str | os.PathLike[str],
    options: TritonOptions = TritonOptions(),
) -> TritonRepository:
    """Write a model into the repository `directory`, or another version of one that is there.

    `model` is a folder or what `find_model` takes; its name is that of the models: NAME_graph takes pixels, NAME_decode
    decodes image files, and the ensemble NAME takes image files and runs both. Everything is verified before it appears
    there by renaming. Raises UsageError for a name that Triton cannot load, if the version is there, or if it has other
    settings than those that are there, whose configuration it shares; ModelError for a model that is stale, has no
    fitting engine, or whose graph does not fit the configuration; OutputError.
    """
    directory = str(check_argument("directory", directory, str))
    folder = find_model(model)
    options = check_argument("options", options, TritonOptions)
    _check_names(folder, directory)
    path = Path(directory)
    artifacts = make_artifacts(folder, options.backend, options.precision, options.num_views, options.batch_size)
    spec = folder.spec()
    settings = Settings(
        name=folder.path.resolve().name,
        backend=options.backend,
        num_classes=spec.num_classes,
        num_views=options.num_views,
        batch_size=options.batch_size,
        num_instances=options.num_instances,
        gpu_ids=options.gpu_ids,
        max_delay_us=options.max_delay_us,
        max_queue=options.max_queue,
        jpeg=options.jpeg,
        plans=artifacts.plans,
    )
    record = Record(
        settings=settings,
        classes=spec.classes,
        version=options.version,
        precision=options.precision,
        resize=spec.preprocessing.resize,
        artifact=artifacts.sha256,
        weights=artifacts.weights_sha256,
    )
    there = versions_of(path, settings.graph)
    check_beside(path, record, there)
    files = _files(record, artifacts)
    configs = {name: content[0] for name, content in files.items()}
    is_verified = verify_config(configs, settings, artifacts.graph)
    with deferred_interrupts():
        _publish(path, record, files, there)
    return TritonRepository(
        path=path,
        models=tuple(files),
        version=options.version,
        artifact=artifacts.sha256,
        is_verified=is_verified,
        notes=(
            *artifacts.notes,
            *_needed(files, options.version),
            *_path_notes(path, files),
            *_older_notes(record, there),
        ),
    )


def _check_names(folder: ModelFolder, directory: str) -> None:
    """Raise UsageError for a name that Triton cannot load, or a repository in the model folder itself."""
    home = folder.path.resolve()
    # It is part of URLs, and a part of the command that Triton's Python backend passes to a shell.
    if not _NAME.fullmatch(home.name):
        raise UsageError(
            f"Triton cannot load a model called {home.name!r}: expected letters, digits, '.', '_' and '-' of ASCII, "
            "the first a letter or digit",
            hint="Rename the model folder, or copy it to one with such a name.",
        )
    if not directory:
        raise UsageError("DIR is empty", hint="For the working folder: .")
    repository = Path(directory).resolve()
    if repository == home or home in repository.parents:
        raise UsageError(f"{directory} is in the model folder {folder.path}", hint="Give another DIR.")


def _path_notes(repository: Path, files: _Files) -> list[str]:
    path = str(repository.resolve())
    if _PATH.fullmatch(path) or not any("model.py" in of_version for _, _, of_version in files.values()):
        return []
    return [
        f"Triton's Python backend passes paths to a shell, and may fail to load models from {path!r}: serve the "
        "repository from a path of ASCII letters, digits, '.', '_', '-' and '/'"
    ]


def _older_notes(record: Record, there: list[int]) -> list[str]:
    name, version = record.settings.name, record.version
    if not record.settings.jpeg or not there or version > there[-1]:
        return []
    return [
        f"{name} does not switch to version {version}, because {there[-1]} is newer: to change that, write {version} "
        f"in the three places of {name}/config.pbtxt"
    ]


_Files = dict[str, tuple[str, Mapping[str, bytes], Mapping[str, bytes]]]
"""Model -> its configuration, its files beside that, and those in the folder of the version."""


def _files(record: Record, artifacts: Artifacts) -> _Files:
    """Of each model, in the order in which they may appear: the ensemble after those that it needs."""
    settings = record.settings
    labels = {"labels.txt": _labels(record.classes)}
    recorded = {RECORD: msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"}
    graph = {**artifacts.files, **recorded}
    if settings.backend == "python":
        needed = f"numpy\nonnxruntime=={record.onnxruntime}\n".encode()
        graph |= {**model_files("network_model"), _NEEDED: needed}
    files: _Files = {settings.graph: (graph_config(settings), labels, graph)}
    if settings.jpeg:
        needed = f"numpy\npillow=={record.pillow}\n".encode()
        decoder = {**model_files("decode_model"), _NEEDED: needed, **recorded}
        files[settings.decode] = (decode_config(settings), {}, decoder)
        files[settings.name] = (ensemble_config(settings, record.version), labels, recorded)
    return files


def _needed(files: _Files, version: int) -> list[str]:
    """What Triton's Python needs, for each model that runs in it."""
    found = []
    for name, (_, _, of_version) in files.items():
        if _NEEDED in of_version:
            packages = ", ".join(of_version[_NEEDED].decode().split())
            found.append(f"{name} needs in Triton's Python: {packages} ({name}/{version}/{_NEEDED})")
    return found


def _labels(classes: tuple[str, ...]) -> bytes:
    broken = [name for name in classes if name and name.splitlines() != [name]]
    if broken:
        raise ModelError(f"the class {broken[0]!r} has a line break; Triton reads one label a line")
    return "".join(f"{name}\n" for name in classes).encode()


def _publish(repository: Path, record: Record, files: _Files, there: list[int]) -> None:
    """Write everything beside the repository, and rename it into place. Raises OutputError."""
    settings, version = record.settings, str(record.version)
    # Beside the folder itself where DIR is a link to it, or the working folder.
    repository = repository.resolve()
    try:
        repository.parent.mkdir(parents=True, exist_ok=True)
        beside = repository if _is_mount(repository) else repository.parent
        with tempfile.TemporaryDirectory(dir=beside, prefix=f".{repository.name[:64]}.", suffix=".tmp") as temporary:
            # Not the temporary folder itself, which only this user may read.
            staged = Path(temporary) / "repository"
            for name, (config, models_own, of_version) in files.items():
                _write(staged / name / version, of_version)
                if not there:
                    _write(staged / name, {"config.pbtxt": config.encode(), **models_own})
            if not repository.exists():
                os.rename(staged, repository)
            elif not there:
                for name in files:
                    os.rename(staged / name, repository / name)
            else:
                for name in files:
                    os.rename(staged / name / version, repository / name / version)
        sync_folder(repository.parent)
    except OSError as exc:
        raise output_error(repository, exc) from exc
    if there and record.version > there[-1] and settings.name in files:
        # The ensemble switches to the new version of both at once.
        with atomic_write(repository / settings.name / "config.pbtxt") as file:
            file.write(files[settings.name][0].encode())


def _is_mount(path: Path) -> bool:
    return path.is_dir() and path.stat().st_dev != path.parent.stat().st_dev


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
