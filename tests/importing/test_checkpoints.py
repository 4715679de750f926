"""Weights wherever a training script left them: under any key of a checkpoint, behind any prefix, in any suffix."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import caffe_files as files
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.importing.weight_format import file_format
from alexdeploy.importing.weights import WeightsOptions, import_weights

WEIGHTS = files.weights()
STATE = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
OTHER = {name: value + 1 for name, value in STATE.items()}
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models" / "theirs")


@pytest.fixture
def options(tmp_path: Path) -> WeightsOptions:
    return WeightsOptions(recipe=files.narrow(tmp_path), steps={"mean": (104.0, 117.0, 123.0)})


def prefixed(prefix: str, state: Mapping[str, Any] = STATE) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def assert_imported(folder: ModelFolder) -> None:
    found = load_file(folder.weights_path)
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"weights": STATE},
        {"network": STATE, "epoch": 3},
        {"epoch": 3, "run": {"best": {"params": STATE}}, "optimizer": OPTIMIZER},
        {"state_dict": STATE, "ema": {"decay": torch.tensor(0.99)}},
        {"state_dict": STATE, "model": STATE},
        {"state_dict": prefixed("model."), "optimizer_states": [OPTIMIZER], "pytorch-lightning_version": "2.5.0"},
        prefixed("net."),
        prefixed("backbone."),
        prefixed("model.backbone.module."),
        prefixed("_orig_mod.module.net."),
        prefixed("module.model._orig_mod."),
    ],
    ids=lambda checkpoint: next(iter(checkpoint)),
)
def test_weights_are_found_under_any_key_and_prefix(
    tmp_path: Path, folder: ModelFolder, options: WeightsOptions, checkpoint: dict[str, Any]
) -> None:
    torch.save(checkpoint, tmp_path / "theirs.pth")
    import_weights(tmp_path / "theirs.pth", folder, options)
    assert_imported(folder)


def test_a_prefix_is_taken_from_safetensors_too(tmp_path: Path, folder: ModelFolder, options: WeightsOptions) -> None:
    save_file(prefixed("model.net.", WEIGHTS), tmp_path / "theirs.safetensors")
    import_weights(tmp_path / "theirs.safetensors", folder, options)
    assert_imported(folder)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            {"model": STATE, "ema": {"shadow": OTHER}},
            "contains the weights of 2 networks: ['model'], ['ema']['shadow']\nSave the one you want: "
            "torch.save(torch.load(FILE, map_location='cpu', weights_only=True)['ema']['shadow'], 'weights.pth')",
        ),
        (
            {**prefixed("generator."), **prefixed("critic.", OTHER)},
            "holds generator.conv1.weight, generator.conv1.bias",
        ),
        (
            {**prefixed("net."), "loss.weight": torch.zeros(2)},
            "holds net.conv1.weight, net.conv1.bias, net.conv2.weight",
        ),
        ({"state_dict": {"layers": [1, 2]}, "optimizer": OPTIMIZER}, "holds step, exp_avg; expected conv1.weight"),
        ({"state_dict": {"layers": [1, 2]}}, "holds dict, expected a state dict"),
        ({"state_dict": {**STATE, "epoch": 3}}, "holds dict, expected a state dict"),
    ],
)
def test_weights_that_are_not_one_networks_are_refused(
    tmp_path: Path, folder: ModelFolder, options: WeightsOptions, checkpoint: dict[str, Any], message: str
) -> None:
    torch.save(checkpoint, tmp_path / "theirs.pth")
    with pytest.raises(ModelError) as caught:
        import_weights(tmp_path / "theirs.pth", folder, options)
    assert message in caught.value.text
    assert not folder.path.exists()


def test_a_checkpoint_that_holds_itself_comes_to_an_end(
    tmp_path: Path, folder: ModelFolder, options: WeightsOptions
) -> None:
    checkpoint: dict[str, Any] = {"weights": STATE}
    checkpoint["self"] = checkpoint
    file = io.BytesIO()
    torch.save(checkpoint, file)
    (tmp_path / "theirs.pth").write_bytes(file.getvalue())
    import_weights(tmp_path / "theirs.pth", folder, options)
    assert_imported(folder)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "name", ["a.pth", "a.pt", "a.pth.tar", "A.CKPT", "pytorch_model.bin", "a.weights", "a", "a.safetensors", "a.onnx"]
)
def test_a_checkpoint_is_told_by_its_bytes(
    tmp_path: Path, folder: ModelFolder, options: WeightsOptions, name: str, zipped: bool
) -> None:
    torch.save({"state_dict": STATE}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert file_format(tmp_path / name) == "torch"
    import_weights(tmp_path / name, folder, options)
    assert_imported(folder)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pth", "a"])
def test_safetensors_are_told_by_their_bytes(
    tmp_path: Path, folder: ModelFolder, options: WeightsOptions, name: str
) -> None:
    save_file(WEIGHTS, tmp_path / name)
    assert file_format(tmp_path / name) == "safetensors"
    import_weights(tmp_path / name, folder, options)
    assert_imported(folder)


def test_what_bytes_do_not_tell_the_name_does(tmp_path: Path) -> None:
    for name, kind in [
        ("a.caffemodel", "caffe"),
        ("a.CaffeModel", "caffe"),
        ("a.pth.tar", "torch"),
        ("a.ckpt", "torch"),
        ("a.npy", "numpy"),
        ("a.mat", "matlab"),
        ("a.onnx", "onnx"),
        ("a.tar", None),
        ("a.zip", None),
        ("missing/a.h5", None),
    ]:
        if "/" not in name:
            (tmp_path / name).write_bytes(b"PK\x03\x04 another archive" if name.endswith("zip") else b"damaged")
        assert file_format(tmp_path / name) == kind, name
