"""Publishing a run: spec.json, weights.safetensors and mean.npy of its best epoch."""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from alexdeploy.core.errors import ModelError
from alexdeploy.core.files import atomic_write, npy_bytes, remove_file, sha256_file
from alexdeploy.core.locks import wait_for_lock
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.packages import package_version
from alexdeploy.core.recipe import Recipe
from alexdeploy.core.spec import CONTRACT_KEY, ModelSpec, Preprocessing
from alexdeploy.core.version import __version__
from alexdeploy.training.checkpoint import Best, Identity, Progress
from alexdeploy.training.pretrained import Parent, kept_rows
from alexdeploy.training.statistics import Statistics, measured_mean
from alexdeploy.training.validation import ValidationErrors


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The parts common to all epochs of a run: the spec, with only the parent as provenance, and mean.npy, if any."""

    spec: ModelSpec
    mean_image: NDArray[np.float32] | None
    mean_file: bytes | None


def make_contract(
    name: str, classes: tuple[str, ...], recipe: Recipe, statistics: Statistics, parent: Parent | None = None
) -> Contract:
    """Build the contract from the recipe and the statistics of the training set.

    A network that continues from a parent gets the parent's preprocessing, including its mean.
    """
    if parent is None:
        preprocessing, mean_image, mean_file = _measured_preprocessing(recipe, statistics)
    else:
        preprocessing, mean_image, mean_file = parent.spec.preprocessing, parent.mean_image, parent.mean_file
    spec = ModelSpec(
        name=name,
        classes=classes,
        preprocessing=preprocessing,
        architecture=recipe.architecture,
        recipe=recipe.name,
    )
    if parent is not None:
        spec = spec.replace_provenance(
            parent=parent.spec.name,
            parent_weights_sha256=parent.weights_sha256,
            last_layer="new" if kept_rows(parent, classes) is None else "kept",
        )
    return Contract(spec=spec, mean_image=mean_image, mean_file=mean_file)


def _measured_preprocessing(
    recipe: Recipe, statistics: Statistics
) -> tuple[Preprocessing, NDArray[np.float32] | None, bytes | None]:
    asked = recipe.preprocessing
    mean, mean_image = measured_mean(statistics, asked)
    mean_file = None if mean_image is None else npy_bytes(mean_image)
    preprocessing = Preprocessing(
        resize=asked.resize,
        channels=asked.channels,
        scale=asked.scale,
        mean=mean,
        std=asked.std,
        mean_image=None if mean_file is None else hashlib.sha256(mean_file).hexdigest(),
        crop=recipe.architecture.input,
    )
    return preprocessing, mean_image, mean_file


def encode_weights(weights: Mapping[str, Tensor], contract: Contract) -> bytes:
    """The bytes of weights.safetensors. The same weights give the same bytes."""
    return save(dict(weights), metadata={CONTRACT_KEY: contract.spec.contract_sha256})


def best_spec(
    contract: Contract,
    recipe: Recipe,
    identity: Identity,
    progress: Progress,
    data_path: str | None,
    ten_views: ValidationErrors | None = None,
) -> ModelSpec:
    """The spec of the best epoch so far, with its provenance."""
    best = progress.best
    assert best is not None, "a spec is written when there are weights"
    now = datetime.datetime.now(datetime.timezone.utc)
    return contract.spec.replace_provenance(
        created=now.isoformat(timespec="seconds"),
        alexdeploy_version=__version__,
        torch_version=str(torch.__version__),
        python_version=platform.python_version(),
        pillow_version=package_version("pillow"),
        recipe_overrides=" ".join(recipe.overrides) or None,
        data=data_path,
        data_sha256=identity.data_sha256,
        num_train=identity.num_train - len(progress.broken_train),
        num_val=identity.num_val - len(progress.broken_val),
        num_skipped=len(progress.broken_train) + len(progress.broken_val),
        seed=recipe.training.seed,
        precision=recipe.training.precision,
        num_epochs=progress.schedule.num_epochs,
        best_epoch=best.record.epoch,
        val_loss=best.record.val_loss,
        val_top1_error=best.record.val_top1_error,
        val_top5_error=best.record.val_top5_error,
        val_top1_error_10_views=None if ten_views is None else ten_views.top1,
        val_top5_error_10_views=None if ten_views is None else ten_views.top5,
        weights_sha256=best.weights_sha256,
    )


def publish_best(folder: ModelFolder, contract: Contract, spec: ModelSpec, weights_file: bytes) -> None:
    """Write the mean, the weights, and the spec, which makes a folder a model, last.

    Exported graphs are refused as soon as the weights beside them change. If there are any, the files therefore go to
    the folder's candidate, and `export` replaces weights and graphs together.
    """
    with wait_for_lock(folder.publish_lock):
        target = folder.candidate if folder.has_graphs else folder
        if target != folder:
            # A candidate without a spec is ignored.
            remove_file(target.spec_path)
        if contract.mean_file is not None:
            with atomic_write(target.mean_path) as file:
                file.write(contract.mean_file)
        with atomic_write(target.weights_path) as file:
            file.write(weights_file)
        target.write_spec(spec)
        if target == folder:
            folder.remove_candidate()


def update_spec(folder: ModelFolder, spec: ModelSpec) -> ModelSpec:
    """Replace the spec of the published weights that it names. Raises as `published_folder`."""
    with wait_for_lock(folder.publish_lock):
        published_folder(folder, spec.recorded_weights).write_spec(spec)
    return spec


def published_folder(folder: ModelFolder, weights_sha256: str | None) -> ModelFolder:
    """The folder or its candidate, whichever spec records these weights. Raises ModelError if neither does.

    Specs of early versions do not record the weights; those versions had no candidate.
    """
    if folder.candidate.spec_path.is_file() and folder.candidate.spec().recorded_weights == weights_sha256:
        return folder.candidate
    if folder.spec().recorded_weights in (None, weights_sha256):
        return folder
    raise ModelError(
        f"{folder.path} no longer has the weights of the run's best epoch, neither beside {folder.spec_path.name} nor "
        f"in {folder.candidate.path}",
        hint="Start again: --overwrite",
    )


def read_weights(folder: ModelFolder, best: Best) -> dict[str, Tensor]:
    """The published weights of `best`."""
    return load_file(published_folder(folder, best.weights_sha256).weights_path)


def is_published(folder: ModelFolder, best: Best) -> bool:
    """Whether the model folder or its candidate contains the weights of `best` and a spec that records them."""
    # An export may move the candidate into the folder meanwhile.
    with suppress(ModelError):
        if _contains(folder.candidate, best):
            return True
    return _contains(folder, best)


def _contains(place: ModelFolder, best: Best) -> bool:
    return (
        place.spec_path.is_file()
        and place.weights_path.is_file()
        and place.spec().recorded_weights == best.weights_sha256
        and sha256_file(place.weights_path) == best.weights_sha256
    )
