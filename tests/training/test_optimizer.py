from __future__ import annotations

import numpy as np
import torch

from alexdeploy.training.optimizer import MomentumSGD


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
