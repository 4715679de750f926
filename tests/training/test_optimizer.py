from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from alexdeploy.core.recipe import Training
from alexdeploy.training.optimizer import MomentumSGD, parameter_groups


def test_follows_the_paper_across_a_drop_of_the_learning_rate():
    rng = np.random.default_rng(0)
    shapes = ((3, 4), (4,))
    weights = [rng.normal(size=shape) for shape in shapes]
    parameters = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]
    optimizer = MomentumSGD(parameters, learning_rate=0.1, momentum=0.9, weight_decay=0.05)
    velocities = [np.zeros(shape) for shape in shapes]
    for step in range(12):
        rate = 0.1 if step < 6 else 0.01
        optimizer.learning_rate = rate
        for index, parameter in enumerate(parameters):
            gradient = rng.normal(size=shapes[index])
            parameter.grad = torch.tensor(gradient)
            velocities[index] = 0.9 * velocities[index] - 0.05 * rate * weights[index] - rate * gradient
            weights[index] = weights[index] + velocities[index]
        optimizer.step()
    for parameter, weight, expected in zip(parameters, weights, velocities, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-12)
        np.testing.assert_allclose(optimizer.velocity(parameter).numpy(), expected, rtol=1e-12)


def test_is_not_what_torch_does_after_a_drop():
    """The reason for having it: should torch ever agree, it could go."""

    def run(make, set_rate) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = make([weight])
        for rate in (0.1, 0.1, 0.01, 0.01):
            set_rate(optimizer, rate)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.detach()

    ours = run(
        lambda p: MomentumSGD(p, learning_rate=0.1, momentum=0.9, weight_decay=0.0),
        lambda optimizer, rate: setattr(optimizer, "learning_rate", rate),
    )
    theirs = run(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda optimizer, rate: optimizer.param_groups[0].update(lr=rate),
    )
    assert abs(float(ours - theirs)) > 0.1


def test_biases_decay_too():
    bias = torch.nn.Parameter(torch.ones(3))
    bias.grad = torch.zeros(3)
    MomentumSGD([bias], learning_rate=0.5, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(bias.detach(), torch.full((3,), 0.95))


def test_groups_have_their_own_rate_and_decay_and_may_keep_the_first_rate():
    rng = np.random.default_rng(1)
    network = torch.nn.Sequential(OrderedDict(conv1=torch.nn.Linear(3, 2), fc2=torch.nn.Linear(2, 2))).double()
    training = Training(
        learning_rate=0.1,
        weight_decay=0.05,
        bias_rate_factor=2.0,
        bias_rate_drops=False,
        decay_biases=False,
        last_layer_factor=10.0,
    )
    groups = parameter_groups(network, training, "fc2")
    optimizer = MomentumSGD(groups, learning_rate=0.1, momentum=0.9, weight_decay=0.05)
    expected = {name: parameter.detach().numpy().copy() for name, parameter in network.named_parameters()}
    velocities = dict.fromkeys(expected, 0.0)
    for rate in (0.1, 0.01, 0.01):
        optimizer.learning_rate = rate
        # Weights follow the rate and decay; biases stay at twice the first rate and do not; fc2 has ten times both.
        rates = {"conv1.weight": rate, "conv1.bias": 0.2, "fc2.weight": 10 * rate, "fc2.bias": 2.0}
        for name, parameter in network.named_parameters():
            gradient = rng.normal(size=parameter.shape)
            parameter.grad = torch.tensor(gradient)
            decay = 0.05 if name.endswith("weight") else 0.0
            velocities[name] = 0.9 * velocities[name] - rates[name] * (decay * expected[name] + gradient)
            expected[name] = expected[name] + velocities[name]
        optimizer.step()
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-12)


def test_one_rate_and_one_decay_are_one_group():
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    assert len(parameter_groups(network, Training(), "1")) == 1


def test_what_is_frozen_neither_moves_nor_decays():
    frozen, moving = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = MomentumSGD([frozen, moving], learning_rate=0.1, momentum=0.9, weight_decay=0.5)
    moving.grad = torch.ones(2)
    frozen.requires_grad_(False)
    optimizer.step()
    assert frozen.tolist() == [1, 1]
    torch.testing.assert_close(moving.detach(), torch.full((2,), 0.85))
