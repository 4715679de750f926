"""Training that goes on from the weights of a model."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import make_model
from safetensors.numpy import load_file

from alexdeploy.core.errors import ModelError, RecipeError, UsageError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.recipe import Recipe, fine_tuning_recipe
from alexdeploy.images.folder import LabelledImages
from alexdeploy.network.weights import Weights
from alexdeploy.training.events import Event, Notice, Step
from alexdeploy.training.pretrained import Parent, kept_rows, read_parent, recipe_for_child
from alexdeploy.training.trainer import RunOptions, train

ARCHITECTURE = ("architecture.input=67", "architecture.width=0.0625", "architecture.hidden=[256, 256]")
STILL = ("training.learning_rate=1e-30", "training.epochs=1", "training.batch_size=20")
"""So slow that weights stay what they were, to the bit."""


@pytest.fixture
def parent_folder(tmp_path: Path) -> ModelFolder:
    """Five classes, BGR, a mean image."""
    return make_model(tmp_path / "parent", recipe="caffe-alexnet", overrides=ARCHITECTURE)


def rename_classes(folder: ModelFolder, *names: str) -> None:
    folder.write_spec(dataclasses.replace(folder.spec(), classes=names))


def tune(
    data: LabelledImages, parent: Parent, folder: ModelFolder, *overrides: str, resume: bool = False
) -> list[Event]:
    events: list[Event] = []
    options = RunOptions(device="cpu", threads=1, parent=parent, resume=resume)
    train(data, recipe_for(parent, *overrides), folder, options, events.append)
    return events


def recipe_for(parent: Parent, *overrides: str) -> Recipe:
    return fine_tuning_recipe(parent.spec, parent.weights_sha256, overrides=overrides)


def weights_of(folder: ModelFolder) -> Weights:
    return load_file(folder.weights_path)


def notices(events: list[Event]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Notice))


def test_every_layer_but_the_last_is_the_parents(tmp_path, tiny_data, parent_folder):
    folder = ModelFolder(tmp_path / "child")
    events = tune(tiny_data, read_parent(parent_folder), folder, *STILL)
    before, after = weights_of(parent_folder), weights_of(folder)
    for name in set(before) - {"fc8.weight", "fc8.bias"}:
        np.testing.assert_array_equal(after[name], before[name])
    assert after["fc8.weight"].shape == (2, 16)
    assert after["fc8.weight"].std() == pytest.approx(0.01, rel=0.5)
    assert "starting from parent (5 classes): fc8 is new for 2" in notices(events)


def test_the_child_is_fed_as_its_parent_and_says_whose_child_it_is(tmp_path, tiny_data, parent_folder):
    folder = ModelFolder(tmp_path / "child")
    tune(tiny_data, read_parent(parent_folder), folder, *STILL)
    spec = folder.spec()
    assert spec.preprocessing == parent_folder.spec().preprocessing
    assert folder.mean_path.read_bytes() == parent_folder.mean_path.read_bytes()
    assert spec.classes == ("above", "below")
    facts = spec.provenance
    assert facts["parent"] == "parent"
    assert facts["parent_weights_sha256"] == sha256_file(parent_folder.weights_path)
    assert facts["last_layer"] == "new"


def test_the_same_classes_keep_their_rows_of_the_last_layer_in_whatever_order(tmp_path, tiny_data):
    parent_folder = make_model(tmp_path / "parent", overrides=ARCHITECTURE, num_classes=2)
    rename_classes(parent_folder, "below", "above")
    folder = ModelFolder(tmp_path / "child")
    events = tune(tiny_data, read_parent(parent_folder), folder, *STILL)
    for name in ("fc8.weight", "fc8.bias"):
        np.testing.assert_array_equal(weights_of(folder)[name], weights_of(parent_folder)[name][::-1])
    assert "same 2 classes, so fc8 is kept too" in notices(events)
    assert folder.spec().provenance["last_layer"] == "kept"


@pytest.mark.parametrize(
    ("parents", "ours", "rows"),
    [
        (("n00000001 tench, Tinca", "n00000002 crane"), ("n00000002", "n00000001"), [1, 0]),
        (("n00000001 crane", "n00000002 crane"), ("n00000001", "n00000002"), [0, 1]),
        (("crane", "crane"), ("crane", "other"), None),
        (("a", "b"), ("a", "c"), None),
        (("a", "b", "c"), ("a", "b"), None),
    ],
)
def test_classes_are_the_same_by_their_wordnet_id_or_their_name(parent_folder, parents, ours, rows):
    parent = read_parent(parent_folder)
    parent = dataclasses.replace(parent, spec=dataclasses.replace(parent.spec, classes=parents))
    assert kept_rows(parent, ours) == rows


def test_a_last_layer_that_is_kept_learns_no_faster_than_the_others(tmp_path, tiny_data):
    parent_folder = make_model(tmp_path / "parent", overrides=ARCHITECTURE, num_classes=2)
    rename_classes(parent_folder, "below", "above")
    parent = read_parent(parent_folder)
    same, faster = ModelFolder(tmp_path / "same"), ModelFolder(tmp_path / "faster")
    settings = ("training.epochs=1", "training.batch_size=20")
    tune(tiny_data, parent, same, *settings, "training.last_layer_factor=1")
    tune(tiny_data, parent, faster, *settings, "training.last_layer_factor=9")
    for name, weight in weights_of(same).items():
        np.testing.assert_array_equal(weights_of(faster)[name], weight)


def test_a_last_layer_that_is_new_has_the_rate_of_the_recipe(tmp_path, tiny_data, parent_folder):
    parent = read_parent(parent_folder)
    recipe = recipe_for(parent)
    assert recipe.training.last_layer_factor == 2
    assert recipe_for_child(recipe, parent, tiny_data.classes) is recipe


def test_frozen_layers_are_the_parents_after_training(tmp_path, tiny_data, parent_folder):
    folder = ModelFolder(tmp_path / "child")
    tune(tiny_data, read_parent(parent_folder), folder, "training.freeze=['conv1','conv2']", "training.epochs=1")
    before, after = weights_of(parent_folder), weights_of(folder)
    same = {name for name in after if after[name].shape == before[name].shape and (after[name] == before[name]).all()}
    assert same == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}


def test_a_stopped_run_goes_on_to_the_same_bits_with_its_parent_alone(tmp_path, tiny_data, parent_folder):
    parent = read_parent(parent_folder)
    whole, stopped = ModelFolder(tmp_path / "whole"), ModelFolder(tmp_path / "stopped")
    overrides = ("training.epochs=2", "training.freeze=['conv1']", "training.freeze_epoch=2")
    tune(tiny_data, parent, whole, *overrides)

    def interrupt(event: Event) -> None:
        if isinstance(event, Step) and (event.epoch, event.step) == (2, 1):
            raise KeyboardInterrupt

    options = RunOptions(device="cpu", threads=1, parent=parent)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, recipe_for(parent, *overrides), stopped, options, interrupt)
    other = dataclasses.replace(parent, weights_sha256="0" * 64)
    with pytest.raises(UsageError, match="parent_sha256 was"):
        tune(tiny_data, other, stopped, *overrides, resume=True)
    tune(tiny_data, parent, stopped, *overrides, resume=True)
    assert stopped.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_a_child_trains_from_a_child(tmp_path, tiny_data, parent_folder):
    first, second = ModelFolder(tmp_path / "first"), ModelFolder(tmp_path / "second")
    tune(tiny_data, read_parent(parent_folder), first, *STILL)
    tune(tiny_data, read_parent(first), second, *STILL)
    np.testing.assert_array_equal(weights_of(second)["fc8.weight"], weights_of(first)["fc8.weight"])
    assert second.spec().provenance["parent"] == "first"


def test_a_graph_without_weights_is_no_parent(tmp_path, parent_folder):
    imported = ModelFolder(tmp_path / "imported")
    shutil.copytree(parent_folder.path, imported.path)
    imported.weights_path.unlink()
    with pytest.raises(ModelError, match="a graph that was imported cannot be trained") as error:
        read_parent(imported)
    assert "alexdeploy import" in str(error.value.hint)


def test_another_width_is_refused_and_nothing_is_touched(tmp_path, tiny_data, parent_folder):
    folder = make_model(tmp_path / "there")
    before = folder.weights_path.read_bytes()
    parent = read_parent(parent_folder)
    recipe = recipe_for(parent, "architecture.width=0.25")
    options = RunOptions(device="cpu", threads=1, parent=parent, overwrite=True)
    with pytest.raises(
        RecipeError, match=r"conv1\.weight would be \[24, 3, 11, 11\]; parent has it as \[8, 3, 11, 11\]"
    ):
        train(tiny_data, recipe, folder, options, lambda event: None)
    assert folder.weights_path.read_bytes() == before
