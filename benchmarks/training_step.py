"""One training step of the full network: alexdeploy's Learner, and the loop that everybody writes.

Forward, loss, backward and update, with random views and 1000 classes; loading and augmentation are not in it. The
other side is nn.Sequential with nn.LocalResponseNorm, contiguous tensors and torch.optim.SGD, in the same precision and
with the same groups, dropout and first weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexdeploy.core.recipe import Recipe, load_recipe
from alexdeploy.network.layers import Layer
from alexdeploy.training.learner import Learner, new_network

NUM_CLASSES = 1000


def plain_network(recipe: Recipe) -> nn.Sequential:
    """The same layers as they are usually written, with the same weights."""
    network = new_network(recipe, NUM_CLASSES)
    plain = nn.Sequential()
    for layer in network.plan:
        plain.add_module(layer.name, _plain_module(layer) or network.get_submodule(layer.name))
    return plain


def _plain_module(layer: Layer) -> nn.Module | None:
    if layer.kind == "lrn":
        assert layer.lrn is not None
        return nn.LocalResponseNorm(layer.lrn.size, layer.lrn.alpha, layer.lrn.beta, layer.lrn.k)
    return nn.Flatten() if layer.kind == "flatten" else None


class PlainLoop:
    """optimizer.zero_grad, forward, cross_entropy, backward, optimizer.step."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        training = recipe.training
        self.network = plain_network(recipe).to(device).train()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )

    def step(self, views: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(views), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


def make_step(batch_size: int, device_name: str, *, is_plain: bool) -> Callable[[], None]:
    """A function that takes one step, and on a GPU waits for its end."""
    device = torch.device(device_name)
    recipe = load_recipe("alexnet")
    views, labels = _batch(batch_size, device)
    if is_plain:
        plain, contiguous = PlainLoop(recipe, device), views.contiguous()

        def work() -> None:
            plain.step(contiguous, labels)
    else:
        learner = Learner(recipe, NUM_CLASSES, device)

        def work() -> None:
            learner.compute_gradients(views, labels, dropout_seed=0)
            learner.update(recipe.training.learning_rate)

    def step() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _batch(batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Views as training cuts them, channels last, and labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch_size, 227, 227, 3, generator=generator) * 60
    labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator)
    return pixels.permute(0, 3, 1, 2).to(device), labels.to(device)


def gradient_difference(device_name: str, batch_size: int = 8) -> float:
    """The largest difference of a parameter's gradient in the first step, as a fraction of its norm.

    In float64. In float32 first gradients differ by up to 6e-3 whatever loop makes them: where biases of 1 stand beside
    weights of 0.01, the pixels of a pooling window are equal but for rounding, and rounding picks the largest. Without
    dropout, and LRN over all maps as the plain loop has it. Raises AssertionError if the losses differ.
    """
    changed = load_recipe("alexnet", ["architecture.dropout=0", "architecture.lrn.per_tower=false"])
    device = torch.device(device_name)
    views, labels = _batch(batch_size, device)
    views = views.double()
    network = new_network(changed, NUM_CLASSES).double()
    learner, plain = Learner(changed, NUM_CLASSES, device, network), plain_network(changed).double().to(device)
    ours = learner.compute_gradients(views, labels, dropout_seed=0).loss.float() / len(labels)
    theirs = F.cross_entropy(plain(views.contiguous()), labels)
    theirs.backward()  # type: ignore[no-untyped-call]
    # Learner takes the loss of scores in float32.
    torch.testing.assert_close(ours, theirs.detach().float(), rtol=1e-6, atol=0)
    worst = 0.0
    for found, expected in zip(network.parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        worst = max(worst, float((found.grad - expected.grad).norm() / expected.grad.norm()))
    return worst
