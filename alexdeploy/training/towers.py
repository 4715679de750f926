"""The paper's model parallelism: two processes with one tower each, half of every layer's maps or units.

Both take the same batches. A tower reads only its own maps in conv2, conv4 and conv5. The towers exchange activations
only before conv3 and each fully connected layer, which read both (Krizhevsky et al. 2012, section 3.2 and figure 2). In
the paper, one layer of 1000 follows both halves. Here each tower has half of its classes, so that every weight has one
owner, and the towers exchange the logits: both take the softmax over all of them.

In the backward pass, a tower's maps receive gradients from both towers, which takes one more exchange for each of the
above. Only the logits need none, since both towers compute the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from alexdeploy.core.errors import UsageError
from alexdeploy.core.recipe import Recipe
from alexdeploy.core.spec import Architecture
from alexdeploy.network.alexnet import make_module
from alexdeploy.network.layers import Layer, plan_layers
from alexdeploy.network.weights import expected_shapes
from alexdeploy.training.learner import Learner, StepSums, new_network
from alexdeploy.training.parallel import ALONE, ProcessGroup

_BY_NAME = ("weights", "averages", "velocities")
"""The parts of a Learner's state that are tensors by the names of weights, in the order of their exchange."""


def check_towers(architecture: Architecture, num_processes: int) -> None:
    """Raise UsageError unless there are two processes and the network has two towers, independent between exchanges."""
    if architecture.towers != 2:
        raise UsageError(
            "this network has one tower, in which every layer reads all maps of the one before",
            hint="Train its batches in parallel instead, without --parallel towers, or: --set architecture.towers=2",
        )
    for layer in plan_layers(architecture, num_classes=2):
        if layer.kind == "lrn" and layer.groups != 2:
            raise UsageError(
                f"{layer.name} normalizes over the maps of both towers, which would have to be exchanged for it",
                hint="Keep it within each tower, as on the two GPUs of 2012: --set architecture.lrn.per_tower=true",
            )
    if num_processes != 2:
        raise UsageError(
            f"two towers take two processes, found {num_processes}",
            hint="torchrun --nproc-per-node 2 -m alexdeploy train ... --parallel towers",
        )


class TowerLearner:
    """A Learner for one of two processes. All methods are collective: both processes must call them in the same order.

    Weights and states, passed or returned, are those of the whole network on both processes, so that a run can be
    resumed in either form. Views and labels are those of the whole batch. The rank is the number of the tower.
    """

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device, group: ProcessGroup) -> None:
        """Raises UsageError as `check_towers` does."""
        check_towers(recipe.architecture, group.size)
        whole = new_network(recipe, num_classes)
        self._link = _Link(group.rank)
        self._shapes = expected_shapes(whole.plan)
        self._network = nn.Sequential()
        for name, module in _tower_modules(whole.plan, self._link):
            self._network.add_module(name, module)
        self._network.load_state_dict(self._cut(whole.state_dict()))
        self._learner = Learner(recipe, num_classes, device, self._network)
        self._is_scaled = recipe.training.precision == "fp16"
        self.device = device
        self.split = ALONE
        """Batches are not divided: each tower takes all of each batch."""

    def begin_epoch(self, epoch: int) -> None:
        """As Learner's."""
        self._learner.begin_epoch(epoch)

    def compute_gradients(
        self, views: Tensor, labels: Tensor, dropout_seed: int, batch_size: int | None = None
    ) -> StepSums:
        """As Learner's; the sums are the same on both."""
        return self._learner.compute_gradients(views, labels, dropout_seed, batch_size)

    def update(self, learning_rate: float) -> None:
        """As Learner's."""
        if self._is_scaled:
            self._share_overflow()
        self._learner.update(learning_rate, lambda squares: squares + self._swap_number(squares))

    def evaluate(self, views: Tensor) -> Tensor:
        """As Learner's: logits of all classes."""
        return self._learner.evaluate(views)

    def weights(self) -> dict[str, Tensor]:
        """As Learner's, of the whole network."""
        return self._join(self._learner.weights())

    def is_finite(self) -> bool:
        """Whether every weight of both towers is finite."""
        own = torch.tensor(self._learner.is_finite(), dtype=torch.uint8, device=self.device)
        other = self._swap_number(own)
        return bool(own) and bool(other)

    def state(self) -> dict[str, Any]:
        """As Learner's, of the whole network."""
        state = self._learner.state()
        return {**state, **{part: self._join(state[part]) for part in _BY_NAME if part in state}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore a `state()` of a TowerLearner or Learner of the same recipe."""
        self._learner.load_state({**state, **{part: self._cut(state[part]) for part in _BY_NAME if part in state}})

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights alone; `weights` are those of the whole network."""
        self._learner.load_weights(self._cut(weights))

    def _cut(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The first axis of weights, biases and velocities is the layer's outputs.
        return {name: tensor.tensor_split(2)[self._link.tower].contiguous() for name, tensor in whole.items()}

    def _join(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = {}
        for name, tensor in own.items():
            num_rows, *rest = self._shapes[name]
            # NCCL sends only GPU tensors.
            other = self._link.swap(tensor.to(self.device), (num_rows - len(tensor), *rest)).to(tensor.device)
            whole[name] = torch.cat(self._link.in_order(tensor, other))
        return whole

    def _share_overflow(self) -> None:
        """Make both towers skip a step in which the gradients of one overflowed.

        Each gradient scaler checks only its own process' gradients. A finite number times 0 is 0; inf and NaN give NaN.
        """
        gradients = [parameter.grad for parameter in self._network.parameters() if parameter.grad is not None]
        # Per tensor and not squared: sums of scaled gradients may overflow where the gradients do not.
        largest = torch.stack(torch._foreach_norm(gradients, float("inf"))).max()
        gradients[-1].view(-1)[:1] += self._swap_number(largest) * 0.0

    def _swap_number(self, own: Tensor) -> Tensor:
        """Send a scalar and receive the other tower's."""
        return self._link.swap(own.reshape(1), (1,))[0]


class _Link:
    """The connection to the other tower's process."""

    def __init__(self, tower: int) -> None:
        self.tower = tower

    def swap(self, own: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Send a contiguous tensor and receive the other tower's, of shape `shape` and the same dtype."""
        other = own.new_empty(shape)
        peer = 1 - self.tower
        exchange = [dist.P2POp(dist.isend, own, peer), dist.P2POp(dist.irecv, other, peer)]
        for request in dist.batch_isend_irecv(exchange):
            request.wait()
        return other

    def in_order(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return (own, other) if self.tower == 0 else (other, own)


class _JoinFunction(torch.autograd.Function):
    """Concatenates both towers' parts; the gradient of a part is the sum over both towers."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, link: _Link, widths: tuple[int, int], both_know_gradient: bool) -> Tensor:
        ctx.constants = (link, widths, both_know_gradient)
        # Sent channels last: already contiguous in the CPU's layout.
        message = own.movedim(1, -1).contiguous()
        other = link.swap(message, (*message.shape[:-1], widths[1 - link.tower]))
        return torch.cat(link.in_order(own, other.movedim(-1, 1)), dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        link, widths, both_know_gradient = ctx.constants
        parts = gradients[0].tensor_split(widths[:1], dim=1)
        own, other = parts[link.tower], parts[1 - link.tower]
        if both_know_gradient:
            return own, None, None, None
        message = other.movedim(1, -1).contiguous()
        from_other = link.swap(message, (*message.shape[:-1], widths[link.tower]))
        return own + from_other.movedim(-1, 1), None, None, None


class _Join(nn.Module):
    """This tower's [N, own width, ...] and the other's -> [N, sum of both, ...], tower 0's first."""

    def __init__(self, link: _Link, widths: tuple[int, int], *, both_know_gradient: bool = False) -> None:
        super().__init__()
        self._link = link
        self._widths = widths
        self._both_know_gradient = both_know_gradient

    def forward(self, own: Tensor) -> Tensor:
        joined: Tensor = _JoinFunction.apply(own, self._link, self._widths, self._both_know_gradient)  # type: ignore[no-untyped-call]
        return joined


class _TowerDropout(nn.Module):
    """Dropout of this tower's units [N, own width] with the mask that one process would draw for both towers."""

    def __init__(self, rate: float, widths: tuple[int, int], tower: int) -> None:
        super().__init__()
        self._rate = rate
        self._widths = widths
        self._tower = tower

    def forward(self, own: Tensor) -> Tensor:
        if not self.training:
            return own
        factors = F.dropout(own.new_ones(len(own), sum(self._widths)), self._rate)
        return own * factors.tensor_split(self._widths[:1], dim=1)[self._tower]


def _tower_modules(plan: tuple[Layer, ...], link: _Link) -> Iterator[tuple[str, nn.Module]]:
    """This tower's half of every layer under its name, and the exchanges between them."""
    # The number of maps or units of each tower; both have the whole image.
    widths: tuple[int, int] | None = None
    for layer in plan:
        if layer.weight_shape is not None:
            if widths is not None and layer.groups == 1:
                yield f"{layer.name}_join", _Join(link, widths)
            widths = _halves(layer.outputs)
        assert widths is not None, "a plan begins with conv1"
        if layer.kind == "flatten":
            area = layer.outputs // sum(widths)
            widths = (widths[0] * area, widths[1] * area)
        if layer.kind == "dropout":
            yield layer.name, _TowerDropout(layer.rate, widths, link.tower)
        else:
            own_shape = (widths[link.tower], *layer.output_shape[1:])
            yield (
                layer.name,
                make_module(
                    dataclasses.replace(layer, output_shape=own_shape, inputs=layer.inputs // layer.groups, groups=1)
                ),
            )
    assert widths is not None
    yield "logits_join", _Join(link, widths, both_know_gradient=True)


def _halves(num: int) -> tuple[int, int]:
    """Split as Tensor.tensor_split does."""
    return num - num // 2, num // 2
