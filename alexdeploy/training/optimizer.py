"""Stochastic gradient descent with momentum, in the paper's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class MomentumSGD(torch.optim.Optimizer):
    """v <- momentum v - weight_decay lr w - lr g;  w <- w + v  (Krizhevsky et al. 2012, section 5).

    The learning rate is inside the velocity. `torch.optim.SGD` multiplies by it after, so that what was gathered
    at the old rate shrinks with the rate on the spot; here it fades out over the next steps. Weight decay is on
    biases too. The velocity of a parameter is `state[parameter]["velocity"]`.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, learning_rate: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay})
        for parameter in self._parameters():
            self.state[parameter]["velocity"] = torch.zeros_like(parameter)

    @property
    def learning_rate(self) -> float:
        return float(self.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.param_groups[0]["lr"] = value

    def velocities(self) -> list[Tensor]:
        """The velocities in the order of the parameters; the optimizer's own, not copies."""
        return [self.state[parameter]["velocity"] for parameter in self._parameters()]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step along the gradients, which every parameter must have."""
        assert closure is None, "a closure is for optimizers that evaluate the loss more than once"
        settings: dict[str, Any] = self.param_groups[0]
        rate = settings["lr"]
        weights = self._parameters()
        velocities = self.velocities()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        assert len(gradients) == len(weights), "every parameter takes part in every step"
        torch._foreach_mul_(velocities, settings["momentum"])
        torch._foreach_add_(velocities, weights, alpha=-settings["weight_decay"] * rate)
        torch._foreach_add_(velocities, gradients, alpha=-rate)
        torch._foreach_add_(weights, velocities)

    def _parameters(self) -> list[Tensor]:
        parameters: list[Tensor] = self.param_groups[0]["params"]
        return parameters
