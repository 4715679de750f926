"""Reading the network to export, and publishing weights and graphs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from alexdeploy.core.errors import ModelError, StaleArtifactError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.interrupts import deferred_interrupts
from alexdeploy.core.locks import wait_for_lock
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import MAX_DATA_BYTES, read_regular
from alexdeploy.core.spec import ModelSpec, Precision
from alexdeploy.graphs.files import write_graphs
from alexdeploy.graphs.freshness import export_command
from alexdeploy.network.weights import ModelWeights, load_model_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The network to export. `weights` is None for an imported model, which consists of its `model.onnx`.

    `new_files` are the candidate's files by their paths in the folder; empty if the folder's own weights are exported.
    """

    spec: ModelSpec
    mean_image: NDArray[np.float32] | None
    weights: ModelWeights | None
    new_files: Mapping[Path, bytes] = field(default_factory=dict)


def read_network(folder: ModelFolder) -> Network:
    """The newest weights of a folder: its candidate's, if it has one. Raises ModelError."""
    if not folder.candidate.spec_path.is_file():
        return _read(folder, folder)
    # A training run may write the next candidate at any time.
    with wait_for_lock(folder.publish_lock):
        # Another export may have published it while this one waited.
        return _read(folder, folder.candidate if folder.candidate.spec_path.is_file() else folder)


def _read(folder: ModelFolder, place: ModelFolder) -> Network:
    spec = place.spec()
    weights = load_model_weights(place, spec, sha256_file) if place.weights_path.is_file() else None
    new_files = {}
    if place != folder:
        if weights is None:
            raise ModelError(
                f"{place.path} has no {place.weights_path.name}",
                hint=f"Copy it again from the original folder, or remove {place.path} to export the previous weights.",
            )
        # In this order, with the spec last: it records the SHA-256 of the weights.
        for source, target in (
            (place.mean_path, folder.mean_path),
            (place.weights_path, folder.weights_path),
            (place.spec_path, folder.spec_path),
        ):
            if source.is_file():
                new_files[target] = read_regular(source, MAX_DATA_BYTES)
    return Network(spec=spec, mean_image=place.mean_image(spec), weights=weights, new_files=new_files)


def check_complete(folder: ModelFolder, network: Network, precisions: tuple[Precision, ...]) -> None:
    """Raise UsageError if newer weights would make one of the folder's graphs stale; a stale graph is refused later."""
    if not network.new_files:
        return
    behind = [
        folder.onnx_path(each).name
        for each in get_args(Precision)
        if each not in precisions and folder.onnx_path(each).is_file()
    ]
    if behind:
        raise UsageError(
            f"{folder.path} has newer weights; exporting them without {' and '.join(behind)} would make that unusable",
            hint=f"Export all: {export_command(folder)}\nor remove {' and '.join(behind)} first.",
        )


def publish(
    folder: ModelFolder,
    network: Network,
    graphs: Mapping[Path, bytes],
    write_first: Callable[[], None],
) -> None:
    """Write the graphs and the weights that they were made from. `write_first` writes the files that go before them.

    Raises StaleArtifactError, with nothing written, if other weights were published meanwhile; OutputError.
    """
    with wait_for_lock(folder.publish_lock), deferred_interrupts():
        if network.weights is not None and not network.new_files:
            found = sha256_file(folder.weights_path)
            if found != network.weights.sha256:
                raise StaleArtifactError(
                    f"{folder.weights_path} was {network.weights.sha256[:12]} when the export began, "
                    f"and is now {found[:12]}",
                    hint=f"Run it again: alexdeploy export {folder.quoted}",
                )
        write_first()
        write_graphs(graphs, network.new_files)
        # A training run may have published the next candidate meanwhile: keep that one.
        if network.weights is not None and _candidate_weights(folder) == network.weights.sha256:
            folder.remove_candidate()


def _candidate_weights(folder: ModelFolder) -> str | None:
    try:
        return folder.candidate.spec().recorded_weights
    except ModelError:
        return None
