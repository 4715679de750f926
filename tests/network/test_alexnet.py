from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import TINY

from alexdeploy.core.recipe import Init, list_recipes, load_recipe
from alexdeploy.network import reference
from alexdeploy.network.alexnet import AlexNet, initialize, make_module
from alexdeploy.network.layers import Layer

ACTIVATIONS = ["relu", "leaky_relu", "elu", "gelu", "sigmoid", "silu", "softplus", "tanh"]


def _relative_errors(network: AlexNet) -> dict[str, float]:
    images = torch.randn(2, 3, network.architecture.input, network.architecture.input) * 50
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    found = network.eval().activations(images)
    return {
        layer.name: float(np.abs(found[layer.name].numpy() - expected).max() / np.abs(expected).max())
        for layer, expected in reference.forward(network.plan, weights, images.numpy())
    }


@pytest.mark.parametrize("recipe", list_recipes())
def test_every_layer_of_every_recipe_equals_numpy_float64(recipe: str) -> None:
    torch.manual_seed(0)
    errors = _relative_errors(AlexNet(load_recipe(recipe, TINY).architecture, 7))
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_equals_numpy_float64(activation: str) -> None:
    torch.manual_seed(0)
    overrides = [*TINY, f"architecture.activation={activation}"]
    errors = _relative_errors(AlexNet(load_recipe("alexnet", overrides).architecture, 7))
    # tanh squeezes conv1's outputs of about 30 into [-1, 1]: conv1's 1e-6 of 30 is 3e-5 of the new scale.
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("overlap", [False, True])
def test_average_pooling_equals_numpy_float64(overlap: bool) -> None:
    torch.manual_seed(0)
    sides = () if overlap else ("architecture.pooling.kernel=2",)
    overrides = [*TINY, "architecture.pooling.kind=average", *sides]
    errors = _relative_errors(AlexNet(load_recipe("alexnet", overrides).architecture, 7))
    assert max(errors.values()) < 1e-5, errors


def test_an_average_is_that_of_whole_windows_without_a_border() -> None:
    layer = Layer(kind="pool", name="pool1", output_shape=(1, 1, 1), kernel=3, stride=2, pooling="average")
    maps = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    # Rounded down: one window of the nine values at the top left, 0 to 2, 4 to 6 and 8 to 10.
    assert make_module(layer)(torch.from_numpy(maps)).flatten().tolist() == [5.0]
    ((_, found),) = reference.forward((layer,), {}, maps)
    assert found.ravel().tolist() == [5.0]


def test_the_first_weights_are_those_of_the_paper() -> None:
    network = AlexNet(load_recipe("alexnet-quarter").architecture, 10)
    initialize(network, load_recipe("alexnet").training.init, seed=1)
    for layer in network.plan:
        if layer.weight_shape is None:
            continue
        module = network.get_submodule(layer.name)
        assert module.weight.std().item() == pytest.approx(0.01, rel=0.1), layer.name
        assert abs(module.weight.mean().item()) < 0.001
        ones = layer.name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        assert (module.bias == (1.0 if ones else 0.0)).all(), layer.name


def test_he_weights_have_the_variance_of_their_fan_in() -> None:
    network = AlexNet(load_recipe("alexnet-quarter").architecture, 10)
    initialize(network, Init(scheme="he", layer_std={"fc8": 0.05}), seed=1)
    assert network.get_submodule("conv3").weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert network.get_submodule("fc8").weight.std().item() == pytest.approx(0.05, rel=0.02)


def test_the_same_seed_gives_the_same_weights() -> None:
    architecture = load_recipe("alexnet", TINY).architecture
    networks = [AlexNet(architecture, 5) for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        initialize(network, Init(), seed)
    first, same, other = (network.get_submodule("conv1").weight for network in networks)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
