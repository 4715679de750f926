"""Stochastic gradient descent with momentum, in the paper's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from alexdeploy.core.recipe import Training


class MomentumSGD(torch.optim.Optimizer):
    """v <- momentum v - weight_decay lr w - lr g;  w <- w + v  (Krizhevsky et al. 2012, section 5).

    The learning rate is part of the velocity. `torch.optim.SGD` multiplies by it afterwards, so that a drop of the rate
    scales the accumulated velocity at once; here the old velocity decays over the next steps. Weight decay applies to
    biases too. The velocity of a parameter is `state[parameter]["velocity"]`.

    As in torch, `parameters` may be groups: dicts with "params" and options, here "lr_factor" (a factor on the learning
    rate), "drops" (if false, on the initial rate) and "weight_decay". Parameters that do not require a gradient do not
    change.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        defaults = {"momentum": momentum, "weight_decay": weight_decay, "lr_factor": 1.0, "drops": True}
        super().__init__(parameters, defaults)
        self._first_rate = self.learning_rate = learning_rate
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["velocity"] = torch.zeros_like(parameter)

    def velocity(self, parameter: Tensor) -> Tensor:
        """The velocity of a parameter: the optimizer's own tensor, not a copy."""
        found: Tensor = self.state[parameter]["velocity"]
        return found

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients. Every parameter that is not frozen must have one."""
        assert closure is None, "a closure is for optimizers that evaluate the loss more than once"
        for group in self.param_groups:
            rate = group["lr_factor"] * (self.learning_rate if group["drops"] else self._first_rate)
            weights = [parameter for parameter in group["params"] if parameter.requires_grad]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            assert len(gradients) == len(weights), "every parameter takes part in every step"
            if not weights:
                continue
            velocities = [self.velocity(weight) for weight in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, weights, alpha=-group["weight_decay"] * rate)
            torch._foreach_add_(velocities, gradients, alpha=-rate)
            torch._foreach_add_(weights, velocities)


def parameter_groups(network: nn.Module, training: Training, last_layer: str) -> list[dict[str, Any]]:
    """Group the parameters by their learning rate and decay in a recipe; layers are the children of `network`."""
    groups: dict[tuple[float, bool, float], list[Tensor]] = {}
    for name, parameter in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        is_bias = kind == "bias"
        factor = (training.bias_rate_factor if is_bias else 1.0) * (
            training.last_layer_factor if layer == last_layer else 1.0
        )
        decay = 0.0 if is_bias and not training.decay_biases else training.weight_decay
        key = (factor, training.bias_rate_drops or not is_bias, decay)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, "drops": drops, "weight_decay": decay}
        for (factor, drops, decay), parameters in groups.items()
    ]
