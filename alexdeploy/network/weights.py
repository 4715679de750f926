"""Weights on disk: read safetensors; check that they belong to the model, and all names and shapes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import load_file

from alexdeploy.core.errors import ModelError, StaleArtifactError, default_hint, first_line
from alexdeploy.core.hashes import remembered_sha256
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.reading import check_regular
from alexdeploy.core.spec import CONTRACT_KEY, ModelSpec
from alexdeploy.network.layers import Layer, plan_layers

Weights = Mapping[str, NDArray[np.float32]]


class ModelWeights(NamedTuple):
    """A model's weights, and the hash of their file."""

    tensors: Weights
    sha256: str


def load_model_weights(
    folder: ModelFolder, spec: ModelSpec, hash_file: Callable[[Path], str] = remembered_sha256
) -> ModelWeights:
    """Load the folder's weights, checked against `spec`: the hash that it records, and the shapes of its architecture.

    If the hash is written into other files, compute it from the content with `hash_file=sha256_file`. Raises
    ModelError and StaleArtifactError.
    """
    # Hash before reading: if the file changes in between, artifacts made from it are found stale, not taken for new.
    digest = check_origin(folder, spec, hash_file)
    if spec.architecture is None:
        raise ModelError(
            f"{folder.spec_path} has no architecture to build {folder.weights_path.name} into",
            hint=f"Restore {folder.spec_path.name}, or import the weights: alexdeploy import FILE --recipe NAME",
        )
    with default_hint(_restore(folder)):
        return ModelWeights(load_weights(folder.weights_path, plan_layers(spec.architecture, spec.num_classes)), digest)


def check_origin(folder: ModelFolder, spec: ModelSpec, hash_file: Callable[[Path], str] = remembered_sha256) -> str:
    """The hash of the folder's weights, after checking that they are complete and match `spec`.

    Weights without metadata pass if the spec records no hash. Raises ModelError for a damaged file,
    StaleArtifactError for the weights of another training run.
    """
    path = folder.weights_path
    try:
        check_regular(path)
        # To safetensors, a file that it may not open does not exist.
        path.open("rb").close()
        # Reads only the header, and checks that header and tensors fill the file.
        with safetensors.safe_open(path, framework="numpy") as file:
            contract = (file.metadata() or {}).get(CONTRACT_KEY)
    except PermissionError as exc:
        readable = f"Let the user of this process read it: chmod a+r {shlex.quote(str(path))}"
        raise ModelError(f"{path} cannot be read: {exc.strerror}", hint=readable) from exc
    except (OSError, safetensors.SafetensorError) as exc:
        raise ModelError(f"{path} is damaged: {first_line(exc)}", hint=_restore(folder)) from exc
    found, recorded = hash_file(path), spec.recorded_weights
    if recorded is not None and found != recorded:
        raise StaleArtifactError(
            f"SHA-256 mismatch: {path} {found[:12]}, recorded {recorded[:12]} in {folder.spec_path.name}: "
            "one of them is damaged or from another training run",
            hint=_restore(folder) + _resume(folder),
        )
    if contract is not None and contract != spec.contract_sha256:
        raise StaleArtifactError(
            f"{path} was written for another architecture, preprocessing or classes than {folder.spec_path} has now",
            hint=_restore(folder),
        )
    return found


def _restore(folder: ModelFolder) -> str:
    both = f"{folder.weights_path.name} and {folder.spec_path.name}"
    return f"Restore {both} from the same copy, or train or import the model again."


def _resume(folder: ModelFolder) -> str:
    """The hint: training and `export` write the weights first, so resuming after an interruption writes the spec."""
    if folder.candidate.spec_path.is_file():
        return f"\nIf an export was stopped, run it again: alexdeploy export {folder.quoted}"
    if not folder.checkpoint_path.is_file():
        return ""
    return "\nIf its training was interrupted, resume it first: run the same command with --resume"


def load_weights(path: Path, plan: tuple[Layer, ...]) -> Weights:
    """Read `<layer>.weight` and `<layer>.bias`, float32. Raises ModelError naming the first mismatch."""
    try:
        check_regular(path)
        weights = load_file(path)
    except (OSError, safetensors.SafetensorError) as exc:
        raise ModelError(
            f"{path} cannot be read as safetensors: {exc}",
            hint="Only safetensors are loaded as weights: a pickled checkpoint can run code.",
        ) from exc
    check_weights(weights, plan, str(path))
    return weights


def check_weights(weights: Weights, plan: tuple[Layer, ...], source: str) -> None:
    """Raise ModelError naming the first mismatch unless `weights` match the plan, as finite float32."""
    expected = expected_shapes(plan)
    for name, shape in expected.items():
        if name not in weights:
            raise ModelError(f"{source} has no {name}; the architecture expects it with shape {list(shape)}")
        found = weights[name]
        if found.shape != shape:
            raise ModelError(f"{source}: {name} has shape {list(found.shape)}, the architecture expects {list(shape)}")
        if found.dtype != np.float32:
            raise ModelError(f"{source}: {name} is {found.dtype}, expected float32")
        if not np.isfinite(found).all():
            raise ModelError(f"{source}: {name} contains NaN or infinity")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise ModelError(f"{source} contains {extra[0]}, which the architecture does not have")


def expected_shapes(plan: tuple[Layer, ...]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter, in the order of the plan."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in plan:
        if layer.weight_shape is not None:
            shapes[f"{layer.name}.weight"] = layer.weight_shape
            shapes[f"{layer.name}.bias"] = (layer.outputs,)
    return shapes
