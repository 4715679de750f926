"""Laying a model out as a repository of the Hugging Face Hub: its files, its card and its bill of materials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

from alexdeploy.cards.bill import bill_of_materials
from alexdeploy.cards.facts import collect_facts
from alexdeploy.cards.measured import Artifacts, of_evaluation, of_training
from alexdeploy.cards.options import CardOptions as CardOptions
from alexdeploy.cards.readme import readme
from alexdeploy.core.arguments import check_argument
from alexdeploy.core.errors import UsageError
from alexdeploy.core.files import check_output, sha256_file
from alexdeploy.core.model_folder import VIEW_WORDS, ModelFolder, find_model
from alexdeploy.core.reading import read_text
from alexdeploy.core.spec import Precision, graph_precision
from alexdeploy.engines.base import ENGINE_BACKENDS, Backend, can_run
from alexdeploy.engines.trt.files import find_engines
from alexdeploy.evaluation.results import Evaluation
from alexdeploy.graphs.freshness import newer_weights
from alexdeploy.importing.staging import copy_file, publish, staged_folder, write_file
from alexdeploy.importing.whole_folder import BILL_NAME, WholeModel, check_whole

HUB_FOLDER = Path("hub")
_LFS = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in ("*.npy", "*.onnx", "*.safetensors"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What was written: the names of the files in `path`. `measured_on` is what the errors on the card are of.

    `measured_on`: "evaluation", "training", or None where none is recorded. `notes` are for people.
    """

    path: Path
    files: tuple[str, ...]
    measured_on: str | None
    notes: tuple[str, ...]


def write_card(
    model: ModelFolder | str | os.PathLike[str] | None,
    directory: str | os.PathLike[str] | None = None,
    options: CardOptions | None = None,
    *,
    evaluation: Evaluation | str | os.PathLike[str] | None = None,
) -> Card:
    """Write a model with its card and bill of materials into `directory`, by default hub/ and its name.

    `model` is a folder or what `find_model` takes; its weights, graphs, mean and spec are copied, no engines and no
    checkpoints. `evaluation` is what `evaluate` returned, or a file with the JSON of `evaluate --json`; without one,
    the card has the errors that training recorded. Raises UsageError for a directory that is not empty, unless
    `overwrite` replaces files of the same names; ModelError and StaleArtifactError for a model that is damaged or not
    that of the evaluation; OutputError. The directory appears when it is complete.
    """
    given = check_argument("directory", directory, str | None)
    options = check_argument("options", options or CardOptions(), CardOptions)
    found: Evaluation | str | None = (
        evaluation if isinstance(evaluation, Evaluation) else check_argument("evaluation", evaluation, str | None)
    )
    folder = find_model(model)
    target = check_directory(folder, given, overwrite=options.overwrite)
    about = None if options.about is None else _read_about(os.fspath(options.about))
    whole = check_whole(folder)
    spec, artifacts = whole.spec, _artifacts(folder, whole)
    measured = of_training(spec) if found is None else of_evaluation(found, spec, artifacts)
    facts = collect_facts(folder, whole, measured)
    written = {
        "README.md": readme(facts, options, about).encode(),
        BILL_NAME: bill_of_materials(facts, options),
        ".gitattributes": _LFS.encode(),
    }
    with staged_folder(target.path) as staged:
        for name, sha256 in whole.hashes.items():
            copy_file(folder.path / name, staged / name, sha256)
        for name, content in written.items():
            write_file(staged / name, content)
        # A folder of that name in a clone of the repository is not ours.
        publish(
            staged,
            target,
            with_folders=False,
            check=lambda: check_directory(folder, os.fspath(target.path), overwrite=options.overwrite),
        )
    return Card(
        path=target.path,
        files=tuple(sorted((*whole.hashes, *written))),
        measured_on=None if measured is None else "training" if measured.by_training else "evaluation",
        notes=tuple(_notes(folder, whole)),
    )


def check_directory(folder: ModelFolder, directory: str | None, *, overwrite: bool) -> ModelFolder:
    """The folder to write, which need not exist. Raises UsageError and OutputError; call it before any work."""
    if directory == "":
        raise UsageError("--output is empty", hint="For the working folder: .")
    home = folder.path.resolve()
    path = HUB_FOLDER / home.name if directory is None else Path(directory)
    check_output(path / BILL_NAME)
    found = path.resolve()
    if found == home or home in found.parents:
        raise UsageError(f"{path} is in the model folder {folder.path}", hint="Name another folder: --output DIR")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UsageError(
            f"{path} is a folder that is not empty",
            hint="Replace its files of the same names: --overwrite\nOr name another folder: --output DIR",
        )
    return ModelFolder(path)


def _artifacts(folder: ModelFolder, whole: WholeModel) -> Artifacts:
    """The SHA-256 of what each backend runs; of engines, only of those built from the files that are there."""
    found: dict[tuple[str, str, int], set[str]] = {}
    for backend, precision, num_views in product(get_args(Backend), get_args(Precision), VIEW_WORDS):
        path = folder.weights_path if backend == "torch" else folder.onnx_path(graph_precision(precision))
        if backend not in ENGINE_BACKENDS and can_run(backend, precision) and path.name in whole.hashes:
            found[backend, precision, num_views] = {whole.hashes[path.name]}
    networks = {*whole.hashes.values(), whole.spec.recorded_weights}
    for path, record in find_engines(folder):
        graph = whole.hashes.get(folder.onnx_path(record.precision).name, record.graph_sha256)
        is_fresh = record.contract_sha256 == whole.spec.contract_sha256 and record.graph_sha256 == graph
        if is_fresh and record.weights_sha256 in networks:
            found.setdefault((record.backend, record.precision, record.num_views), set()).add(sha256_file(path))
    return found


def _read_about(path: str) -> str:
    try:
        return read_text(path)
    except OSError as exc:
        raise UsageError(f"--about {path} cannot be read: {exc.strerror}") from exc


def _notes(folder: ModelFolder, whole: WholeModel) -> list[str]:
    notes = [note] if (note := newer_weights(folder)) is not None else []
    if whole.absent:
        notes.append(f"left out, because they are not there: {', '.join(whole.absent)}")
    data = whole.spec.provenance.get("data")
    if isinstance(data, str) and Path(data).is_absolute():
        notes.append(f"spec.json and the graphs name the folder of the training images as it was given: {data}")
    if not folder.has_graphs:
        notes.append(f"there is no graph to run: alexdeploy export {folder.quoted}")
    elif not list(folder.path.glob("deployment*.onnx")):
        notes.append(
            f"there is no deployment graph, which other programs run: alexdeploy export {folder.quoted} --deployment"
        )
    return notes
