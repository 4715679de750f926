"""The metadata of an ONNX file, read without the graph, and whether the graph is stale."""

from __future__ import annotations

import mmap
import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from alexdeploy.core.errors import ModelError, StaleArtifactError, default_hint
from alexdeploy.core.hashes import remembered_sha256
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.protobuf_wire import Message, WireError
from alexdeploy.core.reading import MAX_TEXT_BYTES, open_regular, read_regular
from alexdeploy.core.spec import CONTRACT_KEY, ModelSpec, Precision
from alexdeploy.graphs.metadata import (
    INT8_WEIGHTS_KEY,
    PRECISION_KEY,
    RANGES_KEY,
    SOURCE_KEY,
    SOURCE_NAME_KEY,
    GraphMetadata,
)
from alexdeploy.network.weights import check_origin

if TYPE_CHECKING:
    from alexdeploy.graphs.files import Graph
    from alexdeploy.graphs.ranges import Ranges


_METADATA_PROPS = 14
"""The metadata field of ONNX's ModelProto; each entry has its key in field 1 and its value in field 2."""


def read_metadata(path: Path) -> GraphMetadata:
    """The metadata of the file. The graph is skipped; to run it, use `read_graph`.

    Raises ModelError if it is not an ONNX file.
    """
    metadata = {}
    try:
        with open_regular(path) as file:
            # Skipping 240 MB of weights reads none of their pages.
            message = Message(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        for entry in message.messages(_METADATA_PROPS):
            metadata[entry.text(1)] = entry.text(2)
    except (OSError, ValueError, WireError):
        # ONNX's own parser reports what is wrong, or reads a file that this one cannot.
        from alexdeploy.graphs.files import read_graph

        return read_graph(path)
    return GraphMetadata(metadata=metadata, sha256=remembered_sha256(path))


def load_metadata(folder: ModelFolder, precision: str, spec: ModelSpec) -> GraphMetadata:
    """`load_graph` without the graph: raises the same errors, except for damage in the graph."""
    path = graph_path(folder, precision)
    with default_hint(renewal(folder, precision)):
        facts = read_metadata(path)
    check_fresh(facts, folder, precision, spec)
    return facts


def graph_path(folder: ModelFolder, precision: str) -> Path:
    """The path of the graph. Raises ModelError if it does not exist."""
    path = folder.onnx_path(precision)
    if not path.is_file():
        raise ModelError(f"{folder.path} has no {path.name}", hint=renewal(folder, precision, "Make it"))
    return path


def check_fresh(facts: GraphMetadata, folder: ModelFolder, precision: str, spec: ModelSpec) -> None:
    """Raise StaleArtifactError if the graph, or the weights, spec or ranges that it was made from, have changed.

    The weights are compared for every graph: an FP16 graph may match a `model.onnx` that is stale itself. A deployment
    graph is compared with its network, and with what that was made from.
    """
    path = folder.onnx_path(precision, facts.num_views)
    hint = renewal(folder, precision, weight_bits=facts.metadata.get(INT8_WEIGHTS_KEY), num_views=facts.num_views)
    has_weights = folder.weights_path.is_file()
    if has_weights:
        # First, because no graph can be regenerated from wrong weights.
        _check_weights(facts, folder, path, spec)
    _check_sum(facts, folder, precision, hint)
    made_as = facts.metadata.get(PRECISION_KEY, precision)
    if made_as != precision:
        raise StaleArtifactError(f"{path} contains the {made_as} graph, not the {precision} graph", hint=hint)
    if facts.metadata.get(CONTRACT_KEY) != spec.contract_sha256:
        raise StaleArtifactError(
            f"{path} was made for another architecture, preprocessing or classes than {folder.spec_path} has now",
            hint=hint,
        )
    weights, recorded = facts.weights_sha256, spec.recorded_weights
    if not has_weights and weights is not None and recorded is not None and weights != recorded:
        raise StaleArtifactError(
            f"{path} was made from weights {weights[:12]}, {folder.spec_path.name} records {recorded[:12]}", hint=hint
        )
    made_from = {
        folder.weights_path.name: facts.weights_sha256 or "(unknown)",
        facts.metadata.get(SOURCE_NAME_KEY, ""): facts.metadata.get(SOURCE_KEY, ""),
    }
    for name, expected in made_from.items():
        source = folder.path / name
        # An inference machine may have only this file; then there is nothing to compare with.
        if source.is_file() and (found := remembered_sha256(source)) != expected:
            raise StaleArtifactError(
                f"{path} was made from {source.name} {expected[:12]}, which is now {found[:12]}", hint=hint
            )
    measured = facts.metadata.get(RANGES_KEY, "")
    # Ranges are in the working folder, where they may belong to another model of the same name.
    ranges = _ranges_of(folder) if measured else None
    if ranges is not None and ranges.network_sha256 == facts.network_sha256 and ranges.sha256 != measured:
        raise StaleArtifactError(
            f"{path} was made from {folder.ranges_path.name} {measured[:12]}, which is now {ranges.sha256[:12]}",
            hint=hint,
        )


def _check_weights(facts: GraphMetadata, folder: ModelFolder, path: Path, spec: ModelSpec) -> None:
    """Raise as `check_origin` does; the error says if the graph matches the weights that the spec was written with."""
    try:
        check_origin(folder, spec)
    except ModelError as exc:
        recorded = spec.recorded_weights
        is_right = recorded is not None and facts.weights_sha256 == recorded
        if is_right and facts.metadata.get(CONTRACT_KEY) == spec.contract_sha256:
            exc.hint = f"{exc.hint}\n{path.name} matches the recorded weights. To run it, move the damaged file away."
        raise


def _check_sum(facts: GraphMetadata, folder: ModelFolder, precision: str, hint: str) -> None:
    """Raise StaleArtifactError if the graph does not match its hash file, if there is one."""
    path, sum_path = (of(precision, facts.num_views) for of in (folder.onnx_path, folder.sum_path))
    try:
        recorded = read_regular(sum_path, MAX_TEXT_BYTES).split(maxsplit=1)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ModelError(f"{sum_path} cannot be read: {exc.strerror}", hint=hint) from exc
    if recorded[:1] != [facts.sha256.encode()]:
        expected = recorded[0][:12].decode(errors="replace") if recorded else "nothing"
        raise StaleArtifactError(
            f"SHA-256 mismatch: {path} {facts.sha256[:12]}, recorded {expected} in {sum_path.name}: "
            "one of them is damaged or from another export",
            hint=hint,
        )


def renewal(
    folder: ModelFolder,
    precision: str,
    words: str = "Renew it",
    *,
    weight_bits: str | None = None,
    num_views: int | None = None,
) -> str:
    """The hint for a stale graph: the command that regenerates it, if its source exists.

    `weight_bits` is the graph's value of INT8_WEIGHTS_KEY, and `num_views` that of a deployment graph, so that the
    command makes the same kind of graph.
    """
    has_weights = folder.weights_path.is_file()
    if num_views is None and not has_weights and (command := ensemble_command(folder)) is not None:
        first = "" if precision == "fp32" else f"Export the members with --{precision} first.\n"
        return f"{first}{words}: {command}"
    source = folder.weights_path if has_weights or precision == "fp32" else folder.onnx_path()
    if source.is_file():
        options = ("" if precision == "fp32" else f" --{precision}") + (
            " --int8-weights 7" if weight_bits == "7" else ""
        )
        options += "" if num_views is None else f" --deployment --views {num_views}"
        return f"{words}: alexdeploy export {folder.quoted}{options}"
    return f"Copy it and {folder.spec_path.name} again from the original folder, or import the model again."


def ensemble_command(folder: ModelFolder) -> str | None:
    """The command that makes an ensemble again from its members; None for any other folder."""
    with suppress(ModelError):
        if members := folder.spec().members:
            names = " ".join(shlex.quote(each.name) for each in members)
            return f"alexdeploy ensemble {names} --name {shlex.quote(folder.path.resolve().name)} --overwrite"
    return None


def newer_weights(folder: ModelFolder) -> str | None:
    """If the model has a candidate: which weights are used, and how to use the newer ones; else None."""
    if not folder.candidate.spec_path.is_file():
        return None
    served = folder.spec()
    try:
        newer = folder.candidate.spec()
    except ModelError as exc:
        # An export or a training run may have removed it a moment ago.
        return f"newer weights are not used: {exc.message}" if folder.candidate.spec_path.is_file() else None
    if served.recorded_weights == newer.recorded_weights:
        return None
    return (
        f"{folder.path} has newer weights ({_epoch(newer)}) that are not exported; these are {_epoch(served)}. "
        f"Use the newer ones: {export_command(folder)}"
    )


def _epoch(spec: ModelSpec) -> str:
    return f"{(spec.recorded_weights or 'unknown')[:12]}, epoch {spec.provenance.get('best_epoch', 'unknown')}"


def export_command(folder: ModelFolder, *also: Precision) -> str:
    """The command that exports the existing graphs, and `also` these, from new weights: INT8 needs new ranges."""
    options = [f"--{name}" for name in ("fp16", "int8") if name in also or folder.onnx_path(name).is_file()]
    if "--int8" in options:
        ranges = _ranges_of(folder)
        options += ["--calibrate", "IMAGES" if ranges is None else shlex.quote(ranges.images_from)]
    return " ".join(["alexdeploy export", folder.quoted, *options])


def _ranges_of(folder: ModelFolder) -> Ranges | None:
    """The measured ranges on disk; None if there are none."""
    if os.path.isfile(folder.ranges_path):
        from alexdeploy.graphs.ranges import read_ranges

        with suppress(ModelError):
            return read_ranges(folder.ranges_path)
    return None


def load_graph(folder: ModelFolder, precision: str, spec: ModelSpec) -> Graph:
    """The model's graph of a precision. Raises StaleArtifactError as `check_fresh` does."""
    from alexdeploy.graphs.files import read_graph

    path = graph_path(folder, precision)
    with default_hint(renewal(folder, precision)):
        graph = read_graph(path)
    check_fresh(graph, folder, precision, spec)
    return graph
