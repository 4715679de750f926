from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alexdeploy.core.errors import ModelError
from alexdeploy.core.model_folder import ModelFolder
from alexdeploy.network.layers import Layer, plan_layers
from alexdeploy.network.weights import load_model_weights, load_weights


@pytest.fixture
def plan(tiny_model: ModelFolder) -> tuple[Layer, ...]:
    spec = tiny_model.spec()
    assert spec.architecture is not None
    return plan_layers(spec.architecture, spec.num_classes)


def test_weights_come_back_as_they_were_written(tiny_model: ModelFolder, plan: tuple[Layer, ...]) -> None:
    loaded = load_weights(tiny_model.weights_path, plan)
    for name, value in load_file(tiny_model.weights_path).items():
        np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("conv3.bias"), r"has no conv3\.bias"),
        (lambda w: w.update({"conv9.bias": np.zeros(3, np.float32)}), r"contains conv9\.bias"),
        (lambda w: w.update({"fc7.weight": w["fc7.weight"].T[:5].copy()}), r"fc7\.weight has shape \[5, 32\]"),
        (lambda w: w.update({"fc7.weight": w["fc7.weight"].astype(np.float16)}), r"fc7\.weight is float16"),
        (lambda w: w["conv1.weight"].fill(np.nan), r"conv1\.weight contains NaN or infinity"),
    ],
)
def test_the_first_mismatch_is_named(tiny_model: ModelFolder, plan: tuple[Layer, ...], change, message: str) -> None:
    weights = {name: value.copy() for name, value in load_file(tiny_model.weights_path).items()}
    change(weights)
    save_file(weights, tiny_model.weights_path)
    with pytest.raises(ModelError, match=message):
        load_weights(tiny_model.weights_path, plan)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_refused_and_not_run(
    tmp_path: Path, plan: tuple[Layer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_weights(path, plan)
    assert not Path("exploded").exists()


def test_truncated_weights_are_refused(tiny_model: ModelFolder, plan: tuple[Layer, ...]) -> None:
    content = tiny_model.weights_path.read_bytes()
    tiny_model.weights_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_weights(tiny_model.weights_path, plan)


def test_weights_without_an_architecture_say_what_is_to_be_restored(tiny_model: ModelFolder) -> None:
    spec = dataclasses.replace(tiny_model.spec(), architecture=None)
    with pytest.raises(
        ModelError, match=r"spec\.json has no architecture to build weights\.safetensors into"
    ) as caught:
        load_model_weights(tiny_model, spec)
    assert "Restore spec.json" in str(caught.value.hint)
