"""Weights that are damaged or of another training, as each reader of a model folder meets them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import pytest
from helpers import change_weights, make_model
from safetensors.numpy import load_file, save_file

from alexdeploy.core.errors import ModelError, StaleArtifactError
from alexdeploy.core.files import sha256_file
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.core.spec import CONTRACT_KEY
from alexdeploy.engines.base import EngineOptions, open_engine
from alexdeploy.engines.torch import open_layers
from alexdeploy.export.export import export_model
from alexdeploy.graphs.freshness import load_graph, load_metadata
from alexdeploy.network.weights import load_model_weights
from alexdeploy.training.pretrained import read_parent

Reader = Callable[[ModelFolder], object]

READERS = {
    "torch": lambda folder: open_engine(folder, "torch", EngineOptions()),
    "verify": open_layers,
    "export": export_model,
    "pretrained": read_parent,
    "openvino": lambda folder: open_engine(folder, "openvino", EngineOptions()),
    "onnxruntime": lambda folder: open_engine(folder, "onnxruntime", EngineOptions()),
}
readers = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@pytest.fixture
def trained(tiny_model: ModelFolder) -> ModelFolder:
    """The tiny model with the record that training leaves, and graphs of those weights."""
    spec = tiny_model.spec()
    tiny_model.write_spec(spec.replace_provenance(weights_sha256=sha256_file(tiny_model.weights_path)))
    return tiny_model


def stamp(folder: ModelFolder) -> None:
    contract = folder.spec().contract_sha256
    save_file(load_file(folder.weights_path), folder.weights_path, metadata={CONTRACT_KEY: contract})


def damage(folder: ModelFolder) -> None:
    """A bad block within the tensors: the file is as long as it was, and its values are finite."""
    content = bytearray(folder.weights_path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = b"\x3c" * 4096
    folder.weights_path.write_bytes(content)


@readers
def test_damaged_weights_are_refused_and_the_graph_is_not_blamed(trained: ModelFolder, read: Reader) -> None:
    before = trained.onnx_path().read_bytes()
    damage(trained)
    with pytest.raises(StaleArtifactError, match=r"SHA-256 mismatch: .*weights\.safetensors .*spec\.json") as caught:
        read(trained)
    assert "Restore weights.safetensors" in str(caught.value.hint)
    assert "alexdeploy export" not in str(caught.value.hint)
    assert trained.onnx_path().read_bytes() == before


def test_the_graph_of_weights_that_were_damaged_since_is_said_to_be_right_and_runs_alone(trained: ModelFolder) -> None:
    damage(trained)
    with pytest.raises(StaleArtifactError) as caught:
        load_metadata(trained, "fp16", trained.spec())
    assert "model.fp16.onnx matches the recorded weights" in str(caught.value.hint)
    trained.weights_path.unlink()
    load_graph(trained, "fp16", trained.spec())


@readers
@pytest.mark.parametrize("length", [0, 5, 1000, -1000])
def test_weights_that_were_cut_off_are_refused_by_name(tiny_model: ModelFolder, read: Reader, length: int) -> None:
    tiny_model.weights_path.write_bytes(tiny_model.weights_path.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"weights\.safetensors is damaged") as caught:
        read(tiny_model)
    assert "Restore weights.safetensors" in str(caught.value.hint)


@readers
def test_weights_that_another_user_keeps_to_himself_are_not_said_to_be_damaged(
    tiny_model: ModelFolder, read: Reader
) -> None:
    # As in a container whose user is not the one who trained.
    tiny_model.weights_path.chmod(0)
    if os.access(tiny_model.weights_path, os.R_OK):
        pytest.skip("root may read everything")
    with pytest.raises(ModelError, match=r"weights\.safetensors cannot be read: Permission denied") as caught:
        read(tiny_model)
    assert "chmod a+r" in str(caught.value.hint)


@readers
def test_the_spec_of_another_run_is_refused_by_the_stamp_of_the_weights(tiny_model: ModelFolder, read: Reader) -> None:
    stamp(tiny_model)
    spec = tiny_model.spec()
    tiny_model.write_spec(dataclasses.replace(spec, classes=spec.classes[::-1]))
    with pytest.raises(StaleArtifactError, match="was written for another architecture, preprocessing or classes"):
        read(tiny_model)


def test_weights_without_stamp_or_record_may_be_changed(tiny_model: ModelFolder) -> None:
    change_weights(tiny_model, fc8__bias=lambda bias: bias + 1)
    loaded = load_model_weights(tiny_model, tiny_model.spec())
    assert loaded.sha256 == sha256_file(tiny_model.weights_path)
    np.testing.assert_array_equal(loaded.tensors["fc8.bias"], load_file(tiny_model.weights_path)["fc8.bias"])


def test_weights_of_another_number_of_classes_name_both_files_in_the_cure(tiny_model: ModelFolder) -> None:
    spec = tiny_model.spec()
    tiny_model.write_spec(dataclasses.replace(spec, classes=spec.classes[:4]))
    with pytest.raises(
        ModelError, match=r"fc8\.weight has shape \[5, 32\], the architecture expects \[4, 32\]"
    ) as caught:
        load_model_weights(tiny_model, tiny_model.spec())
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Restore weights.safetensors and spec.json from")


def test_a_training_that_was_stopped_between_weights_and_spec_is_to_be_gone_on_with(trained: ModelFolder) -> None:
    change_weights(trained, fc8__bias=lambda bias: bias + 1)
    trained.checkpoints.mkdir()
    trained.checkpoint_path.write_bytes(b"")
    with pytest.raises(StaleArtifactError) as caught:
        load_model_weights(trained, trained.spec())
    assert "--resume" in str(caught.value.hint)


def test_a_graph_alone_of_other_weights_than_the_specs_is_refused(trained: ModelFolder) -> None:
    spec = trained.spec()
    trained.weights_path.unlink()
    load_metadata(trained, "fp32", spec)
    with pytest.raises(StaleArtifactError, match=r"was made from weights .*, spec\.json records 0000") as caught:
        load_metadata(trained, "fp32", spec.replace_provenance(weights_sha256="0" * 64))
    assert "Copy it and spec.json again" in str(caught.value.hint)


def test_weights_of_another_run_of_the_same_recipe_are_refused(trained: ModelFolder) -> None:
    other = make_model(trained.path.parent / "other", seed=1)
    other.weights_path.replace(trained.weights_path)
    with pytest.raises(StaleArtifactError):
        load_model_weights(trained, trained.spec())
