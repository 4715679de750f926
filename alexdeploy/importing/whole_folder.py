"""A model folder from elsewhere: every file is compared with its record, then copied as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import get_args

import msgspec

from alexdeploy.core.backend_checks import read_backend_checks
from alexdeploy.core.errors import ModelError, StaleArtifactError, UsageError, warn
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import VIEW_WORDS, ModelFolder, model_named
from alexdeploy.core.reading import MAX_TEXT_BYTES, decode_json, open_regular, read_regular
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.graphs.files import read_graph
from alexdeploy.graphs.freshness import check_fresh
from alexdeploy.importing.published_files import refuse_placeholder
from alexdeploy.importing.staging import copy_file, publish, staged_folder
from alexdeploy.network.weights import load_model_weights

BILL_NAME = "model.cdx.json"
"""The bill of materials that `card` writes beside a model: it has the hash of every file but `backends.json`."""

_HEAD_BYTES = 200
_SUM = ".sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeModel:
    """A model folder that is undamaged: its spec, and the SHA-256 of each of its files, by name.

    `absent` are files of the bill of materials and graphs with a hash file that are not there, as after a download of
    some of them. `unlisted` are files that the bill of materials does not list, if there is one.
    """

    spec: ModelSpec
    hashes: dict[str, str]
    absent: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hash:
    alg: str = ""
    content: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Component:
    name: str = ""
    hashes: tuple[_Hash, ...] = ()
    components: tuple[_Component, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    component: _Component = field(default_factory=_Component)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bill:
    """What is read of a CycloneDX document."""

    metadata: _Metadata = field(default_factory=_Metadata)


def check_whole(folder: ModelFolder) -> WholeModel:
    """Read every file of a model folder that runs anywhere, and compare it with its record and with the others.

    Engines and checkpoints are no part of it. Raises ModelError for a file that is missing or damaged, or a Git LFS
    pointer, StaleArtifactError for one that does not belong to the others.
    """
    spec = folder.spec()
    files = folder.portable_files
    for path in files:
        _refuse_placeholder(path)
    # Hashed before reading: a change in between is found when the file is copied.
    hashes = {path.name: sha256_file(path) for path in files}
    # The hash file of a graph that is not there is of no use.
    graphs = [name.removesuffix(_SUM) for name in hashes if name.endswith(_SUM)]
    without = [name for name in graphs if name not in hashes]
    for name in without:
        del hashes[f"{name}{_SUM}"]
    billed = _billed(folder)
    for name, expected in (billed or {}).items():
        if hashes.get(name, expected) != expected:
            raise StaleArtifactError(
                f"SHA-256 mismatch: {folder.path / name} {hashes[name][:12]}, recorded {expected[:12]} in {BILL_NAME}"
            )
    if folder.weights_path.is_file():
        load_model_weights(folder, spec, lambda path: hashes[path.name])
    folder.mean_image(spec)
    num_graphs = sum(1 for _ in _checked_graphs(folder, spec))
    if not num_graphs and not folder.weights_path.is_file():
        raise ModelError(f"{folder.path} has neither {folder.weights_path.name} nor a graph")
    read_backend_checks(folder)
    absent = dict.fromkeys([*without, *(name for name in billed or () if name not in hashes)])
    listed = None if billed is None else {*billed, folder.backends_path.name}
    unlisted = () if listed is None else tuple(name for name in hashes if name not in listed)
    return WholeModel(spec=spec, hashes=hashes, absent=tuple(absent), unlisted=unlisted)


def import_folder(
    source: Path, name: str | None, *, overwrite: bool = False, on_warning: Callable[[str], None] = warn
) -> ModelFolder:
    """Copy the model folder `source` to models/NAME, byte by byte; by default under the name that its spec has.

    Raises UsageError for a folder in use, and what `check_whole` does; no earlier model is changed until all files are
    checked and copied.
    """
    given = ModelFolder(source)
    spec = given.spec()
    folder = model_named(spec.name if name is None else name)
    if folder.path.resolve() == source.resolve():
        raise UsageError(f"{source} is in its place already", hint="Use it: --model, or copy it: --name NAME")
    if not overwrite:
        folder.check_unused()
    try:
        whole = check_whole(given)
    except ModelError as exc:
        # Its own hint is for whoever made the folder.
        if "git lfs" not in (exc.hint or ""):
            exc.hint = "Download or copy the folder again."
        raise
    with staged_folder(folder.path) as staged:
        for file, sha256 in whole.hashes.items():
            copy_file(source / file, staged / file, sha256)
        publish(staged, folder, check=None if overwrite else folder.check_unused)
    if whole.absent:
        on_warning(f"{source} has not all files of the model; not there: {', '.join(whole.absent)}")
    if whole.unlisted:
        on_warning(f"{BILL_NAME} has no hash of {', '.join(whole.unlisted)}: compared with the other files alone")
    if (note := _left_out(given)) is not None:
        on_warning(note)
    return folder


def _left_out(folder: ModelFolder) -> str | None:
    left = [path.name for path in (folder.engines, folder.checkpoints) if path.is_dir()]
    # The licence is in it alone.
    left += [name for name in ("README.md",) if (folder.path / name).is_file()]
    return f"not copied: {', '.join(left)} of {folder.path}" if left else None


def _refuse_placeholder(path: Path) -> None:
    try:
        with open_regular(path) as file:
            refuse_placeholder(path, file.read(_HEAD_BYTES))
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc


def _checked_graphs(folder: ModelFolder, spec: ModelSpec) -> Iterator[Path]:
    """Each graph that is there, after checking that it is what its name says and belongs to the others.

    Raises StaleArtifactError that names all that do not belong to the others.
    """
    stale: list[StaleArtifactError] = []
    for precision, num_views in product(get_args(Precision), (None, *VIEW_WORDS)):
        path = folder.onnx_path(precision, num_views)
        if not path.is_file():
            continue
        graph = read_graph(path)
        if graph.num_views != num_views:
            found = "no views" if graph.num_views is None else f"{graph.num_views} views"
            raise StaleArtifactError(f"{path} has the graph of another file: {found} are recorded in it")
        try:
            check_fresh(graph, folder, precision, spec)
        except StaleArtifactError as exc:
            stale.append(exc)
        yield path
    if stale:
        hints = dict.fromkeys(each.hint for each in stale if each.hint)
        raise StaleArtifactError("\n".join(dict.fromkeys(each.message for each in stale)), hint="\n".join(hints))


def _billed(folder: ModelFolder) -> dict[str, str] | None:
    """The SHA-256 of each file in the bill of materials; None if there is none.

    Not of `backends.json`, which bills of earlier versions list: it is what a machine found, and `export` rewrites it.
    """
    path = folder.path / BILL_NAME
    try:
        bill = decode_json(read_regular(path, MAX_TEXT_BYTES), _Bill)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ModelError(f"{path} is damaged: {exc}") from exc
    files = bill.metadata.component.components
    return {
        each.name: one.content
        for each in files
        if each.name != folder.backends_path.name
        for one in each.hashes
        if one.alg == "SHA-256"
    }
